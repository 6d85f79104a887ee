#!/bin/bash -eu
# Kills VMMs and the service, and prints what banger reports.

pid() { banger vm show --json "alice/$1" | sed -n 's/.*"main_pid": *\([0-9]*\).*/\1/p'; }
state() { banger vm show --json "alice/$1" | sed -n 's/.*"\(state\|state_reason\)": *"\([^"]*\)".*/\2/p' | tr '\n' ' '; }
taps() { ip -o link | grep -o 'bgr-[0-9a-f]*' | sort -u | wc -l; }
has_taps() { [ "$(taps)" = "$1" ]; }
has_state() { [ "$(state two)" ]; }
has_failed() { state one | grep -q failed; }
have_stopped() { state two | grep -q stopped && state three | grep -q stopped; }
service() { systemctl show --property MainPID --value banger-system.service; }
kill -KILL "$(pid one)"
wait_until 180 'the end of one interface' has_taps 2
wait_until 180 'the end of one sandbox' has_failed
echo "monitor: $(state one) taps $(taps)"
kill -KILL "$(service)"
wait_until 180 'the service' has_state
echo "service: $(state two) taps $(taps)"
kill -KILL "$(service)" "$(pid two)" "$(pid three)"
wait_until 180 'the end of the sandboxes' have_stopped
wait_until 180 'the end of all interfaces' has_taps 0
echo "both: $(state two) $(state three) taps $(taps)"
banger vm start alice/two > /dev/null
echo "again: $(state two) taps $(taps)"
banger vm delete --force alice/one alice/two alice/three > /dev/null
