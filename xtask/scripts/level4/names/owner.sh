#!/bin/sh -eu
# Resolves the names of two sandboxes in one of them and on the host. The last line is the address of the other.

banger vm create --vcpu 1 --name one
banger vm create --vcpu 1 --name other
address=$(banger vm show other --json | grep -o '"address": *"[^"]*' | cut -d '"' -f 4)
banger vm exec other -- python3 -m http.server 4000 > served 2>&1 &
server=$!
knows() { banger vm exec one -- getent ahostsv4 "$1" | grep -q "^$address "; }
for name in other other.vm other.alice.vm; do
    wait_until 180 "the name $name" knows "$name"
done
banger vm exec one -- getent hosts "$address" | grep -q 'other.alice.vm$'
banger vm exec one -- curl -s -o /dev/null --retry 180 --retry-delay 1 --retry-connrefused http://other:4000
kill $server
resolvectl query --legend=no other.vm | grep -q "$address"
resolvectl query --legend=no "$address" | grep -q other.alice.vm
getent hosts other.alice.vm > /dev/null
resolvectl status banger0 | grep -q -- -DefaultRoute
echo "$address"
