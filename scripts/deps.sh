#!/usr/bin/env bash
# Installs what Atoll needs from the operating system, if it is not there: `deps.sh [--tests|--bench]`.
# On Debian and Ubuntu with apt-get; elsewhere it names the packages and stops.
set -euo pipefail

# command:package, Debian's names
needed=(nft:nftables mkfs.btrfs:btrfs-progs ip:iproute2 mmdebstrap:mmdebstrap losetup:mount)
[ "${1:-}" != --tests ] ||
    needed+=(nsenter:util-linux openssl:openssl setpriv:util-linux skopeo:skopeo umoci:umoci zstd:zstd)

# Not every user has the system's directories in the path.
PATH=$PATH:/usr/sbin:/sbin
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)

# unpack PACKAGE DIRECTORY: its files only. Installing these packages would start a server, and leave
# it there.
unpack() {
    local scratch status=0
    local download=(apt-get -qq -o APT::Sandbox::User=root download "$1")
    scratch=$(mktemp -d)
    (cd "$scratch" && { "${download[@]}" || { "${as_root[@]}" apt-get -qq update && "${download[@]}"; }; }) &&
        mkdir -p "$2" && dpkg-deb --extract "$scratch/$1"_*.deb "$2" || status=$?
    rm -rf "$scratch"
    return "$status"
}

tools=${CARGO_TARGET_DIR:-target}/bench-tools
if [ "${1:-}" = --bench ] && [ ! -x "$tools/usr/sbin/nginx" ] && ! command -v nginx >/dev/null; then
    # Everything else can be measured without.
    unpack nginx "$tools" && "$tools/usr/sbin/nginx" -v 2>/dev/null ||
        echo "nginx is not to be had: there will be no comparison with it." >&2
fi
tools=${CARGO_TARGET_DIR:-target}/test-tools
if [ "${1:-}" = --tests ] && [ ! -x "$tools/usr/bin/docker-registry" ] && ! command -v docker-registry >/dev/null; then
    unpack docker-registry "$tools"
fi

missing=()
for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
# Debian splits venv from Python; a virtual environment without pip is of no use.
if [ "${1:-}" = --tests ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=(python3 python3-venv)
fi
# mmdebstrap checks signatures with it; Ubuntu does not have it by default.
if [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then
    missing+=(debian-archive-keyring)
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "ATL-1007: not installed: ${missing[*]} (Debian's package names)." \
         "Install them with this system's package manager, then run make again." >&2
    exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
