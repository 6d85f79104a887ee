#!/bin/sh -eu
# Registers a bundle and runs a command in a sandbox of it.

banger image register --quiet --oci /tmp/bundle.tar.zst
banger image show --json minimal | grep -q "$(banger kernel show debian | sed -n 's,^id  *,,p')" && echo its kernel
banger vm run --quiet --rm --image minimal -- ls /bin/busybox
banger image delete minimal
