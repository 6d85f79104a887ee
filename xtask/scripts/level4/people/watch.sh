#!/bin/sh -eu
# Runs a client of a desktop until the check has seen enough.
client=$1

/usr/bin/python3 -c "$client" > seen &
wait_until 900 'the end of the check' test -e /tmp/seen-enough
kill $!
cat seen
