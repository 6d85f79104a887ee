#!/bin/sh -eu
# Removes the kernel that install.sh installed, and its import.

banger kernel delete host
rm -rf /boot/vmlinuz-* /usr/lib/modules/*
