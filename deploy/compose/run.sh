#!/usr/bin/env bash
# The High Availability page's example on this machine's Docker engine.
#   run.sh up [--all-in-one-image]   certificates as mkcert would make them, then everything up
#   run.sh down                      stop and remove it
#   run.sh ha …                      the highly available one instead: ha/run.sh
set -euo pipefail
if [ "${1:-}" = ha ]; then
    shift
    exec "$(dirname "$0")/ha/run.sh" "$@"
fi
cd "$(dirname "$0")/page"

files=(-f docker-compose.yaml -f demo.yaml)
compose() {
    if docker compose version >/dev/null 2>&1; then docker compose --project-name postern-page "$@"
    else docker-compose --project-name postern-page "$@"; fi
}

certificates() {
    [ -f rootCA.pem ] && return
    # The image that is there anyway makes them: no mkcert, no openssl.
    mkdir -p made && chmod 777 made
    docker run --rm --volume "$PWD/made:/made" --user "$(id -u):$(id -g)" postern/postern:latest \
        demo certificates /made '*.localhost.pomerium.io' httpbin.org
    mv made/ca.pem rootCA.pem
    mv made/certificate.pem _wildcard.localhost.pomerium.io.pem
    mv made/certificate-key.pem _wildcard.localhost.pomerium.io-key.pem
    rmdir made
    # A compose file secret is a bind mount and keeps the file's mode; the images do not run as root.
    chmod 644 _wildcard.localhost.pomerium.io-key.pem
}

case "${1:-up}" in
up)
    [ "${2:-}" = --all-in-one-image ] && files+=(-f all-in-one-image.yaml)
    certificates
    compose "${files[@]}" up --detach --remove-orphans
    echo
    echo "Open https://httpbin.localhost.pomerium.io (names below localhost.pomerium.io resolve to 127.0.0.1)"
    ;;
down)
    compose "${files[@]}" down --volumes --remove-orphans
    ;;
*)
    echo "usage: run.sh up [--all-in-one-image] | down | ha …" >&2
    exit 2
    ;;
esac
