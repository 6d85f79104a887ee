#!/bin/sh -eu
# Types into a shell on a terminal.

rm -f keys screen; mkfifo keys
script -qefc 'stty rows 33 cols 101; banger vm run --rm --quiet' screen < keys > screen.copy &
exec 3> keys
wait_until 180 'a prompt' grep -q '# ' screen
echo 'stty size; tty; exit 7' >&3
status=0; wait $! || status=$?
cat screen
echo status $status
