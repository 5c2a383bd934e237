#!/bin/sh
# An example agent: enrols at its first start, and runs.
set -eu
edgeloop-agent enroll --server control:50063 --ca /agents/ca.crt --token-file "/agents/$1.token" \
    --state-dir /var/lib/edgeloop-agent
# What enrolment tells are the addresses outside of this network; these are those inside.
exec edgeloop-agent run --state-dir /var/lib/edgeloop-agent --server control:50061 --broker mosquitto:8883 \
    --replay /agents/inputs.npz --rate-hz "$2"
