#!/bin/sh
# Prints what the host has of sandboxes.

udevadm settle
dmsetup ls | grep banger- || true
losetup --list --noheadings
systemctl list-units --all --plain --no-legend 'banger-vm-*'
pgrep -l qemu-system || true
find /var/lib/banger/vms /run/banger/vm -mindepth 1 -maxdepth 1 || true
