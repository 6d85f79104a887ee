#!/bin/sh -eu
# Starts a sandbox with the self-test in place of QEMU, which it becomes in the end.

qemu=/usr/bin/qemu-system-x86_64
mv $qemu $qemu.real
cp /usr/libexec/banger/confinement $qemu
trap 'rm -f $qemu; mv $qemu.real $qemu' EXIT
if ! banger vm create --quiet --name selftest; then
    banger vm logs selftest | tail -n 5 >&2
    banger vm logs --vmm selftest | tail -n 5 >&2
    exit 1
fi
banger vm logs --vmm selftest
banger vm delete --force selftest
