#!/bin/sh -eu
# Runs the service where it cannot see that systemd is running, and kills it once in between. Whatever happens, the usual
# service runs at the end.

systemctl stop banger-system.service
serve() {
    unshare --mount sh -ec 'mount -t tmpfs none /run/systemd; exec /usr/libexec/banger-system' 2> /tmp/plain.log &
    wait_until 180 'the service' quietly busctl status dev.banger.Manager1 || true
}
serve
first=$!
wait_until 600 'the request to kill' test -e /tmp/plain-kill || true
kill -KILL $first
wait $first || true
serve
rm -f /tmp/plain-kill
wait_until 600 'the end of the session' test -e /tmp/plain-done || true
kill $!
wait $! || true
rm -f /tmp/plain-done
systemctl start banger-system.service
