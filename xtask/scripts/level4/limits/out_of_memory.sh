#!/bin/sh -eu
# Has the kernel kill the VMM if the host has a memory controller, and otherwise sends SIGKILL as the kernel would.
unit=$1

failed() { banger vm show --json alice/hungry | grep -q '"failed"'; }

for _ in 1 2; do
    if grep -q memory /sys/fs/cgroup/cgroup.controllers; then
        systemctl set-property --runtime "$unit" MemoryMax=8M MemorySwapMax=0
    else
        systemctl kill --signal=KILL "$unit"
    fi
    wait_until 180 'the end of the VMM' failed
    banger vm show --json alice/hungry | grep -o -e 'oom-kill' -e 'killed:9'
    banger vm start --quiet alice/hungry
    banger vm show --json alice/hungry | grep -o '"running"'
done
