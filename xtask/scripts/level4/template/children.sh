#!/bin/sh -eu
# Starts sandboxes from a template, and prints what they have in common and what differs.

from() { banger vm show --json "$1" | grep -o '"booted_from": *"[a-z]*"' | cut -d '"' -f 4; }
made() { banger doctor | grep -q 'templates: 1 template takes'; }
timed() {
    before=$(date +%s%N)
    banger vm create --quiet --wait boot --name "$@"
    echo "created $1 in $((($(date +%s%N) - before) / 1000000)) ms"
}

timed first
echo "first: $(from first)"
wait_until 240 'the template' made
banger vm delete --quiet --force first

facts='cat /proc/sys/kernel/random/boot_id /etc/machine-id /sys/class/net/eth0/address
head -c 16 /dev/urandom | od -An -tx1
cut -d " " -f 2 /etc/ssh/ssh_host_ed25519_key.pub
hostname
tail -n 1 /etc/hosts'
timed one
timed two --root-size 24GiB --disk-size 3GiB
for name in one two; do
    echo "$name: $(from $name)"
    banger vm exec "$name" -- sh -c "$facts" > "/tmp/facts-$name"
done
echo "facts: $(wc -l < /tmp/facts-one), equal: $(grep -cxFf /tmp/facts-one /tmp/facts-two)"
echo "sizes: $(banger vm exec two -- sh -c 'echo $(cat /sys/block/vda/size /sys/block/vdb/size)')"
banger vm exec two -- sh -c 'echo kept > /root/file && sync && cat /root/file'
banger vm exec one -- bash -c 'exec 3<> /dev/tcp/two.vm/22 && head -c 4 <&3 && echo'
banger vm ssh one -- hostname
before=$(date +%s)
clock=$(banger vm exec one -- date +%s)
[ "$clock" -gt $((before - 5)) ] && [ "$clock" -lt $(($(date +%s) + 5)) ] && echo 'the clock is right'
banger vm restart --quiet two
echo "restarted: $(from two), $(banger vm exec two -- cat /root/file)"
banger vm delete --quiet --force one two
rm -f /tmp/facts-one /tmp/facts-two
