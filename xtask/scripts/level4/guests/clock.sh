#!/bin/sh -eu
# Sets the clock of a guest wrong, and waits until it is right again.

banger vm create --name late
banger vm exec late -- date --set @100000000
touch /tmp/set-now
banger vm exec late -- sh -c 'for n in $(seq 3000); do [ $(date +%s) -gt 1000000000 ] && exit; sleep 0.1; done; exit 1'
banger vm delete --force late
