#!/bin/sh -eu
# Makes sandboxes boot (`off`), or continue from kernel templates again (`on`).
templates=$1

config=/etc/banger/config.toml
mkdir -p /etc/banger
touch $config
sed -i '/^\[templates\]$/,/^disk = /d' $config
if [ "$templates" = off ]; then
    printf '[templates]\ndisk = "0"\n' >> $config
fi
systemctl restart banger-system
