#!/bin/sh -eu
# Runs a command while stop_vmm.sh stops the VMM, and again after that.

rm -f /tmp/stop-it /tmp/go-on
banger vm create --quiet --name quiet
banger vm exec -T quiet -- sh -c 'echo up; exec sleep 1000' > up 2> said &
client=$!
wait_until 180 'the command' test -s up
touch /tmp/stop-it
status=0; wait $client || status=$?
echo "client: $status"
cat said
ready() { banger vm show --json quiet | grep -o '"ready": *[a-z]*'; }
is_ready() { ready | grep -q "$1"; }
await() {
    wait_until 180 "ready to be $1" is_ready "$1"
    echo "ready: $(ready)"
}
await false
touch /tmp/go-on
await true
banger vm exec -T quiet -- echo still there
banger vm delete --force quiet
