#!/bin/sh
# Prepares the example agents, once: a one-time token for each, and recorded inputs to feed to their models.
set -eu
umask 077
for class in small medium large; do
    name="gateway-$class-1"
    [ -s "/agents/$name.token" ] && continue
    edgeloop device enroll "$name" --label "class=gateway-$class" --ttl 24h >"/agents/$name.token.tmp"
    mv "/agents/$name.token.tmp" "/agents/$name.token"
done
[ -s /agents/inputs.npz ] || python3 /compose/inputs.py /opt/edgeloop/examples/gateways/workload.yaml /agents/inputs.npz
[ -s /agents/ca.crt ] || cp /keys/operator/ca.crt /agents/ca.crt
chmod 0444 /agents/ca.crt /agents/inputs.npz
