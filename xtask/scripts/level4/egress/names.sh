#!/bin/bash -eu
# Starts a name server in the network behind the host, and makes the host ask it. `other.test` is a second server, and
# `rebind.internet.test` one with a private address, which the host reaches.

ip -n internet addr add 203.0.113.3/24 dev up1
ip -n internet addr add 10.0.0.1/32 dev lo
systemd-run --quiet --collect --unit=internet-names --property=Type=exec ip netns exec internet \
    /usr/sbin/dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file=/dev/null --pid-file= \
    --address=/internet.test/203.0.113.2 --address=/other.test/203.0.113.3 \
    --address=/rebind.internet.test/10.0.0.1
mv /etc/resolv.conf /etc/resolv.conf.before
echo 'nameserver 203.0.113.2' > /etc/resolv.conf
answers() { ip netns exec internet python3 -c 'import socket; socket.create_connection(("203.0.113.2", 53), 5)'; }
wait_until 180 'the name server in the internet' quietly answers
