"""The programs that the tests of deploy/ drive; scripts/prepare.sh brings them."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/postern"
MATRIX = sorted((CHART / "ci").glob("*.yaml"))
HELM = ROOT / ".tools/bin/helm"
HELM_3 = ROOT / ".tools/helm3/helm"
KUBECTL = ROOT / ".tools/bin/kubectl"
POSTERN = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / os.environ.get("CARGO_BUILD_TARGET", "") / "debug/postern"
SERVICES = ["proxy", "authorize", "authenticate", "databroker"]


def run(*command, timeout=120, **options):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, **options)
    return result.returncode, result.stdout, result.stderr


def template(*arguments):
    """What Helm renders, hooks included, as text."""
    code, out, err = run(HELM, "template", "postern", CHART, "--namespace", "access", *arguments)
    assert code == 0, err
    return out


def refusal(*arguments):
    """What Helm says when it refuses to render."""
    code, _, err = run(HELM, "template", "postern", CHART, "--namespace", "access", *arguments)
    assert code != 0, f"{arguments} was rendered"
    return err


def objects(text):
    return [item for item in yaml.safe_load_all(text) if item]


class Rendered:
    """Objects of one render, by kind and name."""

    def __init__(self, text):
        self.items = objects(text)

    def of(self, kind):
        return {item["metadata"]["name"]: item for item in self.items if item["kind"] == kind}

    def deployments(self):
        """By component."""
        return {
            item["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]: item
            for item in self.of("Deployment").values()
        }

    def pods(self):
        """Pod specifications with their labels: Deployments by component, then Jobs and Pods."""
        for name, item in self.deployments().items():
            yield name, item["spec"]["template"]["metadata"]["labels"], item["spec"]["template"]["spec"]
        for name, item in self.of("Job").items():
            yield name, item["spec"]["template"]["metadata"]["labels"], item["spec"]["template"]["spec"]
        for name, item in self.of("Pod").items():
            yield name, item["metadata"]["labels"], item["spec"]


def container(pod):
    return next(c for c in pod["containers"] if c["name"] == "postern")


def env(pod):
    return {entry["name"]: entry.get("value") for entry in container(pod).get("env", [])}


@cache
def rendered(values):
    return Rendered(template("--values", values))


@pytest.fixture(params=MATRIX, ids=lambda path: path.stem)
def values(request):
    return request.param


@pytest.fixture
def chart(values):
    return rendered(values)


@pytest.fixture
def split():
    return rendered(CHART / "ci/split.yaml")
