#!/bin/bash -eu
# Ends what names.sh started.

mv /etc/resolv.conf.before /etc/resolv.conf
systemctl stop internet-names
