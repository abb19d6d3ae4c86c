#!/bin/sh
# Fuzzes the runner's parsers with libFuzzer:  run.sh SECONDS [plan|npy|sums ...]
# SECONDS is for each of them. Needs clang. A finding leaves its input beside the corpus and ends with a non-zero status.
set -eu
seconds=${1:?usage: run.sh SECONDS [plan|npy|sums ...]}
shift
[ $# -gt 0 ] || set -- plan npy sums
here=$(cd "$(dirname "$0")" && pwd)
work=${STRUCTADMM_FUZZ_DIR:-${TMPDIR:-/tmp}/structadmm-fuzz}
flags="-std=c11 -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all"
parsers="$here/../plan.c $here/../plan_line.c $here/../npy.c $here/../dtype.c $here/../sums.c $here/../status.c $here/../platform.c"
for name; do
    mkdir -p "$work/$name"
    clang $flags $parsers "$here/${name}_fuzzer.c" -ldl -o "$work/${name}_fuzzer"
    cp "$here/seeds/$name"/* "$work/$name/"
    "$work/${name}_fuzzer" -max_total_time="$seconds" -max_len=16384 -print_final_stats=1 -dict="$here/$name.dict" \
        -artifact_prefix="$work/$name-finding-" "$work/$name"
done
