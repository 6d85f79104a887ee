#!/bin/sh -eu
# Starts a long import, of a file of 4 GiB, and waits for its unit.

cd /tmp
truncate -s 4G zeros
tar -c zeros | zstd -q -1 > long.tar.zst
rm zeros
runs() {
    unit=$(systemctl list-units --plain --no-legend 'banger-import-*' | cut -d ' ' -f 1)
    [ -n "$unit" ] || return
    pid=$(systemctl show -p MainPID --value "$unit")
    [ "${pid:-0}" != 0 ] || return
    # The first worker only reads the beginning of the file, which takes no such time of a processor.
    [ "$(cut -d ' ' -f 14 "/proc/$pid/stat" 2> /dev/null || echo 0)" -ge 30 ]
}
banger image register --name long --rootfs long.tar.zst > said 2>&1 &
# shellcheck disable=SC2034 # The scripts after this one use it.
register=$!
wait_until 180 'the unit of the worker' runs
# Wait until the worker has locked itself down.
wait_until 180 'the lockdown of the worker' grep -q 'Seccomp_filters:.*[2-9]' "/proc/$pid/status"
