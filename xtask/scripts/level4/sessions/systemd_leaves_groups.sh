#!/bin/sh -eu
# Prints the control groups of commands after systemd has reloaded its configuration, and the state of the user's own
# systemd after a command with a terminal.

banger vm create --quiet --name groups
run() { banger vm exec -T groups -- sh -c "$1"; }
wait_until 180 'the end of the boot' run 'systemctl is-active -q multi-user.target'
run 'cat /proc/self/cgroup; exec sleep 1000' > first &
running=$!
trap 'kill $running' EXIT
wait_until 180 'the first command' test -s first
cat first
run 'systemctl daemon-reload; systemd-run --quiet --wait true; systemctl start --no-block systemd-tmpfiles-clean'
run 'cd /sys/fs/cgroup/banger/sessions; cat cgroup.controllers; cat memory.max; cat /proc/self/cgroup'
run 'for n in /sys/fs/cgroup/banger/sessions/[0-9]*; do cat $n/cgroup.procs | wc -l; done' | tr '\n' ' '
run 'for p in $(cat /sys/fs/cgroup/banger/agent/cgroup.procs); do cat /proc/$p/oom_score_adj; done'
run 'cat /proc/self/oom_score_adj; systemctl show -p MemoryCurrent init.scope'
run 'echo kept > $XDG_RUNTIME_DIR/earlier'
# It begins with the terminal, which does not wait for it.
manager='until systemctl --user show -p Version > /dev/null 2>&1; do sleep 1; done
echo "manager: $(systemctl --user is-system-running --wait)"'
script -qec "banger vm exec -t groups -- timeout 300 sh -c '$manager'" /dev/null < /dev/null
run 'cat $XDG_RUNTIME_DIR/earlier; systemctl --user show -p Version'
trap - EXIT
kill $running; wait $running || true
banger vm delete --force groups
rm first
