#!/bin/sh -eu
# Changes the level of the service's log as administrators do, and prints how many entries a sandbox has, by their fields.

service=banger-system.service
level() { systemctl service-log-level $service; }
entries() { journalctl --quiet --sync; journalctl --quiet --since "@$since" --output cat --unit $service "$@" | wc -l; }

since=$(date +%s)
echo "level $(level)"
systemctl service-log-level $service debug
echo "level $(level)"
banger vm create --quiet --name observed
id=$(banger vm show --json observed | grep -o 'banger-vm-[0-9a-f]*' | head -n 1 | sed 's/banger-vm-//')
banger vm delete --force observed
systemctl service-log-level $service info
echo "level $(level)"
# What the service logs at the level debug has the priority of informational entries: notices are for what is said at info.
echo "debug $(entries PRIORITY=6)"
echo "sandbox $(entries "BANGER_VM=$id")"
echo "call $(entries BANGER_UID=0 BANGER_OPERATION=CreateVM)"
echo "job $(entries BANGER_KIND=vm-create)"
echo "other $(entries BANGER_VM=00000000000000000000000000000000)"
