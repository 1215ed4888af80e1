#!/usr/bin/env python3
"""Writes README.md of the Helm chart: what stands below, and every value with its comment and its
default from values.yaml."""

import json
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[1] / "deploy/helm/postern"

HEAD = """\
# postern

The chart of [Postern](https://github.com/postern-proxy/postern), an identity-aware access proxy. Made by
`scripts/chart_readme.py`; change values.yaml, not this file.

## Install

It takes a database, a certificate and an OAuth client. In a namespace of your choice:

```sh
kubectl create namespace access
kubectl -n access create secret generic postern-postgres \\
    --from-literal=connection-string='postgres://postern:PASSWORD@HOST/postern?sslmode=verify-full'
kubectl -n access create secret generic postern-identity-provider --from-literal=client-secret=SECRET
kubectl -n access create secret tls postern-certificate --cert=tls.crt --key=tls.key
helm install postern deploy/helm/postern --namespace access --values values.yaml
```

with this values.yaml, which is `ci/split.yaml`:

```yaml
{split}```

It makes two pods of each service, each service reachable only by those that call it, TLS between
them, a budget for disruptions, and a Service of type LoadBalancer. `mode: all-in-one` makes one
Deployment of all four instead; with `storage.type: memory` and one replica it needs no database.

## Secrets

The chart never renders a secret, so two renders are equal and GitOps controllers have nothing to
fight over. What you don't give with `secrets.existingSecret` and `internalTls.existingSecret`, a Job
makes in the cluster before the first install; it never changes what is there, and nothing deletes it
with the release. To have it made anew, delete the Secret and run `helm upgrade`. Keep a copy of
`postern-secrets`: the records in the database are sealed with it.

## Changes

Routes, policies, certificates and most other keys are taken over while the pods run, within the
minute or so that Kubernetes takes to bring a changed ConfigMap or Secret to them. Whatever needs a
restart rolls the pods out, one at a time, none taken away before its successor is ready.

## Values

Deep down it's all defaults: `config` and the four Secrets above are what you need. `common` holds what
every service has; `proxy`, `authorize`, `authenticate`, `databroker` and `allInOne` take the same keys
and win over it.

| value | default | |
|---|---|---|
"""


def lines(node, comments, prefix=()):
    """Every leaf that has a comment, as (path, default, comment)."""
    for key, value in node.items():
        path = (*prefix, key)
        comment = comments.get(path, "")
        if isinstance(value, dict) and value and any(p[: len(path)] == path and p != path for p in comments):
            if comment:
                yield path, None, comment
            yield from lines(value, comments, path)
        else:
            yield path, value, comment


def comments_of(text):
    """The comment line above each key, by path; indentation tells how deep a key is."""
    found, stack, comment = {}, [], ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# "):
            comment = stripped[2:]
        elif stripped and not stripped.startswith("-"):
            depth = (len(line) - len(line.lstrip())) // 2
            stack = [*stack[:depth], stripped.split(":")[0]]
            if comment:
                found[tuple(stack)] = comment
            comment = ""
        else:
            comment = ""
    return found


def readme():
    text = (CHART / "values.yaml").read_text()
    rows = []
    for path, default, comment in lines(yaml.safe_load(text), comments_of(text)):
        shown = "" if default is None else f"`{json.dumps(default)}`"
        rows.append(f"| `{'.'.join(path)}` | {shown} | {comment.replace('|', chr(92) + '|')} |")
    return HEAD.replace("{split}", (CHART / "ci/split.yaml").read_text()) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme())
