"""Shell scripts are free of the mistakes that shellcheck knows, documents of links that lead nowhere."""

import re
import sys

import yaml
from conftest import ROOT, run

PYTHON = sys.executable


def test_shellcheck():
    tracked = run("git", "-C", ROOT, "ls-files")[1].splitlines()
    scripts = [ROOT / f for f in tracked if f.endswith(".sh") or f.startswith("deploy/systemd/debian/")]
    scripts.append(ROOT / ".ci/run")
    assert len(scripts) > 8
    code, out, err = run("shellcheck", *scripts)
    assert code == 0, out + err


def test_links_between_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_compose_files_and_workflows_fit_their_schemas():
    kinds = {
        "compose-spec": [*(ROOT / "deploy/compose").glob("*/docker-compose.yaml"), ROOT / "deploy/compose/ha/demo.yaml"],
        "github-workflows": [*(ROOT / ".github/workflows").glob("*.yaml")],
    }
    for schema, files in kinds.items():
        assert files
        code, out, err = run(PYTHON, "-m", "check_jsonschema", f"--builtin-schema=vendor.{schema}", *files)
        assert code == 0, out + err


def test_workflows_run_scripts_that_hold():
    steps = [
        step["run"]
        for file in (ROOT / ".github/workflows").glob("*.yaml")
        for job in yaml.safe_load(file.read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert steps
    for script in steps:
        # As a runner does: what fails ends the step. A `${{ }}` in it would be text that somebody else wrote.
        assert "${{" not in script, script
        code, out, err = run("shellcheck", "--shell=bash", "-", input=f"set -eo pipefail\n{script}\n")
        assert code == 0, script + out + err
    recipes = set(re.findall(r"^([a-z-]+)[^:\n]*:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE))
    asked = {recipe for script in steps for recipe in re.findall(r"^just ([a-z-]+)", script, re.MULTILINE)}
    assert asked and asked <= recipes, asked - recipes
