#!/usr/bin/env bash
# Builds static binaries and the five images postern/postern[-SERVICE] from them, tagged latest and, for
# another architecture than this machine's, latest-ARCHITECTURE. Needs a Docker engine, no registry.
#   build.sh                        what is shipped: builds the programs first, and those for arm64 too
#                                   where Rust's target and a linker are installed
#   build.sh FOLDER [ARCHITECTURE]  of the static binaries in FOLDER, for this machine or for arm64
set -euo pipefail
cd "$(dirname "$0")/../.."

images=(postern-proxy postern-authorize postern-authenticate postern-databroker postern)
roots=${CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}
[ -r "$roots" ] || { echo "no CA roots at $roots: install ca-certificates, or set CA_CERTIFICATES" >&2; exit 1; }

target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
home=https://github.com/postern-proxy/postern

# images FOLDER [ARCHITECTURE]
images() {
    # The cache of Docker's old builder does not tell architectures apart.
    local context=$target/images image tag=latest platform=()
    if [ -n "${2:-}" ]; then tag=latest-$2 platform=(--no-cache --platform "linux/$2"); fi
    rm -rf "$context" && mkdir -p "$context"
    for image in "${images[@]}"; do cp "$1/$image" "$context/"; done
    cp "$roots" "$context/ca-certificates.crt"
    echo "postern:x:65532:65532::/:/postern" >"$context/passwd"
    for image in "${images[@]}"; do
        docker build --quiet "${platform[@]}" --file deploy/docker/Dockerfile --target "$image" \
            --label org.opencontainers.image.title="$image" \
            --label org.opencontainers.image.description="Identity-aware access proxy, compatible with Pomerium Core" \
            --label org.opencontainers.image.version="$version" \
            --label org.opencontainers.image.revision="$revision" \
            --label org.opencontainers.image.source="$home" \
            --label org.opencontainers.image.documentation="$home/tree/main/docs" \
            --label org.opencontainers.image.licenses=Apache-2.0 \
            --tag "postern/$image:$tag" "$context" >/dev/null
        docker image inspect --format "{{index .RepoTags 0}}  {{.Size}} bytes" "postern/$image:$tag"
    done
}

if [ $# -gt 0 ]; then
    images "$@"
    exit
fi
host=$(rustc -vV | sed -n 's/^host: //p')
scripts/build.sh
images "$target/$host/release"
arm=aarch64-unknown-linux-gnu
if [ "$host" != "$arm" ] && command -v aarch64-linux-gnu-gcc >/dev/null && [ -d "$(rustc --print sysroot)/lib/rustlib/$arm" ]; then
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    scripts/build.sh "$arm"
    images "$target/$arm/release" arm64
fi
