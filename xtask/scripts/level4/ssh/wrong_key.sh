#!/bin/sh -eu
# Connects to a guest that has changed its host key.

banger vm create --quiet --vcpu 1 --name liar
banger vm ssh liar -- true
banger vm exec liar -- sh -ec '
    cd /etc/ssh
    rm ssh_host_ed25519_key ssh_host_ed25519_key.pub
    ssh-keygen -q -t ed25519 -N "" -f ssh_host_ed25519_key
    systemctl restart ssh'
status=0; banger vm ssh liar -- echo reached || status=$?
echo status $status
banger vm stop liar
banger vm start liar
banger vm ssh liar -- echo mended
banger vm delete --force liar
