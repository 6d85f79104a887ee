#!/bin/sh
# Stops the VMM of a sandbox, and lets it go on, when a session asks for it by a file.

wait_until 600 'the request to stop' test -e /tmp/stop-it || exit 1
vmm=$(pgrep -f '^/usr/bin/qemu-system.* -name banger-quiet')
kill -STOP "$vmm"
wait_until 600 'the request to go on' test -e /tmp/go-on
kill -CONT "$vmm"
