#!/bin/sh -e
# Imports a shared kernel and a shared image.

banger kernel show debian > /dev/null 2>&1 ||
    banger kernel import --name debian --vmlinuz /srv/vmlinuz --modules /srv/modules/* --shared
banger image show debian-bookworm > /dev/null 2>&1 ||
    banger image register --name debian-bookworm --rootfs /srv/minimal.ext4 --shared
