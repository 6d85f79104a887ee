#!/bin/sh -eu
# Compares the host keys of a guest, and adds a key of a user to it.

banger vm create --quiet --vcpu 1 --name keys
serve keys
banger vm ssh keys -- true
banger vm exec keys -- sh -c 'ssh-keyscan 127.0.0.1 2> /dev/null' > scanned
cut -d ' ' -f 2 scanned | sort | tr '\n' ' '
banger vm show --json keys | grep -q "$(cut -d ' ' -f 3 scanned)" && echo as told
rm -f own own.pub
ssh-keygen -q -t ed25519 -N '' -f own
banger vm exec keys -- sh -ec 'umask 077; mkdir -p .ssh; cat >> .ssh/authorized_keys' < own.pub
banger vm restart --quiet keys
serve keys
banger ssh-config > config
sed -i "s|IdentityFile.*|IdentityFile $PWD/own|" config
ssh -F config keys.vm echo own key
banger vm delete --force keys
