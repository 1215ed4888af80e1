"""Files that are made from others are in step with them."""

import sys

import pytest
import yaml
from conftest import CHART, KUBECTL, ROOT, objects, run

sys.path.insert(0, str(ROOT / "scripts"))

import boards  # noqa: E402
import chart_readme  # noqa: E402
import kustomize  # noqa: E402


def test_the_readme_tells_every_value():
    assert (CHART / "README.md").read_text() == chart_readme.readme(), "run scripts/chart_readme.py"
    untold = [path for path, _, comment in chart_readme.lines(*parsed()) if not comment]
    # Keys of Kubernetes below a value that is explained.
    assert not untold


def parsed():
    text = (CHART / "values.yaml").read_text()
    return yaml.safe_load(text), chart_readme.comments_of(text)


def test_the_boards_are_as_they_were_made():
    for path, text in boards.files().items():
        assert path.read_text() == text, "run scripts/boards.py"


def test_the_plain_manifests_are_what_the_chart_renders():
    wanted = kustomize.files()
    there = {path for folder in ["base", "overlays"] for path in (kustomize.OUT / folder).rglob("*.yaml")}
    assert there == set(wanted), "run scripts/kustomize.py"
    for path, text in wanted.items():
        assert path.read_text() == text, f"{path}: run scripts/kustomize.py"


@pytest.mark.parametrize("mode", kustomize.MODES)
def test_kubectl_builds_the_overlays(mode):
    code, out, err = run(KUBECTL, "kustomize", kustomize.OUT / "overlays" / mode)
    assert code == 0, err
    built = {(i["kind"], i["metadata"]["name"]): i for i in objects(out)}
    wanted = {(i["kind"], i["metadata"]["name"]): i for i in kustomize.render(mode).values()}
    assert built.pop(("Namespace", "postern"))
    assert built == wanted


def test_the_example_brings_its_configuration_and_sizes():
    code, out, err = run(KUBECTL, "kustomize", kustomize.OUT / "example")
    assert code == 0, err
    [config] = [i for i in objects(out) if i["kind"] == "ConfigMap"]
    assert config["metadata"]["name"] == "postern"
    assert config["data"]["config.yaml"] == (kustomize.OUT / "example/config.yaml").read_text()
    replicas = {i["metadata"]["name"]: i["spec"]["replicas"] for i in objects(out) if i["kind"] == "Deployment"}
    assert replicas["postern-proxy"] == 4 and replicas["postern-authorize"] == 2
