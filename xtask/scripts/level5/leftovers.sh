#!/bin/sh -u
# Prints what purged packages have left on the host: files, the group, units, processes, links, forwarding,
# rules, disks.

find / -xdev \( -path /srv -o -path /home -o -path /tmp -o -path /var/cache/apt -o -path /var/log \) -prune -o \
    -iname '*banger*' -print
# The file system of this host has a label of ours, which udev knows.
find /run -xdev -iname '*banger*' ! -path '/run/user/*' ! -path '/run/udev/links/*' -print
getent group banger
dpkg-query --show --showformat '${Package} ${Status}\n' 'banger*' 2> /dev/null | grep -v unknown
systemctl list-units --all --plain --no-legend 'banger*'
systemctl list-unit-files --no-legend 'banger*'
pgrep -l 'qemu|banger'
ip -o link | grep -E 'bgr-|banger'
# No other program of this host turns forwarding on.
grep -l -x 1 /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv6/conf/*/force_forwarding 2> /dev/null
nft list tables | grep banger
dmsetup ls | grep banger-
losetup --list --noheadings
true
