#!/usr/bin/env bash
# Runs every test of the workspace and sums up what was left out.
set -euo pipefail
cd "$(dirname "$0")/.."
left_out=$(mktemp)
export POSTERN_TESTS_LEFT_OUT="$left_out"
# Before the tests, which would share the cores with that build.
if docker version >/dev/null 2>&1; then deploy/docker/build.sh; fi
cargo test --workspace
scripts/chart.sh
.tools/python/bin/python -m pytest --quiet -p no:cacheprovider tests/deploy/*_runs.py
if [ -s "$left_out" ]; then
    echo
    echo "!! LEFT OUT, because this machine lacks what they need:"
    sort -u "$left_out"
fi
rm -f "$left_out"
