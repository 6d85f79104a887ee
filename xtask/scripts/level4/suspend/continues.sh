#!/bin/bash -eu
# Suspends a sandbox with a command that counts, restarts the service meanwhile, and checks that the command goes on
# without a gap, that the time is right, and that the published port works again.

# Without a session of logind: a new one waits for the end of the one before.
alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
numbers() { alice 'banger exec save -- cat /root/numbers'; }
last() { numbers | tail -n 1; }
has_counted() { [ "$(last)" -gt "$1" ] 2> /dev/null; }
says() { head -c 4 < /dev/tcp/127.0.0.1/8044 2> /dev/null; }
is_ssh() { [ "$(says)" = SSH- ]; }
field() { alice "banger show --json save" | sed -n "s/.*\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p"; }

alice 'banger create -q --vcpu 1 --name save'
alice 'banger vm publish save 8044:22' > /dev/null
alice "banger exec save -- sh -c 'mkdir -p /run/sshd; exec /usr/sbin/sshd'"
wait_until 180 'the ssh server' is_ssh
alice "banger exec -d save -- sh -c 'echo \$\$ > /root/pid; n=0; while :; do n=\$((n + 1)); echo \$n >> /root/numbers; sync; sleep 0.2; done'" > /dev/null
wait_until 180 'the counter' has_counted 5
pid=$(alice 'banger exec save -- cat /root/pid')
boot=$(field boot_id)
unit=$(field unit)

alice 'banger suspend -q save; banger suspend -q save; banger ps --columns name,state'
quietly systemctl is-active "$unit" || echo 'no VMM'
stat -c 'the memory: %a %U' "/var/lib/banger/captures/$(field id)/state"
says || echo 'no port'
alice 'banger stop -q save' 2>&1 || true
alice 'banger vm set --memory 300MiB save' 2>&1 || true
systemctl restart banger-system.service
alice 'banger ps --columns name,state'
sleep 3
alice 'banger resume -q save; banger resume -q save'
[ "$boot" = "$(field boot_id)" ] && [ "$(field booted_from)" = suspension ] && echo 'the same boot'
before=$(date +%s)
there=$(alice 'banger exec save -- date +%s')
[ "$there" -ge $((before - 1)) ] && [ "$there" -le $(($(date +%s) + 1)) ] && echo 'the right time'
alice "banger exec save -- kill -0 $pid" && echo 'the same process'
first=$(last)
wait_until 180 'the counter to go on' has_counted "$first"
numbers | awk '$1 != NR { gap = 1 } END { if (!gap) print "no gap" }'
wait_until 180 'the published port' is_ssh && echo 'the port is back'
[ -e "/var/lib/banger/captures/$(field id)" ] || echo 'no memory on disk'

# A command resumes it.
alice 'banger suspend -q save; banger exec save -- echo woken'
alice 'banger rm -q --force save'
