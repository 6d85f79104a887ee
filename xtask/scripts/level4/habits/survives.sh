#!/bin/sh -eu
# The service restarts while the command of a `run -d --rm` runs, and another time while it is down.

# Without a session of logind: a new one waits for the end of the one before.
alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
is_gone() { ! quietly alice "banger show $1"; }
run() { alice "banger run -d --rm -q --vcpu 1 --name $1 -- sleep $2"; }

run job 20
systemctl restart banger-system.service
alice 'banger show --json job' | grep '"state"'
wait_until 180 'the end of job' is_gone job
echo 'job gone'

run late 10
unit=$(alice 'banger show --json late' | sed -n 's/.*"unit": "\(.*\)".*/\1/p')
systemctl stop banger-system.service
has_ended() { ! quietly systemctl is-active "$unit"; }
wait_until 180 'the end of the guest' has_ended
systemctl start banger-system.service
wait_until 180 'the end of late' is_gone late
echo 'late gone'
