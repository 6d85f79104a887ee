#!/bin/sh -eu
# Has the kernel of a guest load modules.

banger vm run --quiet --rm --image bare -- sh -c '
    ls /lib/modules/$(uname -r)/modules.dep
    cat /proc/sys/kernel/modprobe
    # Opening a device loads its module, and so does naming a file system, even if the mount fails.
    head -c 0 /dev/fuse
    for kind in squashfs nfs; do mount -t $kind none /mnt 2> /dev/null; done
    for name in fuse squashfs nfs sunrpc; do grep -o "^$name " /proc/modules; done
    true'
