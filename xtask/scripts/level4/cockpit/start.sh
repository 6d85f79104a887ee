#!/bin/sh -eu
# Starts Cockpit on loopback, without its certificates.

systemd-run --quiet --unit=cockpit-of-tests /usr/lib/cockpit/cockpit-ws --no-tls --address=127.0.0.1 --port=9090
answers() { quietly curl --fail --silent http://127.0.0.1:9090/ping; }
wait_until 180 'Cockpit' answers
