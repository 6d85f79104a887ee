#!/bin/sh -eu
# Functions of the checks of ssh.

# Starts the ssh server in a guest whose init does not.
serve() { banger vm exec "$1" -- sh -c 'mkdir -p /run/sshd; exec /usr/sbin/sshd'; }
