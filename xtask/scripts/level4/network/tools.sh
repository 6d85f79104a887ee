#!/bin/bash -eu
# Functions of the scripts of users. `knocks` prints `open`, `refused` or `silent`.

create() { banger vm create --quiet --vcpu 1 --memory 512MiB --name "$@"; }
address() { banger vm show --json "$1" | sed -n 's/.*"address": *"\([^"]*\)".*/\1/p'; }
in_guest() { guest=$1; shift; banger vm exec "$guest" -- bash -c "$*"; }
knock='knocks() {
    status=0
    timeout 15 bash -c "exec 3<> /dev/tcp/$1/$2" 2> /dev/null || status=$?
    case $status in 0) echo open;; 124) echo silent;; *) echo refused;; esac
}'
eval "$knock"
is_open() { [ "$(knocks "$1" 22)" = open ]; }
await_ssh() { wait_until 180 sshd is_open "$1"; }
serve() { banger vm exec "$1" -- sh -c 'mkdir -p /run/sshd; exec /usr/sbin/sshd'; }
