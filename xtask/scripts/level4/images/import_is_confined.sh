#!/bin/sh -eu
# Prints what the worker of the long import may do and see.
# shellcheck disable=SC2154 # long.sh comes first and sets pid, register and unit.

systemctl show -p DynamicUser -p PrivateNetwork -p CapabilityBoundingSet -p NoNewPrivileges "$unit"
grep -e Uid: -e CapEff: -e CapBnd: -e NoNewPrivs: -e Seccomp: -e Groups: "/proc/$pid/status"
[ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/1/ns/net)" ] && echo own network
echo "etc: $(find "/proc/$pid/root/etc" -mindepth 1 -maxdepth 1 -printf '%f\n' | paste -sd ' ')"
for name in root tmp var home srv; do ls -A "/proc/$pid/root/$name" 2> /dev/null || true; done | sed 's/^/has /'
readlink "/proc/$pid/fd"/* | sort -u
systemctl kill -s KILL "$unit"
wait "$register" || true
rm long.tar.zst
