#!/bin/sh -eu
# Kills the worker of the long import, and the service if it is named. Prints the units that are left.
# shellcheck disable=SC2154 # long.sh comes first and sets pid, register and unit.
service=$1

systemctl kill --signal=KILL "$unit"
[ -z "$service" ] || systemctl kill --signal=KILL --kill-whom=main "$service"
wait "$register" || true
left() { systemctl list-units --all --plain --no-legend 'banger-import-*'; }
nothing_left() { [ -z "$(left)" ]; }
wait_until 180 'the end of all imports' nothing_left || left
rm long.tar.zst
