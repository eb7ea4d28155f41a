#!/usr/bin/env bash
# Starts a stack of its own, measures it with `atoll bench`, and ends it. Arguments go to that.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/deps.sh --bench
target=$(realpath "${CARGO_TARGET_DIR:-target}")
atoll=$target/release/atoll
data=$target/bench-data
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
ports=(--api-port 23100 --front-port 23543 --proxy-port 23102 --proxy-health-port 23103 --rpc-port 25108 --node-proxy-port 25107)

# Without CRIU, pauses keep memory frozen, and that is what is measured.
criu=()
if tree=$(scripts/criu.sh); then criu=(--criu "$tree"); fi

"${as_root[@]}" "$atoll" up --with code-interpreter "${criu[@]}" --data-dir "$data" --ca-bundle host "${ports[@]}" >"$target/bench-stack.log" 2>&1 &
stack=$!
trap 'kill -TERM "$stack" 2>/dev/null; wait "$stack" || true' EXIT
# Its settings are there exactly while it is ready.
until [ -e "$data/env" ]; do
    kill -0 "$stack" 2>/dev/null || { cat "$target/bench-stack.log" >&2; exit 1; }
    sleep 0.2
done
# shellcheck disable=SC1091
source "$data/env"
# Temporary files are on the disk that the stack's are on. Root sees the memory of sandboxes.
export TMPDIR=$target PATH=$target/bench-tools/usr/sbin:$PATH:/usr/sbin:/sbin
[ "$(id -u)" -eq 0 ] || as_root=(sudo --preserve-env=E2B_API_KEY,E2B_API_URL,E2B_SANDBOX_URL,TMPDIR)
"${as_root[@]}" env "PATH=$PATH" "$atoll" bench --save "$target/bench.json" \
    --data-dir "$data" --node-proxy 127.0.0.1:25107 --node-token-file "$data/node-token" "$@"
echo "written: $target/bench.json"
