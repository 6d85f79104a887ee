#!/bin/sh -eu
# Prints what the systemd of Debian 13 says of its boot, and the units that failed.

banger vm run --quiet --rm --image trixie --wait boot -- sh -c '
    . /etc/os-release
    echo "$VERSION_CODENAME: $(systemctl is-system-running --wait)"
    systemctl --failed --no-legend --plain'
