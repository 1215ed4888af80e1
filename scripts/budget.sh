#!/usr/bin/env bash
# Counts the instructions of what every request costs, and compares them with bench/budget.tsv. Unlike
# times they hardly differ from run to run and from machine to machine, so what creeps is seen.
# `--update` writes what was counted.
set -euo pipefail
cd "$(dirname "$0")/.."
budget=bench/budget.tsv
tolerance=10 # percent
rounds=2000

if ! command -v valgrind >/dev/null; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends valgrind >/dev/null
    else
        echo "this needs valgrind" >&2
        exit 1
    fi
fi

build=(cargo bench --workspace --bench request --bench decide --bench forward --no-run)
"${build[@]}"
# Once more, to be told where they are.
declare -A program
while read -r name path; do
    program[$name]=$path
done < <("${build[@]}" 2>&1 | sed -n 's|.*Executable benches/\(.*\)\.rs (\(.*\))$|\1 \2|p')

# Instructions of a whole run of one benchmark, with so many rounds of it.
count() { # PROGRAM BENCHMARK ROUNDS
    valgrind --tool=cachegrind --cache-sim=no --branch-sim=no --cachegrind-out-file=/dev/null \
        "${program[$1]}" --bench --exact "$1::$2" --sample-count 1 --sample-size "$3" 2>&1 >/dev/null |
        sed -n 's/.*I *refs: *//p' | tr -d ,
}

worse=0
counted=$(mktemp)
printf '# instructions of one round, release build; written by scripts/budget.sh --update\n' >"$counted"
while read -r name benchmark allowed; do
    case $name in '#' | '') continue ;; esac
    # What start and preparation cost is in both.
    once=$(count "$name" "$benchmark" "$rounds")
    twice=$(count "$name" "$benchmark" $((2 * rounds)))
    found=$(((twice - once) / rounds))
    printf '%s\t%s\t%s\n' "$name" "$benchmark" "$found" >>"$counted"
    change=$(((found - allowed) * 100 / (allowed > 0 ? allowed : 1)))
    verdict=
    if [ "$change" -gt "$tolerance" ]; then
        verdict='  OVER BUDGET'
        worse=1
    elif [ "$change" -lt "-$tolerance" ]; then
        verdict='  below: just budget --update keeps it so'
    fi
    printf '%-28s %10d, budget %10d, %+d %%%s\n' "$benchmark" "$found" "$allowed" "$change" "$verdict"
done <"$budget"
if [ "${1:-}" = --update ]; then
    cat "$counted" >"$budget"
    worse=0
fi
rm -f "$counted"
exit "$worse"
