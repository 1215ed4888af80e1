"""Shell scripts are free of the mistakes that shellcheck knows, documents of links that lead nowhere."""

import re
import sys

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
