#!/bin/sh -eu
# Checks both disks of a stopped sandbox.
id=$1

cd "/var/lib/banger/vms/$id"
e2fsck -fn work.ext4
if [ -e system.qcow2 ]; then
    qemu-img convert -O raw --image-opts driver=qcow2,file.filename=system.qcow2,backing.driver=raw,backing.file.filename=base.ext4 system.raw
    e2fsck -fn system.raw
else
    e2fsck -fn system.ext4
fi
