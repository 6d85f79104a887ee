#!/bin/sh -eu
# Installs the kernel of an unpacked package, as its package would.
root=$1

mkdir -p /boot /usr/lib/modules
cp "$root"/boot/vmlinuz-* /boot/
chmod 600 /boot/vmlinuz-*
cp -a "$root"/lib/modules/* /usr/lib/modules/
