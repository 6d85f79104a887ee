#!/bin/sh -eu
# Pauses a sandbox with a command that counts, restarts the service meanwhile, and checks that the sandbox stands still
# and goes on where it was.

# Without a session of logind: a new one waits for the end of the one before.
alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
used() { sed -n 's/^usage_usec //p' "/sys/fs/cgroup$group/cpu.stat"; }
has_counted() { alice 'banger exec still -- test -s /count' 2> /dev/null; }
goes_on() { [ "$(alice 'banger exec still -- cat /count')" -gt "$first" ]; }

alice 'banger create -q --vcpu 1 --name still'
alice "banger exec -d still -- sh -c 'n=0; while :; do n=\$((n + 1)); echo \$n > /count; sleep 0.2; done'" > /dev/null
wait_until 180 'the counter' has_counted
unit=$(alice 'banger show --json still' | sed -n 's/.*"unit": "\(.*\)".*/\1/p')
group=$(systemctl show -P ControlGroup "$unit")

alice 'banger pause still; banger pause still; banger ps --columns name,state'
before=$(used)
systemctl restart banger-system.service
alice 'banger ps -q' > /dev/null
sleep 2
[ "$before" = "$(used)" ] && echo 'no processor time'
alice 'banger exec still -- true' 2>&1 || true
alice 'banger unpause still; banger unpause still'
before=$(date +%s)
there=$(alice 'banger exec still -- date +%s')
[ "$there" -ge $((before - 1)) ] && [ "$there" -le $(($(date +%s) + 1)) ] && echo 'the right time'
first=$(alice 'banger exec still -- cat /count')
wait_until 180 'the counter to go on' goes_on

alice 'banger pause still; banger stop still; banger show --json still' | grep '"state"'
alice 'banger rm -q still'
