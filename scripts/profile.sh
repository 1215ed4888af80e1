#!/usr/bin/env bash
# Takes the profile that scripts/build.sh uses: builds Postern so that it counts what it does, puts it
# under load in one process and in four (bench/src/train.rs), and keeps the counts. A quarter of an hour.
# Needs llvm-profdata of the compiler's LLVM: `rustup component add llvm-tools`, or Debian's llvm-NN.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
directory=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/profile
profile=$directory/$target-$(rustc -vV | sed -n 's/^release: //p').profdata

merge=
for found in "$(rustc --print sysroot)/lib/rustlib/$target/bin/llvm-profdata" "/usr/lib/llvm-$llvm/bin/llvm-profdata"; do
    if [ -x "$found" ]; then merge=$found; fi
done
[ -n "$merge" ] || { echo "llvm-profdata $llvm is missing: rustup component add llvm-tools, or apt-get install llvm-$llvm" >&2; exit 1; }

rm -rf "$directory/counts"
RUSTFLAGS="-C target-feature=+crt-static -Cprofile-generate=$directory/counts" \
    cargo build --locked --release --workspace --bin postern --target "$target" --target-dir "$directory"
cargo build --locked --workspace --bin postern-bench --target "$target"

programs=$directory/$target/release
# Told which service it is, the all-in-one program is that service: one program that counts is enough.
for service in proxy authorize authenticate databroker; do ln -sf postern "$programs/postern-$service"; done
cp "$directory/../$target/debug/postern-bench" "$programs/"
"$programs/postern-bench" train >"$directory/train.log" 2>&1 || { tail -20 "$directory/train.log" >&2; exit 1; }
"$merge" merge --output "$profile" "$directory"/counts/*.profraw
echo "$profile"
