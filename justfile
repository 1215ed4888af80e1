# What people do with this repository, a thin line each. `just` alone lists it.

_list:
    @just --list --unsorted

# Everything that has to pass: builds, then unit, property and end-to-end tests.
test: prepare
    scripts/test.sh

# Faults under load (kills, freezes, cuts, lies): prints a line each with the figure reached, fails when one misses its goal. Words pick lines by name.
chaos *ARGS="--all": prepare
    cargo build --release --workspace --bins
    cargo test --release -p postern-tests --test chaos -- {{ ARGS }}

# Install or name what the end-to-end tests need: PostgreSQL, chromium and its driver, Python.
prepare:
    scripts/prepare.sh

# All-in-one with an embedded identity provider and a sample application.
demo *ARGS:
    cargo run --release -- demo {{ ARGS }}

# Postern beside nginx, HAProxy and Envoy, in turn: docs/performance.md says how to read it.
bench *ARGS:
    bench/prepare.sh
    scripts/build.sh
    ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"; "${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/release/postern-bench" {{ ARGS }}

# What Postern does under load, for the compiler to lay out `just bench`, `images` and `release` by. Takes a quarter of an hour.
profile: prepare
    scripts/profile.sh

# What one decision is made of, by itself: nanoseconds. Words pick some by name.
bench-micro *ARGS:
    cargo bench --workspace --bench request --bench decide --bench forward -- {{ ARGS }}

# Instructions of what must not creep, beside bench/budget.tsv; `--update` writes what it found.
budget *ARGS:
    scripts/budget.sh {{ ARGS }}

# Formatting and lints, warnings included.
lint:
    cargo fmt --check
    cargo clippy --workspace --all-targets -- -D warnings

# A container image for each service and one for all-in-one, FROM scratch.
images:
    deploy/docker/build.sh

# Tarballs, a Debian package, the Helm chart, an SBOM and checksums, into dist/.
release:
    scripts/release.sh

# Lint, render and validate the Helm chart and the manifests made from it.
chart: prepare
    cargo build --bin postern
    scripts/chart.sh

# The High Availability page's example, with a provider and an upstream added so that it runs without a
# network; `just compose ha` two or more of each service behind a balancer.
compose *ARGS="up":
    deploy/compose/run.sh {{ ARGS }}

# libFuzzer on one of the targets of fuzz/, until it finds something; needs nightly and cargo-fuzz.
fuzz NAME *ARGS:
    mkdir -p fuzz/libfuzzer/corpus/{{ NAME }}
    cp Cargo.lock fuzz/libfuzzer/Cargo.lock
    POSTERN_FUZZ_TARGET={{ NAME }} cargo +nightly fuzz run --fuzz-dir fuzz/libfuzzer any fuzz/libfuzzer/corpus/{{ NAME }} fuzz/corpus/{{ NAME }} -- {{ ARGS }}
