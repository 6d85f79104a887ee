#!/bin/sh -eu
# Makes snapshots of a sandbox while it runs and while it is stopped, and forks them.

facts='cat /etc/machine-id /sys/class/net/eth0/address
cut -d " " -f 2 /etc/ssh/ssh_host_ed25519_key.pub
hostname
head -c 16 /dev/urandom | od -An -tx1'
marks() { banger vm exec "$1" -- cat /etc/mark /root/mark | paste -sd ' '; }
last() { banger vm exec "$1" -- tail -n 1 /root/numbers; }
counts_to() {
    for _ in $(seq 300); do
        [ "$(last "$1")" -ge "$2" ] && return
        sleep 0.2
    done
    echo "$1 does not count"
}

banger vm create --quiet --wait boot --memory 384M --name base
banger vm exec base -- sh -c 'echo 0 > /root/numbers; echo then > /etc/mark; echo then > /root/mark; sync'
banger vm exec -d base -- sh -c 'echo $$ > /root/pid; n=0; : > /root/numbers; while :; do n=$((n + 1)); echo $n >> /root/numbers; sync; sleep 0.2; done' > /dev/null
sleep 1
counts_to base 5
pid=$(banger vm exec base -- cat /root/pid)
echo "made: $(banger vm snapshot create --quiet base ready)"
made=$(last base)
banger vm exec base -- sh -c 'echo now > /etc/mark; echo now > /root/mark; sync'
counts_to base $((made + 5))
echo "base runs on and has $(marks base)"
for name in one two; do
    banger vm fork --quiet --from-snapshot ready --name "$name" base
    banger vm exec "$name" -- kill -0 "$pid" && echo "$name has the process"
    counts_to "$name" $((made + 5))
    banger vm exec "$name" -- cat /root/numbers | awk '$1 != NR { gap = 1 } END { exit gap }' && echo "$name has no gap"
    echo "$name has $(marks "$name")"
    banger vm exec "$name" -- sh -c 'echo changed > /etc/mark; echo changed > /root/mark; sync'
done
for name in base one two; do
    banger vm exec "$name" -- sh -c "$facts" > "/tmp/snapshot-$name"
done
echo "facts: $(cat /tmp/snapshot-* | wc -l), different: $(sort -u /tmp/snapshot-* | wc -l)"

banger vm stop --quiet base > /dev/null
banger vm snapshot create --quiet base off > /dev/null
banger vm snapshot create --quiet base off 2> /dev/null || echo 'refused: the name is taken'
banger vm snapshot list --columns sandbox,name,memory base | awk '{ print $1, $2, $3 }'
banger vm list --columns name | grep -E '^(ready|off)' || echo 'no snapshot is a sandbox'
banger vm fork --quiet --from-snapshot off --name three base
echo "three has $(marks three)"
banger vm delete --quiet base > /dev/null 2>&1 || echo 'refused: it has snapshots'

banger vm start --quiet base > /dev/null
banger vm exec base -- sh -c 'echo later > /etc/mark; echo later > /root/mark; sync'
banger vm snapshot restore --quiet base off > /dev/null 2>&1 || echo 'refused: it runs'
banger vm snapshot restore --quiet --force base off
banger vm start --quiet base > /dev/null
echo "base is back at $(marks base)"
banger vm stop --quiet base > /dev/null
for round in 1 2; do
    banger vm snapshot restore --quiet base ready
    banger vm start --quiet base > /dev/null
    banger vm exec base -- kill -0 "$pid" && echo "$round: base has the process again"
    counts_to base $((made + 5))
    banger vm exec base -- awk '$1 != NR { gap = 1 } END { exit gap }' /root/numbers && echo "$round: base has no gap"
    echo "$round: base is back at $(marks base)"
    banger vm exec base -- sh -c 'echo changed > /etc/mark; echo changed > /root/mark; sync'
    banger vm exec one -- getent hosts base.vm > /dev/null && echo "$round: base is found"
    banger vm stop --quiet base > /dev/null
done
echo "ran: $(banger vm run --quiet --rm --from-snapshot base/ready -- cat /etc/mark)"
banger vm snapshot delete base off
banger vm stop --quiet three > /dev/null
banger vm start --quiet three > /dev/null
echo "three still has $(marks three)"
banger vm delete --quiet --force base one two three > /dev/null
rm -f /tmp/snapshot-*
