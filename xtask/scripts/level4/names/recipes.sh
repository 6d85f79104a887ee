#!/bin/sh -eu
# Follows the recipes of docs/network.md for hosts without systemd-resolved.
address=$1

cd "$(mktemp -d)"
gateway=$(ip -4 -oneline address show dev banger0 | sed 's,.*inet \([0-9.]*\).*,\1,')
subnet=${gateway%.*.*}.0.0/16
# Only the name servers in resolv.conf are asked.
echo 'hosts: dns' > nsswitch.conf
ask() {
    unshare --mount sh -euc '
        mount --bind resolv.conf /etc/resolv.conf; mount --bind nsswitch.conf /etc/nsswitch.conf; getent "$@"' ask "$@"
}
echo "server=/vm/$gateway
rev-server=$subnet,$gateway
bind-dynamic
listen-address=127.0.0.9
no-resolv
user=nobody" > dnsmasq.conf
dnsmasq --keep-in-foreground --conf-file=dnsmasq.conf &
dnsmasq=$!
echo 'nameserver 127.0.0.9' > resolv.conf
answers() { ask ahostsv4 asked.vm > seen; }
wait_until 180 dnsmasq answers
grep -q "^$address " seen && echo dnsmasq knows the name
ask hosts "$address" | grep -q 'asked.alice.vm$' && echo dnsmasq knows the address
! ask ahostsv4 nobody.vm && echo dnsmasq knows no other
kill $dnsmasq
printf 'nameserver %s\nnameserver 127.0.0.53\n' "$gateway" > resolv.conf
ask ahostsv4 asked.vm | grep -q "^$address " && echo resolv.conf knows the name
# The first server refuses the question, so the second one is asked. systemd-resolved reads the file again after a while.
echo '192.0.2.7 elsewhere.test' >> /etc/hosts
knows_another() { quietly ask ahostsv4 elsewhere.test; }
wait_until 180 'the line in the file' knows_another
ask ahostsv4 elsewhere.test | grep -q '^192.0.2.7 ' && echo resolv.conf goes on
sed -i '/elsewhere.test/d' /etc/hosts
