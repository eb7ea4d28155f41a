#!/usr/bin/env bash
# Runs the fuzz targets of envd, each for SECONDS_EACH (60): `fuzz.sh [TARGET...]`.
#
# A target is a module of crates/envd/tests/fuzz. It is run again and again with new cases until its
# time is up. An input that fails is kept in the corpus beside the module: commit it with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
budget=${SECONDS_EACH:-60}
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(framing multipart signature paths)

# Cases in one run: as many as take some seconds.
declare -A cases=([framing]=1000 [multipart]=1000 [signature]=10000 [paths]=50000)

cargo test --locked --package atoll-envd --test fuzz --no-run
failed=()
for target in "${targets[@]}"; do
    end=$((SECONDS + budget)) runs=0 count=${cases[$target]:-1000}
    while [ $SECONDS -lt $end ]; do
        if ! PROPTEST_CASES=$count cargo test --locked --quiet --package atoll-envd --test fuzz -- "$target::"; then
            failed+=("$target")
            break
        fi
        runs=$((runs + 1))
    done
    printf '=== %s: %d runs of %d cases\n' "$target" "$runs" "$count"
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[*]}"
    exit 1
fi
