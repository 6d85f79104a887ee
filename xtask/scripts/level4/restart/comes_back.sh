#!/bin/bash -eu
# Kills the VMM of a sandbox whose policy starts it again, and then stops it.

# Without a session of logind: a new one waits for the end of the one before.
alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
field() { alice "banger show --json keep" | sed -n "s/.*\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p"; }
is_up_again() {
    again=$(field boot_id)
    [ -n "$again" ] && [ "$again" != "$boot" ] && [ "$(field ready)" = true ]
}

alice 'banger create -q --vcpu 1 --name keep; banger vm set --restart on-failure keep' > /dev/null
echo "policy $(field restart)"
boot=$(field boot_id)
kill -KILL "$(field main_pid)"
wait_until 180 'another boot' is_up_again
echo "$(field state) $(field state_reason)"
alice 'banger show keep' | sed -n 's/^state_reason *//p'
alice 'banger stop -q --force keep'
sleep 3
echo "then $(field state) $(field state_reason)"
alice 'banger rm -q --force keep'
