#!/bin/sh -eu
# Kills the service more often than systemd's default start limit would allow.

for _ in $(seq 7); do
    wait_until 60 'the service' systemctl is-active --quiet banger-system
    systemctl kill --signal=KILL --kill-whom=main banger-system.service
    sleep 0.3
done
wait_until 60 'the service' systemctl is-active --quiet banger-system
systemctl is-active banger-system
banger vm list --json
