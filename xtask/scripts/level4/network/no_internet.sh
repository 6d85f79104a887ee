#!/bin/bash -eu
# Ends what internet.sh started.

systemctl stop internet-server host-server
ip link del up0
ip netns del internet
