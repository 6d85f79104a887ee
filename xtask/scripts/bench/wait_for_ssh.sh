#!/bin/sh -eu
# Waits for the ssh server of a guest.
name=$1

wait_until 300 sshd banger vm ssh "$name" -- true
