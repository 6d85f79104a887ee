#!/bin/bash -eu
# A sandbox that was suspended because it idled wakes by a connection to its published port, and by a look-up of its name. The
# first connection is answered by the server that ran in it before.

alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
field() { alice 'banger show --json wakes' | sed -n "s/.*\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p"; }
# Asks the service only: the guest would be busy with answers.
is_suspended() { alice 'banger list --columns name,state' | grep -q '^wakes  *suspended'; }
sleeps() { wait_until 300 'the suspension' is_suspended; }

alice 'banger create -q --vcpu 1 --name wakes --idle suspend=1m -p 8765:80'
# A command that ends and leaves a server keeps no sandbox up.
alice 'banger exec wakes -- sh -c "echo awake > /tmp/page; cd /tmp; setsid python3 -m http.server 80 > /dev/null 2>&1 < /dev/null &"'
served() { [ "$(curl --silent --max-time 120 http://127.0.0.1:8765/page)" = awake ]; }
wait_until 60 'the server' served
sleeps
[ "$(ss -Hltn 'sport = :8765' | wc -l)" = 1 ] && echo 'its port is held'
served && echo 'the first connection is answered'
echo "the reason: $(field state_reason)"
served && echo 'and so is the next one'
sleeps
address=$(getent ahostsv4 wakes.alice.vm | sed -n '1s/ .*//p')
[ -n "$address" ] && echo 'its name is answered'
echo "the reason: $(field state_reason)"
[ "$(curl --silent --max-time 60 "http://$address/page")" = awake ] && echo 'it is there'
alice 'banger rm -q --force wakes'
