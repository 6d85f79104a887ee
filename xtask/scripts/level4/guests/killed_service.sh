#!/bin/sh -eu
# Streams the output of a command while kill_service.sh kills the service.

banger vm create --name steady
before=$(banger vm show steady --json | grep boot_id)
banger vm exec steady -- sh -c 'echo begun; for n in $(seq 1500); do [ -e /run/enough ] && break; sleep 0.2; done; echo done' > streamed &
exec=$!
wait_until 180 'the command' grep -q begun streamed
touch /tmp/kill-now
killed() { [ ! -e /tmp/kill-now ]; }
wait_until 180 'the end of the service' killed
wait_until 180 'the next service' quietly banger vm exec steady -- touch /run/enough
wait $exec
cat streamed
after=$(banger vm show steady --json | grep boot_id)
[ "$before" = "$after" ] && echo same
banger vm delete --force steady
