#!/bin/bash -eu
# Starts a network behind the host, with a server that answers `internet` on port 80, and a server of the host on port
# 8000 of every address, which no guest may reach.

ip netns add internet
ip link add up0 type veth peer name up1 netns internet
ip addr add 203.0.113.1/24 dev up0
ip link set up0 up
ip route add default via 203.0.113.2
ip -n internet addr add 203.0.113.2/24 dev up1
ip -n internet link set up1 up
ip -n internet link set lo up
mkdir -p /tmp/www
echo internet > /tmp/www/index.html
serve() {
    unit=$1 port=$2
    shift 2
    systemd-run --quiet --collect --unit="$unit" --property=Type=exec "$@" \
        /usr/bin/python3 -m http.server --directory /tmp/www "$port"
}
serve internet-server 80 ip netns exec internet
serve host-server 8000 env
serves() { echo > "/dev/tcp/$1/$2"; }
wait_until 180 'the server in the internet' serves 203.0.113.2 80
wait_until 180 'the server of the host' serves 127.0.0.1 8000
