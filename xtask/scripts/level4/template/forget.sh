#!/bin/sh -eu
# Removes all kernel templates, so that the next start boots.

systemctl stop banger-system
rm -rf /var/lib/banger/templates
systemctl start banger-system
