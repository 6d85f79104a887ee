#!/bin/sh -eu
# Tries to reach another user's guest, which must fail.
address=$1

banger ssh-config > config
for host in secret.alice.vm secret.vm; do
    ssh -F config $host echo reached || true
    banger ssh-known-hosts $host || true
done
ssh -o StrictHostKeyChecking=no -o ConnectTimeout=5 -o BatchMode=yes "root@$address" echo reached || true
