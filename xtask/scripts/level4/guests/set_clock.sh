#!/bin/sh
# Sets the clock of the host to the time that it already shows: the kernel reports a change, and nothing else notices.

wait_until 600 'the request to set the clock' test -e /tmp/set-now || exit 1
rm -f /tmp/set-now
date --set "@$(date +%s.%N)"
