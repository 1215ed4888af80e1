#!/usr/bin/env bash
# Runs every test of the workspace and sums up what was left out.
set -euo pipefail
cd "$(dirname "$0")/.."
left_out=$(mktemp)
export POSTERN_TESTS_LEFT_OUT="$left_out"
# Static like the binaries in the images, so that one build serves the tests and the images.
CARGO_BUILD_TARGET=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_BUILD_TARGET RUSTFLAGS="-C target-feature=+crt-static"
cargo build --workspace --all-targets
if docker version >/dev/null 2>&1; then
    deploy/docker/build.sh "${CARGO_TARGET_DIR:-target}/$CARGO_BUILD_TARGET/debug"
fi
# All of them, so that one failure does not hide another.
cargo test --workspace --no-fail-fast
scripts/chart.sh
.tools/python/bin/python -m pytest --quiet -p no:cacheprovider tests/deploy/*_runs.py
if [ -s "$left_out" ]; then
    echo
    echo "!! LEFT OUT, because this machine lacks what they need:"
    sort -u "$left_out"
fi
rm -f "$left_out"
