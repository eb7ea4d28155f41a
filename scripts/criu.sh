#!/usr/bin/env bash
# Unpacks the CRIU of Debian's testing suite, with the libraries and programs that it needs, in
# target/criu: that of stable is too old for newer kernels. Nothing is installed. What is
# there is kept.
#
#   ATOLL_CRIU=$(scripts/criu.sh) cargo test -p atoll-isolation
set -euo pipefail
cd "$(dirname "$0")/.."
root=${CARGO_TARGET_DIR:-$PWD/target}/criu
if [ -x "$root/usr/sbin/criu" ]; then
    echo "$root"
    exit
fi
command -v apt-get >/dev/null || { echo "CRIU is fetched with apt, which is not here" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,archives/partial,parts}
: >"$work/status"

# The mirror, and the key, that this host installs from.
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
format='$(REPO_URI)|$(RELEASE)|$(SIGNED_BY)'
source=$(apt-get indextargets --format "$format" 'Created-By: Packages' 'Component: main' |
    grep -F "|$codename|" | head -n 1)
[ -n "$source" ] || { echo "no package source for $codename in apt's configuration" >&2; exit 1; }
IFS='|' read -r uri _ key <<<"$source"
# A field without a value is printed as it was asked for.
case $key in
    /*) echo "deb [signed-by=$key] $uri testing main" ;;
    *) echo "deb $uri testing main" ;;
esac >"$work/sources.list"

# A mirror's copy of testing may be a few days behind.
options=(-qq -o Dir::State="$work" -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status"
    -o Dir::Cache="$work" -o Dir::Cache::Archives="$work/archives"
    -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts="$work/parts"
    -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Debug::NoLocking=true
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false)
apt-get "${options[@]}" update >&2
apt-get "${options[@]}" install -y --download-only criu tar gzip >&2
mkdir "$work/tree"
# Programs and libraries run as a sandbox's user: everybody may read them.
umask 022
for package in "$work"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work/tree" --no-same-owner
done
for name in bin sbin lib lib64; do
    [ -e "$work/tree/$name" ] || ln -s "usr/$name" "$work/tree/$name"
done
chmod 755 "$work/tree"
rm -rf "$root" "$work"/tree/usr/share/{doc,man,locale,info}
mkdir -p "$(dirname "$root")"
mv "$work/tree" "$root"
echo "$root"
