#!/usr/bin/env python3
"""Writes deploy/kustomize from what the Helm chart renders: what both modes have in common is the
base, what a mode adds is its overlay."""

import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "deploy/kustomize"
NAMESPACE = "postern"
MODES = ["split", "all-in-one"]
MADE = "# Made from deploy/helm/postern by scripts/kustomize.py; change the chart, not this file.\n"


def without_helm(item):
    """An object as somebody would write it who has never heard of Helm."""
    metadata = item["metadata"]
    annotations = {k: v for k, v in metadata.pop("annotations", {}).items() if not k.startswith("helm.sh/")}
    if annotations:
        metadata["annotations"] = annotations
    for labels in [metadata["labels"], item.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})]:
        for name in ["helm.sh/chart", "app.kubernetes.io/managed-by"]:
            labels.pop(name, None)
    return item


def render(mode):
    """Objects by file name."""
    text = subprocess.run(
        [ROOT / ".tools/bin/helm", "template", "postern", ROOT / "deploy/helm/postern", "--namespace", NAMESPACE]
        + ["--values", ROOT / "deploy/helm/postern/ci/split.yaml", "--set", f"mode={mode}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    items = [item for item in yaml.safe_load_all(text) if item]
    # `helm test` is Helm's alone.
    items = [i for i in items if i["metadata"].get("annotations", {}).get("helm.sh/hook") != "test"]
    return {f"{item['metadata']['name']}.{item['kind'].lower()}.yaml": without_helm(item) for item in items}


def dump(item):
    return MADE + yaml.safe_dump(item, sort_keys=False, width=120)


def kustomization(resources):
    return dump({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources})


def files():
    """The content of every file, by path."""
    rendered = {mode: render(mode) for mode in MODES}
    first, second = rendered.values()
    common = {name: item for name, item in first.items() if second.get(name) == item}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    base = {"namespace.yaml": namespace} | common
    content = {OUT / "base" / name: dump(item) for name, item in base.items()}
    content[OUT / "base/kustomization.yaml"] = kustomization(sorted(base))
    for mode, items in rendered.items():
        own = {name: item for name, item in items.items() if name not in common}
        content |= {OUT / "overlays" / mode / name: dump(item) for name, item in own.items()}
        content[OUT / "overlays" / mode / "kustomization.yaml"] = kustomization(["../../base", *sorted(own)])
    return content


if __name__ == "__main__":
    for folder in ["base", "overlays"]:
        shutil.rmtree(OUT / folder, ignore_errors=True)
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
