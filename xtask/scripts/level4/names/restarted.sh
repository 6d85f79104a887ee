#!/bin/sh -eu
# Kills the service, and stops it when it has told resolved all names again.

before=$(systemctl show -P MainPID banger-system.service)
systemctl kill --signal=KILL --kill-whom=main banger-system.service
has_restarted() {
    [ "$(systemctl show -P MainPID banger-system.service)" != "$before" ] &&
        systemctl is-active --quiet banger-system.service
}
wait_until 180 'the service' has_restarted
resolvectl flush-caches
until_known steady.vm
systemctl stop banger-system.service
