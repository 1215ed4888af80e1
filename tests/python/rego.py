"""Evaluates Rego modules with an engine that this project did not write.

Reads a file: JSON, a list of {"module": text, "inputs": [...]}. Prints, as JSON, for each of them the
list of what `data.policy.ok` is for its inputs.
"""

import json
import sys

from regopy import Interpreter


def verdicts(case):
    interpreter = Interpreter()
    interpreter.add_module("policy", case["module"])
    found = []
    for value in case["inputs"]:
        interpreter.set_input(value)
        answer = interpreter.query("ok = data.policy.ok")
        if not answer.ok():
            sys.exit(f"{answer}\n{case['module']}")
        found.append(answer.results[0]["ok"])
    return found


with open(sys.argv[1], encoding="utf-8") as file:
    print(json.dumps([verdicts(case) for case in json.load(file)]))
