#!/bin/sh -eu
# Kills the service more often than systemd's default start limit would allow.

# systemd may take a while to notice the end of a process, and calls the service active until then.
killed=0
runs_again() {
    pid=$(systemctl show --property MainPID --value banger-system.service)
    [ "$pid" != 0 ] && [ "$pid" != "$killed" ] && systemctl is-active --quiet banger-system
}
for _ in $(seq 7); do
    wait_until 180 'the service' runs_again
    kill -KILL "$pid"
    killed=$pid
done
wait_until 180 'the service' runs_again
systemctl is-active banger-system
banger vm list --json
