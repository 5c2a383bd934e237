#!/bin/sh
# Makes what must be secret, once: a second run finds it and changes nothing. Runs as root in a container without
# network, since it hands files to the users of the other services.
set -eu
umask 077

# Under these names the services reach each other; EDGELOOP_PUBLIC_NAME is what devices and people call this server.
edgeloop keys init /keys \
    --server-name control --server-name "$EDGELOOP_PUBLIC_NAME" \
    --broker-name mosquitto --broker-name "$EDGELOOP_PUBLIC_NAME"

# What signs releases; the root's keys go where no running service sees them.
[ -e /state/tuf/metadata/1.root.json ] || edgeloop keys tuf-init --state-dir /state --root-keys /keys/ca/tuf-root
chown 10001:10001 /state
chown -R 10001:10001 /state/tuf

once() { # once FILE: standard input becomes FILE, whole or not at all, unless it is there
    [ -s "$1" ] && return 0
    cat >"$1.tmp"
    mv "$1.tmp" "$1"
}
random() { python3 -c 'import secrets; print(secrets.token_hex(32), end="")'; }

random | once /secrets/database/password
printf 'postgres:5432:edgeloop:edgeloop:%s\n' "$(cat /secrets/database/password)" | once /secrets/control/pgpass
random | once /secrets/ray/token

# The database server reads its password under a user that differs between images.
chmod 0755 /secrets/database && chmod 0444 /secrets/database/password
chown -R 10001:10001 /secrets/control /secrets/ray /keys/control /keys/crl /keys/operator
chown -R 1883:1883 /keys/broker
chmod 0755 /keys/crl
install -d -o 10001 -g 10001 -m 0755 /agents
