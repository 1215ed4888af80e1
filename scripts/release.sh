#!/usr/bin/env bash
# Everything that a release consists of, into dist/: a tarball, a Debian package and an SBOM for this
# machine's architecture and, where its target and linker are installed, arm64; the Helm chart and checksums.
# The same commit, toolchain and profile give the same files; the profile is one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
POSTERN_REVISION=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export POSTERN_REVISION SOURCE_DATE_EPOCH
programs=(postern postern-proxy postern-authorize postern-authenticate postern-databroker)
target_directory=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
rm -rf dist && mkdir dist
left_out=()

have() { command -v "$1" >/dev/null; }

# tarball TARGET ARCHITECTURE
tarball() {
    local name=postern-$version-linux-$2 root program
    root=$(mktemp -d)
    mkdir -p "$root/$name/systemd"
    for program in "${programs[@]}"; do cp "$target_directory/$1/release/$program" "$root/$name/"; done
    cp LICENSE README.md CHANGELOG.md "$root/$name/"
    cp -r docs "$root/$name/docs"
    cp -r deploy/systemd/*.service deploy/systemd/*.socket deploy/systemd/*.conf deploy/systemd/two-hosts "$root/$name/systemd/"
    tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw \
        --directory "$root" --create "$name" | gzip --no-name --best >"dist/$name.tar.gz"
    rm -r "$root"
}

# release TARGET ARCHITECTURE DEBIAN-ARCHITECTURE
release() {
    scripts/build.sh "$1"
    tarball "$1" "$2"
    scripts/sbom.py "$1" "${programs[@]}" >"dist/postern-$version-linux-$2.cdx.json"
    if have dpkg-deb; then scripts/deb.sh "$target_directory/$1/release" "$3" dist >/dev/null
    else left_out+=("the Debian package for $3: needs dpkg-deb"); fi
}

host=$(rustc -vV | sed -n 's/^host: //p')
case "${host%%-*}" in x86_64) debian=amd64 ;; aarch64) debian=arm64 ;; *) debian=${host%%-*} ;; esac
release "$host" "${host%%-*}" "$debian"
arm=aarch64-unknown-linux-gnu
if [ "$host" != "$arm" ]; then
    if have aarch64-linux-gnu-gcc && [ -d "$(rustc --print sysroot)/lib/rustlib/$arm" ]; then
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
        release "$arm" aarch64 arm64
    else
        left_out+=("linux/arm64: needs 'rustup target add $arm' and Debian's gcc-aarch64-linux-gnu")
    fi
fi

helm=$(command -v helm || echo .tools/bin/helm)
if have "$helm"; then
    # Helm packs the times of the files, which are those of the checkout.
    chart=$(mktemp -d)
    cp -r deploy/helm/postern "$chart"
    find "$chart" -exec touch --date="@$SOURCE_DATE_EPOCH" {} +
    "$helm" package --destination dist "$chart/postern" >/dev/null
    rm -r "$chart"
else left_out+=("the Helm chart: needs helm"); fi

if compgen -G "$target_directory/profile/*.profdata" >/dev/null; then cp "$target_directory"/profile/*.profdata dist/
else left_out+=("what was learnt under load: 'just profile' first"); fi

(cd dist && sha256sum -- * >SHA256SUMS && cat SHA256SUMS)
if [ "${#left_out[@]}" -gt 0 ]; then
    echo
    echo "!! LEFT OUT:"
    printf '%s\n' "${left_out[@]}"
    [ -z "${CI:-}" ] || exit 1
fi
