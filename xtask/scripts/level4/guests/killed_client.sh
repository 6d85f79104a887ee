#!/bin/sh -eu
# Kills a client whose sandbox is a throw-away one.

is_gone() { ! quietly banger vm show doomed; }
banger vm run --rm --name doomed -- sh -c 'echo up; sleep 1000' > said &
wait_until 180 'the command' grep -q up said
banger vm show doomed --json | grep -q '"ready": *true'
kill -KILL $!
wait_until 180 'the end of the sandbox' is_gone
