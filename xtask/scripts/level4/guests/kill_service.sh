#!/bin/sh
# Kills the service when a session asks for it by a file.

wait_until 600 'the request to kill' test -e /tmp/kill-now || exit 1
systemctl kill --signal=KILL --kill-whom=main banger-system.service
rm -f /tmp/kill-now
