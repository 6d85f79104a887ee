#!/bin/bash -eu
# Ctrl-C during a suspension leaves the guest running, and during a resumption the sandbox suspended. Both work afterwards.
# The VMM stands still while the signal is under way, so that it comes in time on any host.

alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
state() { alice 'banger show --json busy' | sed -n 's/.*"state": "\([^"]*\).*/\1/p'; }
lives() { alice "banger exec busy -- sh -c 'kill -0 \$(cat /mnt/pid)'"; }
digest() { alice 'banger exec busy -- md5sum /mnt/pages'; }
is() { [ "$(state)" = "$1" ]; }
vmm() { pgrep -f '[n]ame banger-busy'; }
is_written() { compgen -G '/var/lib/banger/captures/.staging-*/*' > /dev/null; }
is_given_up() { ! is_written; }
# Without a pause: the memory is written in less than a second.
wait_for_memory() {
    local end=$((SECONDS + 180))
    until is_written; do [ $SECONDS -lt $end ]; done
}
# client VERB: starts a client in the background. What started this script may ignore interrupts, and then banger would.
client() { alice "echo \$\$ > client; exec env --default-signal=INT banger $1 busy" & }
interrupt() { kill -INT "$(cat /home/alice/client)" || echo 'too fast'; }

alice 'banger create -q --vcpu 1 --memory 1GiB --name busy'
# Pages that are not zeros, so that writing and loading them takes time.
alice "banger exec busy -- sh -c 'mount -t tmpfs -o size=700m none /mnt; head -c 600M /dev/urandom > /mnt/pages'"
alice "banger exec -d busy -- sh -c 'echo \$\$ > /mnt/pid; exec sleep 100000'" > /dev/null
wait_until 180 'the command' lives
sum=$(digest)

held=$(vmm)
client suspend
wait_for_memory
kill -STOP "$held"
interrupt
if ! wait_until 180 'the end of the writing' is_given_up; then
    grep -E '^(Name|State|Sig|Shd)' "/proc/$(cat /home/alice/client)/status" >&2 || true
    kill -CONT "$held"
    exit 1
fi
kill -CONT "$held"
wait "$!" || true
wait_until 180 'the guest' is running && echo 'it runs on'
lives && echo 'the same process'

alice 'banger suspend -q busy'
# Before it has loaded the memory.
hold() { vmm > /tmp/vmm && kill -STOP "$(cat /tmp/vmm)"; }
client resume
wait_until 180 'the VMM' hold
wait_until 180 'the resumption' is resuming
interrupt
wait "$!" || true
wait_until 180 'the suspension' is suspended && echo 'it stays suspended'
alice 'banger resume -q busy'
lives && [ "$sum" = "$(digest)" ] && echo 'the memory is right'
alice 'banger rm -q --force busy'
rm -f /tmp/vmm
