#!/usr/bin/env bash
# For machines that reach no registry: images of HAProxy and Postgres from this machine's Debian
# packages, each program with its libraries and nothing else. Says what to export.
set -euo pipefail
context=$(mktemp -d)
trap 'rm -r "$context"' EXIT

need() { command -v "$1" >/dev/null || compgen -G "$1" >/dev/null || { echo "$1 is missing: apt-get install $2" >&2; exit 1; }; }
need haproxy haproxy
need '/usr/lib/postgresql/*/bin/initdb' postgresql
need busybox busybox-static

# with_libraries ROOT FILE…: copies files with the libraries that they load.
with_libraries() {
    local root=$1 file
    shift
    for file in "$@"; do
        mkdir -p "$root$(dirname "$file")"
        cp -L "$file" "$root$file"
        (ldd "$file" 2>/dev/null || true) | { grep -o '/[^ ]*' || true; } | sort -u | while read -r library; do
            mkdir -p "$root$(dirname "$library")"
            cp -Lu "$library" "$root$library"
        done
    done
}

image() {
    docker build --quiet --tag "$1" "$2" >/dev/null
    echo "$1"
}

root=$context/haproxy/root
with_libraries "$root" /usr/sbin/haproxy
cat >"$context/haproxy/Dockerfile" <<'DOCKERFILE'
FROM scratch
COPY root /
USER 99:99
ENTRYPOINT ["/usr/sbin/haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
DOCKERFILE
image postern-local/haproxy "$context/haproxy"

home=$(dirname "$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -1)")")
version=$(basename "$home")
root=$context/postgres/root
with_libraries "$root" "$home"/bin/{initdb,postgres,psql,pg_dump,pg_restore,pg_isready,pg_ctl} "$home"/lib/*.so
# Compiling queries at run time takes all of LLVM; without it Postgres interprets them.
rm -f "$root$home"/lib/llvmjit.so "$root"/lib/*/libLLVM* "$root"/usr/lib/*/libLLVM*
with_libraries "$root" "$(command -v busybox)"
mkdir -p "$root/usr/share/postgresql" "$root"/{bin,etc,tmp,var/run/postgresql} "$root/var/lib/postgresql/data"
cp -a "/usr/share/postgresql/$version" "$root/usr/share/postgresql/"
cp -a /usr/share/zoneinfo "$root/usr/share/"
for program in sh cat rm ls mkdir; do ln -s "$(command -v busybox)" "$root/bin/$program"; done
echo 'postgres:x:999:999::/var/lib/postgresql:/bin/sh' >"$root/etc/passwd"
# What the official image's entry point does, as far as this deployment uses it.
cat >"$root/entrypoint.sh" <<'ENTRYPOINT'
#!/bin/sh
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-host=scram-sha-256 --auth-local=trust --encoding=UTF8 --locale=C
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single postgres
fi
exec postgres -c listen_addresses='*'
ENTRYPOINT
chmod 755 "$root/entrypoint.sh"
chmod 1777 "$root/tmp" "$root/var/run/postgresql"
cat >"$context/postgres/Dockerfile" <<DOCKERFILE
FROM scratch
COPY root /
COPY --chown=999:999 root/var/lib/postgresql /var/lib/postgresql
USER 999:999
ENV PATH=$home/bin:/bin PGDATA=/var/lib/postgresql/data
# The official image's way to stop: connections are ended, nothing is lost.
STOPSIGNAL SIGINT
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["/entrypoint.sh"]
DOCKERFILE
image postern-local/postgres "$context/postgres"

echo "export HAPROXY_IMAGE=postern-local/haproxy POSTGRES_IMAGE=postern-local/postgres"
