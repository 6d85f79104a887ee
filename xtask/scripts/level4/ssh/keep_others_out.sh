#!/bin/sh -eu
# Boots a guest with three programs that would get no answer on the link and then remove the address or assign another
# one.

banger vm create --quiet --vcpu 1 --image programs --name wired
banger vm exec wired -- sh -ec '
    printf "auto eth0\niface eth0 inet dhcp\n" >> /etc/network/interfaces'
banger vm restart --quiet wired
address=$(banger vm show wired --json | grep -o '"address": *"[^"]*' | cut -d '"' -f 4)
banger vm exec wired -- sh -ec '
    until [ -S /run/systemd/private ]; do sleep 0.2; done
    systemctl is-system-running --wait || true
    systemctl is-active NetworkManager.service networking.service dhcpcd.service
    nmcli --terse --fields DEVICE,STATE device
    ifquery --state
    journalctl --boot --output=cat --unit=dhcpcd.service
    ip -4 -oneline address show dev eth0; ps -e -o args=' > seen
cat seen
grep -q "inet $address/" seen && echo the same address
banger vm delete --force --quiet wired
