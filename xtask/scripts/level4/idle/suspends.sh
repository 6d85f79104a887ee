#!/bin/bash -eu
# A sandbox with a detached command stays up beyond the time of its idle policy, and is suspended after the command has
# ended. A command resumes it.

alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
field() { alice 'banger show --json idle' | sed -n "s/.*\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p"; }
# Asks the service only: the guest would be busy with answers.
is_suspended() { alice 'banger list --columns name,state' | grep -q '^idle  *suspended'; }
has() { [ "$(field "$1")" = "$2" ]; }

alice 'banger create -q --vcpu 1 --name idle --idle suspend=1m'
alice 'banger exec -d idle -- sleep 200' > /dev/null
wait_until 180 'the look at the command' has busy_with commands && echo 'busy with commands'
sleep 60
has state running && echo 'the command keeps it up'
wait_until 300 'the suspension' is_suspended
echo "the reason: $(field state_reason)"
alice 'banger show idle' | grep -o 'idle for 1 minute'
[ "$(alice 'banger exec idle -- echo woken')" = woken ] && has booted_from suspension && echo 'woken'
alice 'banger vm set --idle off idle'
has idle_action '' && echo 'no policy'
alice 'banger rm -q --force idle'
