#!/bin/sh -eu
# Types dave's password.

rm -f keys screen; mkfifo keys
script -qefc 'banger vm run --rm --quiet -- id -un' screen < keys > screen.copy &
exec 3> keys
wait_until 180 'the prompt' grep -q Password screen
echo dave >&3
wait $!
cat screen
