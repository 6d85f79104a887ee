#!/bin/sh -eu
# Streams the output of a command while kill_service.sh kills the service.

banger vm create --name steady
before=$(banger vm show steady --json | grep boot_id)
banger vm exec steady -- sh -c 'sleep 8; echo done' > streamed &
exec=$!
sleep 2
touch /tmp/kill-now
killed() { [ ! -e /tmp/kill-now ]; }
wait_until 60 'the end of the service' killed
wait $exec
cat streamed
after=$(banger vm show steady --json | grep boot_id)
[ "$before" = "$after" ] && echo same
banger vm delete --force steady
