#!/bin/sh -eu
# Kills a VMM as the kernel would.

pid=$(banger vm show alice/box --json | grep -o '"main_pid": *[0-9]*' | grep -o '[0-9]*$')
kill -KILL "$pid"
state() { banger vm show alice/box --json | grep -q "\"state\": \"$1\""; }
wait_until 180 'the failure' state failed
banger vm logs --vmm alice/box | tail -n 1
banger vm show alice/box | grep state_reason
banger vm stop alice/box
state stopped && echo stopped
banger vm stop alice/box
