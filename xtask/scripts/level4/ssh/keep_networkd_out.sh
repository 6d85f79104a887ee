#!/bin/sh -eu
# Configures systemd-networkd for all interfaces of a guest.

banger vm create --quiet --vcpu 1 --name wired
banger vm exec wired -- sh -ec '
    until [ -S /run/systemd/private ]; do sleep 0.2; done
    printf "[Match]\nName=*\n[Network]\nDHCP=yes\n" > /etc/systemd/network/10-all.network
    ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
    systemctl enable systemd-networkd'
banger vm restart --quiet wired
banger vm ssh wired -- 'systemctl is-active systemd-networkd; networkctl --no-legend list eth0'
banger vm ssh wired -- 'cat /etc/resolv.conf; getent hosts wired.vm; hostname'
banger vm delete --force wired
