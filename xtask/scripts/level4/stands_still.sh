#!/bin/sh
# Succeeds if the kernel of an emulated guest reports a lockup.

banger doctor | grep -q '^PASS *kvm' && exit 1
for name in $(banger vm list --all-users --json | grep -o '"id": *"[^"]*' | cut -d '"' -f 4); do
    banger vm logs "$name" | grep -q -e 'soft lockup' -e 'rcu_preempt detected stalls' && exit 0
done
exit 1
