#!/bin/sh -eu
# Imports an image with the self-test in place of the worker, which it becomes in the end. Rates the unit of the worker.

worker=/usr/libexec/banger/banger-import
mkdir -p /tmp/confinement
cd /tmp/confinement
echo content > file
tar -cf image.tar file
since=$(date +%s)
mv $worker $worker.real
cp /usr/libexec/banger/confinement $worker
trap 'rm -f $worker; mv $worker.real $worker' EXIT
banger image register --name selftest --rootfs image.tar &
register=$!
copied() { cp /run/systemd/transient/banger-import-*.service banger-import-proof.service; }
wait_until 180 'the unit of the worker' quietly copied
wait $register
banger image delete selftest
journalctl --sync
journalctl --quiet --since "@$since" --output cat --identifier banger-import
systemd-analyze security --no-pager --offline=yes ./banger-import-proof.service | tail -n 1 | sed 's/^/exposure worker /'
rm -rf /tmp/confinement
