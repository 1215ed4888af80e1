"""Rules and boards use metrics that exist, and docs/metrics.md tells all of them."""

import json
import re

from conftest import CHART, ROOT, run

RULES = CHART / "files/postern.rules.yaml"
BOARDS = sorted((CHART / "files/dashboards").glob("*.json"))
NAME = r"(?:envoy|pomerium|postern|process)_[a-z0-9_]+"


def in_code():
    """Names as the code registers them; the format appends `_total` to counters."""
    names = set()
    for path in (ROOT / "crates").glob("*/src/**/*.rs"):
        text = path.read_text().split("#[cfg(test)]")[0]
        names |= set(re.findall(rf'\b(?:add|count|counter|gauge)\(\s*"({NAME})"', text))
        if path.name == "collectors.rs":
            names |= set(re.findall(rf'"({NAME})"', text))
        for prefix in re.findall(r'format!\("(pomerium_identity_manager_\w*\{what\}\w*_)\{name\}"\)', text):
            for what in re.findall(r'Attempts::new\(metrics, "(\w+)"\)', text):
                names |= {prefix.replace("{what}", what) + name for name in re.findall(r'\badd\("(\w+)", "', text)}
    return names


def documented():
    return re.findall(rf"^\| `({NAME})` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)


def test_every_metric_is_documented_and_every_documented_one_exists():
    names = documented()
    assert len(names) == len(set(names))
    # A gauge may end in _total too: Pomerium's names stay as they are.
    code = in_code()
    assert {name if name in code else name.removesuffix("_total") for name in names} == code, "change docs/metrics.md"


def used(expressions):
    return {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for expression in expressions
        for name in re.findall(rf"\b{NAME}\b(?!\s*=)", re.sub(r"\bby \([^)]*\)|\{[^}]*\}", "", expression))
    }


def test_boards_and_rules_use_metrics_that_exist():
    boards = [
        target["expr"]
        for board in BOARDS
        for panel in json.loads(board.read_text())["panels"]
        for target in panel.get("targets", [])
    ]
    rules = re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)(?=\n\s+(?:labels|for|- record|- alert):?)", RULES.read_text())
    assert len(boards) > 50 and len(rules) > 10
    known = set(documented())
    assert used(boards) <= known, used(boards) - known
    assert used(rules) <= known, used(rules) - known


def test_rules_are_well_formed_and_fire_when_they_should():
    code, out, err = run("promtool", "check", "rules", "--lint-fatal", RULES)
    assert code == 0, out + err
    code, out, err = run("promtool", "test", "rules", ROOT / "tests/deploy/rules.test.yaml")
    assert code == 0, out + err


def test_queries_of_boards_are_well_formed(tmp_path):
    """promtool reads queries as recording rules."""
    rules = [
        f"      - record: board:query{number}\n        expr: {json.dumps(target['expr'].replace('$__rate_interval', '5m'))}"
        for board in BOARDS
        for panel in json.loads(board.read_text())["panels"]
        for number, target in enumerate(panel.get("targets", []))
    ]
    file = tmp_path / "boards.yaml"
    groups = [f"  - name: group{n}\n    rules:\n{rule}" for n, rule in enumerate(rules)]
    file.write_text("groups:\n" + "\n".join(groups) + "\n")
    code, out, err = run("promtool", "check", "rules", file)
    assert code == 0, out + err


def test_every_alert_says_where_to_look():
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    guide = (ROOT / "docs/troubleshoot.md").read_text()
    missing = [a for a in alerts if f"`{a}`" not in guide and a != "PosternDecisionsFailFast"]
    assert len(alerts) > 10 and not missing, f"add to docs/troubleshoot.md: {missing}"
