#!/bin/sh
# Runs Mosquitto, and has it read the revocation list again whenever the control plane wrote a new one.
#
#   run.sh [CONFIG [LIST]]
#
# Mosquitto reads its list at the start and at SIGHUP alone. Connections that exist survive both: the control
# plane ends those of revoked devices itself.
set -eu

config=${1:-/mosquitto/config/mosquitto.conf}
list=${2:-/mosquitto/crl/devices.crl}
version() { cksum "$list" 2>/dev/null || true; }

PATH=$PATH:/usr/sbin:/usr/local/sbin
mosquitto -c "$config" &
broker=$!
trap 'kill -TERM "$broker" 2>/dev/null || true' TERM INT

known=$(version)
while kill -0 "$broker" 2>/dev/null; do
    sleep 1 &
    wait $! || true
    now=$(version)
    if [ "$now" != "$known" ]; then
        known=$now
        kill -HUP "$broker" 2>/dev/null || true
    fi
done
wait "$broker"
