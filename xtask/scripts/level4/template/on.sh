#!/bin/sh -eu
# Turns kernel templates on.

printf '[templates]\ndisk = "2GiB"\n' >> /etc/banger/config.toml
systemctl restart banger-system
