#!/bin/bash -eu
# Asks for the internet in a guest with and without NAT.
# shellcheck disable=SC2154 # tools.sh comes first and sets knock.

create box
get() { in_guest box 'curl -s -m 30 http://203.0.113.2/ || echo nothing'; }
echo "without: $(get)"
banger vm set --nat box
echo "with: $(get)"
in_guest box "$knock; echo host by its name outside: \$(knocks 203.0.113.1 8000)"
in_guest box "$knock; echo host as gateway: \$(knocks 172.30.0.1 8000)"
banger vm set --no-nat box
echo "again without: $(get)"
banger vm stop box
banger vm set --nat box
banger vm start box
echo "after a start: $(get)"
banger vm delete --force box
