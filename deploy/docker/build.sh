#!/usr/bin/env bash
# Builds static binaries and the five images postern/postern[-SERVICE]:latest from them.
# Needs a Docker engine, no registry.
#   build.sh          what is shipped: builds them first
#   build.sh FOLDER   of the static binaries in FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."

images=(postern-proxy postern-authorize postern-authenticate postern-databroker postern)
host=$(rustc -vV | sed -n 's/^host: //p')
roots=${CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}
[ -r "$roots" ] || { echo "no CA roots at $roots: install ca-certificates, or set CA_CERTIFICATES" >&2; exit 1; }

target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
binaries=${1:-$target/$host/release}
if [ $# = 0 ]; then
    # With an explicit target the flags are for the binaries alone, not for build scripts and macros.
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --bins --workspace --target "$host"
fi

context=$target/images
rm -rf "$context" && mkdir -p "$context"
for image in "${images[@]}"; do cp "$binaries/$image" "$context/"; done
cp "$roots" "$context/ca-certificates.crt"
echo "postern:x:65532:65532::/:/postern" >"$context/passwd"

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
home=https://github.com/postern-proxy/postern

for image in "${images[@]}"; do
    docker build --quiet --file deploy/docker/Dockerfile --target "$image" \
        --label org.opencontainers.image.title="$image" \
        --label org.opencontainers.image.description="Identity-aware access proxy, compatible with Pomerium Core" \
        --label org.opencontainers.image.version="$version" \
        --label org.opencontainers.image.revision="$revision" \
        --label org.opencontainers.image.source="$home" \
        --label org.opencontainers.image.documentation="$home/tree/main/docs" \
        --label org.opencontainers.image.licenses=Apache-2.0 \
        --tag "postern/$image:latest" "$context" >/dev/null
    docker image inspect --format "{{index .RepoTags 0}}  {{.Size}} bytes" "postern/$image:latest"
done
