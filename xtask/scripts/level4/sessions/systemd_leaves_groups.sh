#!/bin/sh -eu
# Prints the control groups of commands after systemd has reloaded its configuration.

banger vm create --quiet --name groups
run() { banger vm exec -T groups -- sh -c "$1"; }
wait_until 180 'the end of the boot' run 'systemctl is-active -q multi-user.target'
run 'cat /proc/self/cgroup; exec sleep 1000' > first &
running=$!
wait_until 30 'the first command' test -s first
cat first
run 'systemctl daemon-reload; systemd-run --quiet --wait true; systemctl start --no-block systemd-tmpfiles-clean'
run 'cd /sys/fs/cgroup/banger/sessions; cat cgroup.controllers; cat memory.max; cat /proc/self/cgroup'
run 'for n in /sys/fs/cgroup/banger/sessions/[0-9]*; do cat $n/cgroup.procs | wc -l; done' | tr '\n' ' '
run 'for p in $(cat /sys/fs/cgroup/banger/agent/cgroup.procs); do cat /proc/$p/oom_score_adj; done'
run 'cat /proc/self/oom_score_adj; systemctl show -p MemoryCurrent init.scope'
kill $running; wait $running || true
banger vm delete --force groups
rm first
