#!/usr/bin/env bash
# Lints, renders and validates the Helm chart over its matrix of values, holds everything made from
# it in step, and prints its size; the tests of deploy/ that run nothing. Needs the debug build of
# postern, and what prepare.sh brings.
set -euo pipefail
cd "$(dirname "$0")/.."
.tools/python/bin/python -m pytest --quiet -p no:cacheprovider --ignore-glob="*_runs.py" tests/deploy
package=$(mktemp -d)
.tools/bin/helm package --destination "$package" deploy/helm/postern >/dev/null
for values in deploy/helm/postern/ci/*.yaml; do
    count=$(.tools/bin/helm template postern deploy/helm/postern --values "$values" | grep -c '^kind:')
    echo "$(basename "$values" .yaml): $count objects"
done
echo "the packaged chart: $(stat --format %s "$package"/*.tgz) bytes"
rm -r "$package"
