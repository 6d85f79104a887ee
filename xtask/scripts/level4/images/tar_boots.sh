#!/bin/sh -eu
# Registers an archive, compressed and not.
tar=$1

banger image register --shared --name tar --rootfs "$tar"
gzip -1 < "$tar" > /tmp/rootfs.tar.gz
banger image register --shared --name gzip --rootfs /tmp/rootfs.tar.gz
rm /tmp/rootfs.tar.gz
