#!/usr/bin/env bash
# A highly available deployment on this machine's Docker engine.
#   run.sh up [--scale SERVICE=N]…   make what is missing in secrets/, start, wait until all is healthy
#   run.sh upgrade                   replace each container by one of the image named now, service by service
#   run.sh doctor                    say what is wrong with it, as seen from where a proxy runs
#   run.sh down [--volumes]          stop and remove it, with --volumes the records too
# DEMO=no leaves out the demo's identity provider and upstream. The environment, or a file .env here,
# names images (POSTERN_REGISTRY, POSTERN_TAG, HAPROXY_IMAGE, POSTGRES_IMAGE), ports of the host
# (HTTPS_PORT, HTTP_PORT) and, for a second deployment beside this one, the project (COMPOSE_PROJECT_NAME).
set -euo pipefail
cd "$(dirname "$0")"

if [ -f .env ]; then
    set -a
    # shellcheck source=/dev/null
    . ./.env
    set +a
fi
registry=${POSTERN_REGISTRY:-ghcr.io/postern-proxy}
tag=${POSTERN_TAG:-latest}
project=${COMPOSE_PROJECT_NAME:-postern-ha}
services=(databroker authorize authenticate proxy)
files=(-f docker-compose.yaml)
[ "${DEMO:-yes}" = no ] || files+=(-f demo.yaml)

compose() {
    if docker compose version >/dev/null 2>&1; then docker compose --project-name "$project" "${files[@]}" "$@"
    else docker-compose --project-name "$project" "${files[@]}" "$@"; fi
}

# write NAME: takes a secret from standard input. Containers run as another user, so the file is
# open to all; the directory is not.
write() { cat >"secrets/$1"; chmod 644 "secrets/$1"; }

secret() { head -c32 /dev/urandom | base64 | write "$1"; }

secrets() {
    mkdir -p secrets && chmod 700 secrets
    [ -f secrets/shared-secret ] || secret shared-secret
    [ -f secrets/cookie-secret ] || secret cookie-secret
    [ -f secrets/identity-provider ] || printf only-for-the-demo | write identity-provider
    if [ ! -f secrets/postgres-password ]; then
        # Postgres takes a password when it makes its files, and never again.
        if docker volume inspect "${project}_records" >/dev/null 2>&1; then
            echo "secrets/postgres-password is missing, and the volume ${project}_records was made with it: put the file back, or remove the records as well with 'run.sh down --volumes'" >&2
            exit 1
        fi
        password=$(head -c24 /dev/urandom | base64 | tr '+/' '-_')
        printf %s "$password" | write postgres-password
        printf 'postgres://postern:%s@postgres/postern?sslmode=disable' "$password" | write postgres-url
    fi
    # Certificates come from the image: no openssl is needed. Your own for browsers go to
    # secrets/tls.crt and secrets/tls.key; then only those for the services are made.
    if [ ! -f secrets/internal-ca.crt ]; then
        mkdir -p secrets/made && chmod 777 secrets/made
        names=(authorize authenticate databroker)
        [ -f secrets/tls.crt ] || names+=('*.localhost.pomerium.io' httpbin.org)
        docker run --rm --volume "$PWD/secrets/made:/made" --user "$(id -u):$(id -g)" "$registry/postern:$tag" \
            demo certificates /made "${names[@]}"
        write internal-ca.crt <secrets/made/ca.pem
        write internal-tls.crt <secrets/made/certificate.pem
        write internal-tls.key <secrets/made/certificate-key.pem
        [ -f secrets/tls.crt ] || { write tls.crt <secrets/made/certificate.pem; write tls.key <secrets/made/certificate-key.pem; }
        rm -r secrets/made
    fi
}

containers() { compose ps --quiet "$1"; }

# wait_healthy SERVICE: all its containers, within two minutes.
wait_healthy() {
    local deadline=$((SECONDS + 120)) id
    for id in $(containers "$1"); do
        until [ "$(docker inspect --format '{{.State.Health.Status}}' "$id")" = healthy ]; do
            if [ "$SECONDS" -ge "$deadline" ]; then
                echo "$1 does not become healthy; it says:" >&2
                docker logs --tail 20 "$id" >&2
                exit 1
            fi
            sleep 0.5
        done
    done
}

# New containers beside the old ones; when they are healthy, the old ones drain and go.
upgrade() {
    local service old number
    for service in "${services[@]}"; do
        mapfile -t old < <(containers "$service")
        number=${#old[@]}
        compose up --detach --no-deps --no-recreate --scale "$service=$((2 * number))" "$service"
        wait_healthy "$service"
        docker stop --time 60 "${old[@]}" >/dev/null
        docker rm "${old[@]}" >/dev/null
        echo "$service: $number replaced"
    done
}

case "${1:-up}" in
up)
    shift || true
    secrets
    compose up --detach --remove-orphans "$@"
    for service in postgres "${services[@]}"; do wait_healthy "$service"; done
    compose ps
    if [ "${DEMO:-yes}" != no ]; then
        echo "Open https://httpbin.localhost.pomerium.io (names below localhost.pomerium.io resolve to 127.0.0.1)"
    fi
    ;;
upgrade) upgrade ;;
doctor)
    proxy=$(containers proxy | sed -n 1p)
    docker run --rm --network "${project}_services" --volumes-from "$proxy" --env SERVICES=proxy \
        --env-file <(docker inspect --format '{{range .Config.Env}}{{println .}}{{end}}' "$proxy") \
        "$registry/postern:$tag" doctor /etc/postern/config.yaml
    ;;
down)
    shift
    compose down --remove-orphans "$@"
    ;;
*)
    echo "usage: run.sh up [--scale SERVICE=N]… | upgrade | doctor | down [--volumes]" >&2
    exit 2
    ;;
esac
