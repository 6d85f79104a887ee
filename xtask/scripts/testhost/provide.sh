#!/bin/sh -e
# Imports a shared kernel and a shared image.

banger kernel show debian > /dev/null 2>&1 ||
    banger kernel import --name debian --vmlinuz /srv/vmlinuz --modules /srv/modules/* --shared
# The test host boots a kernel that is not among its files. It is emulated, so its guests take long to boot.
config=/etc/banger/config.toml
mkdir -p /etc/banger
touch $config
if ! grep -q ^default_kernel_name $config; then
    printf 'default_kernel_name = "debian"\nready_timeout = 300\n' | cat - $config > $config.new
    mv $config.new $config
    systemctl try-restart banger-system
fi
banger image show debian-bookworm > /dev/null 2>&1 ||
    banger image register --name debian-bookworm --rootfs /srv/minimal.ext4 --shared
