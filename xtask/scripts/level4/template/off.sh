#!/bin/sh -eu
# Turns kernel templates off, and removes them.

sed -i '/^\[templates\]$/,/^disk = /d' /etc/banger/config.toml
systemctl restart banger-system
rm -rf /var/lib/banger/templates
