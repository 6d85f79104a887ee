#!/bin/sh -eu
# Forks a stopped sandbox, and compares the children with it and with each other.

facts='cat /etc/machine-id /sys/class/net/eth0/address
cut -d " " -f 2 /etc/ssh/ssh_host_ed25519_key.pub
hostname
tail -n 1 /etc/hosts
head -c 16 /dev/urandom | od -An -tx1'
look() { banger vm exec "$1" -- sh -c "$facts" > "/tmp/fork-$1"; }

banger vm create --quiet --wait boot --memory 384M --name work
banger vm exec work -- sh -c 'echo system > /etc/mark && echo work > /root/mark && sync'
look work
banger vm stop --quiet work > /dev/null
banger vm fork --quiet -n 3 work
# Their init writes the machine id.
banger vm start --quiet --wait boot work-1 work-2 work-3 > /dev/null
for name in work-1 work-2 work-3; do
    echo "$name has $(banger vm exec "$name" -- cat /etc/mark /root/mark | paste -sd ' ')"
    look "$name"
done
echo "facts: $(cat /tmp/fork-work* | wc -l), different: $(sort -u /tmp/fork-work* | wc -l)"
for name in work-2 work-3.vm; do
    banger vm exec work-1 -- getent ahostsv4 "$name" > /dev/null && echo "work-1 finds $name"
done
banger vm exec work-1 -- sh -c 'echo changed > /etc/mark && echo changed > /root/mark && sync'
echo "work-2 still has $(banger vm exec work-2 -- cat /etc/mark /root/mark | paste -sd ' ')"
banger vm delete --quiet --force work work-1 work-2 work-3 > /dev/null
rm -f /tmp/fork-work*
