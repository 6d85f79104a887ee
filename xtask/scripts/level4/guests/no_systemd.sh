#!/bin/sh -eu
# Uses a sandbox while serve_without_systemd.sh kills the service.

is_gone() { [ ! -e "$1" ]; }
wait_until 180 'the service' quietly busctl status dev.banger.Manager1
trap 'touch /tmp/plain-kill /tmp/plain-done' EXIT
banger vm create --name plain
before=$(banger vm exec plain -- cat /proc/sys/kernel/random/boot_id)
touch /tmp/plain-kill
wait_until 180 'the next service' is_gone /tmp/plain-kill
after=$(banger vm exec plain -- cat /proc/sys/kernel/random/boot_id)
[ "$before" = "$after" ] && echo same
banger vm show plain --json
banger vm delete --force plain
