#!/bin/sh -eu
# Changes a byte of the only template, as a failing disk may.

systemctl stop banger-system
memory=$(echo /var/lib/banger/templates/*/memory)
printf 'x' | dd of="$memory" bs=1 seek=20971520 conv=notrunc status=none
systemctl start banger-system
