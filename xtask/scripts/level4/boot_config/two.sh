#!/bin/sh -eu
# Starts two sandboxes, and prints a line of what must differ between them for each.

for name in bare-1 bare-2; do
    banger vm run --quiet -d --name $name -- sleep 1000 >/dev/null
    banger vm exec $name -- sh -c '
        read -r boot </proc/sys/kernel/random/boot_id
        echo "$boot $(od -An -N8 -tx8 /dev/urandom)"
    '
done
