#!/bin/bash -eu
# Ctrl-C during a suspension leaves the guest running, and during a resumption the sandbox suspended. Both work afterwards.

alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
state() { alice 'banger show --json busy' | sed -n 's/.*"state": "\([^"]*\).*/\1/p'; }
lives() { alice "banger exec busy -- sh -c 'kill -0 \$(cat /mnt/pid)'"; }
digest() { alice 'banger exec busy -- md5sum /mnt/pages'; }
is() { [ "$(state)" = "$1" ]; }
# The memory that is being written shows sooner than the service's answer that the sandbox is being suspended.
has_reached() {
    if [ "$1" = suspending ] && compgen -G '/var/lib/banger/captures/.staging-*/*' > /dev/null; then
        return
    fi
    is "$1"
}
# interrupt VERB STATE: sends SIGINT to the client once the sandbox is in the state.
interrupt() {
    alice "echo \$\$ > client; exec banger $1 busy" &
    wait_until 180 "the state $2" has_reached "$2"
    kill -INT "$(cat /home/alice/client)" || echo "$1 was too fast"
    wait "$!" || true
}

alice 'banger create -q --vcpu 1 --memory 1GiB --name busy'
# Pages that are not zeros, so that writing and loading them takes time.
alice "banger exec busy -- sh -c 'mount -t tmpfs -o size=700m none /mnt; head -c 600M /dev/urandom > /mnt/pages'"
alice "banger exec -d busy -- sh -c 'echo \$\$ > /mnt/pid; exec sleep 100000'" > /dev/null
wait_until 180 'the command' lives
sum=$(digest)
interrupt suspend suspending
wait_until 180 'the guest' is running && echo 'it runs on'
lives && echo 'the same process'
alice 'banger suspend -q busy'
# Its VMM stands still before it has loaded the memory, however late the signal comes.
hold() { pgrep -f '[n]ame banger-busy' > /tmp/vmm && kill -STOP "$(cat /tmp/vmm)"; }
wait_until 180 'the VMM' hold &
interrupt resume resuming
wait_until 180 'the suspension' is suspended && echo 'it stays suspended'
alice 'banger resume -q busy'
lives && [ "$sum" = "$(digest)" ] && echo 'the memory is right'
alice 'banger rm -q --force busy'
rm -f /tmp/vmm
