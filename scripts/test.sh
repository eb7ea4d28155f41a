#!/usr/bin/env bash
# Runs suites and says at the end how each went: `test.sh [lint] [unit] [system] [chaos]`.
#
# All of them run, whatever the others did; the status is 0 only if none failed. Everything is built
# in the dev profile, once: the tests of the crates and the stack of the system tests share it.
set -uo pipefail
cd "$(dirname "$0")/.."
env=target/test-env
logs=target/test-logs
mkdir -p "$logs"
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo --preserve-env=CARGO_TARGET_DIR)
closing=()
failed=()

# step NAME COMMAND...: runs a command, shows and keeps its output, and notes whether it failed.
step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    if ! "$@" 2>&1 | tee "$logs/$name.log"; then
        failed+=("$name (see $logs/$name.log)")
    fi
    printf '=== %s took %d s\n' "$name" $((SECONDS - started))
}

# closes NAME PATTERN: keeps the lines with which a test runner closed.
closes() {
    local line
    while IFS= read -r line; do
        closing+=("$1: $line")
    done < <(grep -E "$2" "$logs/$1.log" | sed 's/\x1b\[[0-9;]*m//g')
}

# One set of packages and features for all suites, so that cargo builds nothing twice.
build() {
    step build cargo build --locked --workspace --all-targets
}

lint() {
    step test-env scripts/test-env.sh lint
    step fmt cargo fmt --all --check
    step clippy cargo clippy --locked --workspace --all-targets -- -D warnings
    step deny "$env/tools/bin/cargo-deny" --locked --log-level error check licenses bans sources
    step ruff "$env/tools/bin/ruff" check tests crates/interpreter/python
    step ruff-format "$env/tools/bin/ruff" format --check tests crates/interpreter/python
}

unit() {
    step deps scripts/deps.sh --tests
    # The interpreter's tests drive the Python and the Node in it.
    step test-env scripts/test-env.sh
    build
    # Some crates test what only root may do: the test binaries run as root, cargo as you.
    local runner=()
    if [ ${#as_root[@]} -gt 0 ]; then
        local host
        host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
        runner=(env "CARGO_TARGET_${host}_RUNNER=sudo --preserve-env")
    fi
    # Tests of checkpoints say so and pass without it.
    ATOLL_CRIU=$(scripts/criu.sh) || echo "no CRIU: checkpoints are not tested"
    export ATOLL_CRIU
    step cargo-test "${runner[@]}" cargo test --locked --workspace --no-fail-fast --quiet
    # The same random histories must find a bug that is there.
    step planted-bug cargo test --locked --quiet -p atoll-core --features planted-bug --test lifecycle
    # One line a test binary; those without a test would hide the others.
    closes cargo-test '^test result: .* ([1-9][0-9]* passed|[1-9][0-9]* failed)'
}

# suite NAME VENV PATH...: runs a pytest suite against a real stack.
suite() {
    local name=$1 python=$PWD/$env/$2/bin/python
    shift 2
    step "$name" "${as_root[@]}" env -C tests "PATH=$PATH" PYTHONDONTWRITEBYTECODE=1 \
        "$python" -m pytest --color=no "$@"
    closes "$name" '^=+ .*(passed|failed|error).* in .*=+$'
}

# find_criu: prints where CRIU is, if it can be had.
find_criu() {
    scripts/criu.sh || echo "no CRIU: checkpoints are not tested" >&2
}

# kill_often NAME CRIU OPTION...: kills Atoll again and again under load, with CRIU or without.
kill_often() {
    local name=$1 criu=$2 python=$PWD/$env/newest/bin/python
    shift 2
    step "$name" "${as_root[@]}" env -u ATOLL_CRIU -C tests ${criu:+"ATOLL_CRIU=$criu"} \
        PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 "$python" -m chaos "$@"
    closes "$name" '^chaos: '
}

system() {
    step deps-tests scripts/deps.sh --tests
    step test-env scripts/test-env.sh
    build
    suite python-newest newest conformance
    suite python-oldest oldest conformance
    local js=$PWD/tests/conformance/js
    step js "${as_root[@]}" env -C tests "PATH=$PWD/$env/node-bin:$PATH" PYTHONDONTWRITEBYTECODE=1 \
        "$PWD/$env/newest/bin/python" -m support.stack \
        node "$js/node_modules/vitest/vitest.mjs" run --root "$js" --no-color
    closes js '^ *(Test Files|Tests) '
    suite security newest security
    suite network newest network
    suite stress newest stress
    # One seed: if it fails, a change is to blame. `chaos` takes another each time.
    kill_often chaos-short "$(find_criu)" --kills 10 --seed 1
}

# The long form, with SEED and KILLS from the environment.
chaos() {
    step deps-tests scripts/deps.sh --tests
    step test-env scripts/test-env.sh
    build
    local criu options=(--kills "${KILLS:-200}")
    [ -z "${SEED:-}" ] || options+=(--seed "$SEED")
    kill_often chaos-frozen "" "${options[@]}"
    criu=$(find_criu)
    [ -z "$criu" ] || kill_often chaos-checkpoints "$criu" "${options[@]}"
}

for part in "$@"; do
    "$part"
done

printf '\n=== closing lines\n'
[ ${#closing[@]} -eq 0 ] || printf '%s\n' "${closing[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    printf '\nFAILED: %s\n' "${failed[@]}"
    exit 1
fi
printf '\nall of these passed: %s\n' "$*"
