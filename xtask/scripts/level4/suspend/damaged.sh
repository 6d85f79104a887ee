#!/bin/bash -eu
# Damages the memory of a suspended sandbox. It is not resumed, and a cold start keeps its disks.

# Without a session of logind: a new one waits for the end of the one before.
alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
field() { alice "banger show --json hurt" | sed -n "s/.*\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p"; }

alice 'banger create -q --vcpu 1 --name hurt'
alice 'banger exec hurt -- sh -c "echo kept > /root/file; sync"'
alice 'banger suspend -q hurt'
state="/var/lib/banger/captures/$(field id)/state"
printf 'damage' | dd of="$state" bs=1 seek=20971520 conv=notrunc status=none
alice 'banger resume -q hurt' 2>&1 || true
echo "then $(field state)"
alice 'banger start -q --cold hurt'
[ "$(field booted_from)" != suspension ] && echo "cold $(alice 'banger exec hurt -- cat /root/file')"
[ -e "$state" ] || echo 'no memory on disk'
alice 'banger suspend -q hurt; banger stop -q --force hurt'
echo "forced $(field state)"
alice 'banger start -q hurt; banger suspend -q hurt; banger rm -q hurt'
[ -z "$(ls /var/lib/banger/captures)" ] && echo 'nothing is left'
