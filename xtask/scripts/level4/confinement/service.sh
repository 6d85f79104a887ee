#!/bin/sh -eu
# Runs the self-test in the unit of the service, before the service. Rates the unit.

directory=/run/systemd/system/banger-system.service.d
mkdir -p $directory
printf '[Service]\nExecStartPre=/usr/libexec/banger/confinement --in service\n' > $directory/confinement.conf
trap 'rm -rf $directory; systemctl daemon-reload' EXIT
systemctl daemon-reload
since=$(date +%s)
systemctl restart banger-system.service
journalctl --sync
journalctl --quiet --since "@$since" --output cat --unit banger-system.service --identifier confinement
systemd-analyze security --no-pager banger-system.service | tail -n 1 | sed 's/^/exposure service /'
