#!/usr/bin/env bash
# Removes what was built. A stack that still runs keeps its files mounted, so it is looked for first.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
if grep -qs " $target/" /proc/self/mountinfo; then
    echo "a stack still runs in $target: stop it first" >&2
    exit 1
fi
as_root=()
# The system tests' data belongs to root.
if [ "$(id -u)" -ne 0 ] && [ -e "$target/test-data" ]; then as_root=(sudo); fi
"${as_root[@]}" rm -rf "$target" tests/conformance/js/node_modules
