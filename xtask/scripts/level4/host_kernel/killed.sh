#!/bin/sh -eu
# Kills the service during the import of the host's kernel, and checks that nothing of it is left.

kernels=/var/lib/banger/kernels
is_importing() { [ -n "$(find $kernels -name '*staging*' 2> /dev/null)" ]; }
is_clean() { ! is_importing; }
is_new() { pid=$(systemctl show -P MainPID banger-system) && [ "$pid" != 0 ] && [ "$pid" != "$1" ]; }

before=$(ls -A $kernels 2> /dev/null || true)
busctl call dev.banger.Manager1 /dev/banger/Manager1 dev.banger.Manager1 CreateVM 'sa{sv}' cut 1 start b false > /dev/null
wait_until 180 'the import' is_importing
pid=$(systemctl show -P MainPID banger-system)
kill -KILL "$pid"
wait_until 180 'the service' is_new "$pid"
banger vm list > /dev/null
wait_until 180 'a clean directory' is_clean
[ "$(ls -A $kernels)" = "$before" ]
banger vm show cut > /dev/null 2>&1 && { echo 'the sandbox is still there' >&2; exit 1; }
echo nothing is left
