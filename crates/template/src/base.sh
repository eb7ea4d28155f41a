#!/bin/sh
# Makes the tree of the `base` template: a Debian with what agents and people reach for.
#
# Runs on the host as root, in mount, PID, UTS and IPC namespaces of its own, so that nothing it
# mounts or starts outlives it. mmdebstrap prepares the tree; provision.sh does the rest inside it.
#
# $1  directory for the tree, which is there and empty
# $2  directory with the inputs: provision.sh, apt.conf, and what Atoll passes on from the host
#     for the build only (see host.rs)
set -eu

tree=$1
inputs=$2
suite=bookworm
# The hooks read it: a path has no place in their text.
export ATOLL_INPUTS="$inputs"

# Left out, though E2B's images have them, since a container has no use for them: systemd and
# systemd-sysv (envd is the first process), chrony (the clock is the host's), openssh-server,
# iptables, nftables and nfs-common (a sandbox may neither filter its network nor mount).
packages="
    ca-certificates curl wget git openssh-client socat netbase iproute2 iputils-ping
    sudo procps psmisc less nano vim-tiny xxd file jq unzip zip xz-utils bzip2 tzdata
    build-essential pkg-config python3 python3-dev python3-pip python3-venv python-is-python3
    fuse3 libcap2-bin
"
# shellcheck disable=SC2086 # a list of words
include=$(echo $packages | tr ' ' ',')

# - Manual pages and most documentation are left out, now and in later installations; licences stay.
# - pip may install into the system's Python: the marker that forbids it is never unpacked. There is
#   no other system in a sandbox that this could harm.
mmdebstrap \
    --mode=root --variant=minbase --format=directory --verbose \
    --aptopt="$inputs/apt.conf" \
    --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/lib/python3*/EXTERNALLY-MANAGED' \
    --include="$include" \
    --customize-hook='mkdir "$1/atoll-build" && cp -a "$ATOLL_INPUTS/." "$1/atoll-build/"' \
    --customize-hook='chroot "$1" /bin/sh /atoll-build/provision.sh' \
    --customize-hook='rm -r "$1/atoll-build"' \
    "$suite" "$tree"

# Last, for mmdebstrap and its hooks need the host's resolver and devices: what a sandbox finds. Its
# /dev comes from the driver.
find "$tree/dev" "$tree/run" "$tree/tmp" -xdev -mindepth 1 -delete
rm -f "$tree/etc/resolv.conf" "$tree/etc/hostname" "$tree/etc/apt/apt.conf.d/99mmdebstrap"
echo 'nameserver 169.254.0.22' > "$tree/etc/resolv.conf"
echo sandbox > "$tree/etc/hostname"
cat > "$tree/etc/hosts" <<'HOSTS'
127.0.0.1 localhost sandbox
::1 localhost ip6-localhost ip6-loopback
HOSTS
: > "$tree/etc/machine-id"
