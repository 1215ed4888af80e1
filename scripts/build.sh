#!/usr/bin/env bash
# The programs that are shipped, in target/TARGET/release: static, without the paths of this machine, and
# laid out for the load that scripts/profile.sh has seen, where it was run with the same compiler.
#   build.sh [TARGET]   for this machine, unless said otherwise
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
directory=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
profile=$directory/profile/$target-$(rustc -vV | sed -n 's/^release: //p').profdata
# With an explicit target the flags are for the programs alone, not for build scripts and macros. Packed
# relocations take a fortieth of their room.
flags="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs --remap-path-prefix=$PWD=/postern --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
if [ -f "$profile" ]; then
    # What was changed since the profile was taken is built as if there were none. What hardly runs is
    # made small.
    flags+=" -Cprofile-use=$profile -Cllvm-args=-no-pgo-warn-mismatch"
    flags+=" -Cllvm-args=-pgso-lwss-only=false -Cllvm-args=-inline-cold-callsite-threshold=0"
else
    echo "no profile for this compiler and $target: requests take about an eighth more CPU. 'just profile' makes one." >&2
fi
RUSTFLAGS="$flags" cargo build --locked --release --bins --workspace --target "$target"
