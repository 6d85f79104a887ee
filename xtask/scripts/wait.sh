#!/bin/sh -eu
# The one way in which our scripts wait for something.

# `wait_until SECONDS WHAT COMMAND…` repeats a command ten times a second until it succeeds. If that takes longer, it
# prints WHAT it waited for, and fails.
wait_until() {
    wait_end=$(($(date +%s) + $1))
    wait_what=$2
    shift 2
    until "$@"; do
        if [ "$(date +%s)" -ge "$wait_end" ]; then
            echo "waited in vain for $wait_what" >&2
            return 1
        fi
        sleep 0.1
    done
}

# Runs a command without its output and errors.
quietly() { "$@" > /dev/null 2>&1; }
