#!/bin/sh -eu
# Forks a running sandbox, and compares it and the new sandboxes with each other.

facts='cat /etc/machine-id /sys/class/net/eth0/address
cut -d " " -f 2 /etc/ssh/ssh_host_ed25519_key.pub
hostname
tail -n 1 /etc/hosts
head -c 16 /dev/urandom | od -An -tx1'
all='live live-1 live-2 live-3'
last() { banger vm exec "$1" -- tail -n 1 /root/numbers; }
counts_to() {
    for _ in $(seq 300); do
        [ "$(last "$1")" -ge "$2" ] && return
        sleep 0.2
    done
    echo "$1 does not count"
}

banger vm create --quiet --wait boot --memory 384M --name live
banger vm exec live -- sh -c 'echo 0 > /root/numbers; echo system > /etc/mark; echo work > /root/mark; sync'
banger vm exec -d live -- sh -c 'echo $$ > /root/pid; n=0; : > /root/numbers; while :; do n=$((n + 1)); echo $n >> /root/numbers; sync; sleep 0.2; done' > /dev/null
counts_to live 5
pid=$(banger vm exec live -- cat /root/pid)
banger vm fork --no-start --quiet -n 3 live
banger vm list --columns name,state | awk '{ print $1, $2 }'
forked=$(last live)
banger vm start --quiet live-1 live-2 live-3
for name in $all; do
    banger vm exec "$name" -- kill -0 "$pid" && echo "$name has the process"
    counts_to "$name" $((forked + 5))
    banger vm exec "$name" -- cat /root/numbers | awk '$1 != NR { gap = 1 } END { exit gap }' && echo "$name has no gap"
    banger vm exec "$name" -- sh -c "$facts" > "/tmp/fork-$name"
    banger vm exec "$name" -- cat /proc/sys/kernel/random/boot_id > "/tmp/fork-boot-$name"
    echo "$name has $(banger vm exec "$name" -- cat /etc/mark /root/mark | paste -sd ' ')"
done
echo "facts: $(cat /tmp/fork-live* | wc -l), different: $(sort -u /tmp/fork-live* | wc -l)"
echo "boots: $(sort -u /tmp/fork-boot-* | wc -l)"
for name in live-2 live-3.vm live; do
    banger vm exec live-1 -- getent ahostsv4 "$name" > /dev/null && echo "live-1 finds $name"
done
[ "$(banger vm exec live-1 -- timeout 120 bash -c 'head -c 4 < /dev/tcp/live-2/22')" = SSH- ] && echo 'live-1 reaches live-2'
banger vm exec live-1 -- sh -c 'echo changed > /etc/mark && echo changed > /root/mark && sync'
echo "live-2 still has $(banger vm exec live-2 -- cat /etc/mark /root/mark | paste -sd ' ')"
# The layers that were added while it ran are its disks after a boot.
banger vm restart --quiet live
echo "after a boot: $(banger vm exec live -- cat /etc/mark /root/mark | paste -sd ' '), $(
    banger vm exec live -- cat /root/numbers | awk '$1 != NR { gap = 1 } END { print gap ? "a gap" : "no gap" }')"
banger vm delete --quiet --force live live-1 live-2 live-3 > /dev/null
rm -f /tmp/fork-live* /tmp/fork-boot-*
