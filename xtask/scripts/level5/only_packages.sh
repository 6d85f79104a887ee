#!/bin/sh -eu
# Removes everything that was imported and configured. The time limit stays, because the test host is emulated.

banger image delete --quiet debian-bookworm
banger kernel delete --quiet debian
printf 'ready_timeout = 300\n' > /etc/banger/config.toml
systemctl restart banger-system.service
