#!/bin/bash -eu
# Tries to reach sandboxes from a process and from a guest of their owner.
# shellcheck disable=SC2154 # tools.sh comes first and sets knock.
a1=$1
a2=$2
b1=$3

echo "alice: $(knocks "$a1" 22)"
in_guest a1 "$knock; echo a1 to a2: \$(knocks $a2 22); echo a1 to b1: \$(knocks $b1 22)"
in_guest a1 'ip addr add 172.30.77.77/32 dev eth0'
spoof=0; in_guest a1 "curl -s -m 3 --interface 172.30.77.77 telnet://$a2:22" < /dev/null || spoof=$?
echo "a1 in another name: $spoof"
