#!/bin/sh -eu
# Looks up a name that only the internet has, on a terminal.

look='python3 -c "import socket; socket.getaddrinfo(\"example.org\", 80)" 2> /dev/null'
on_terminal() { script -qec "$1" /dev/null < /dev/null | tr -d '\r' || true; }
banger vm create --quiet --vcpu 1 --name box
echo "failed: $(on_terminal "banger vm exec -T box -- sh -c '$look'" | grep -c 'has no internet access')"
on_terminal "banger vm exec -T box -- sh -c '$look'" | grep 'note:'
echo "succeeded: $(on_terminal "banger vm exec -T box -- sh -c '$look || true'" | grep -c 'has no internet access')"
echo "in a pipe: $(banger vm exec box -- sh -c "$look" 2>&1 | grep -c 'has no internet access')"
echo "without a look-up: $(on_terminal 'banger vm exec -T box -- false' | grep -c 'has no internet access')"
banger vm delete --quiet --force box
banger doctor | grep 'internet:' || true
