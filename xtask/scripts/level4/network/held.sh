#!/bin/bash -eu
# Checks that port 8022 of loopback reaches `alice/web` and nothing else that listens there. While the service is down,
# nobody else can bind the port. If the service cannot bind it again, the port no longer reaches the guest.

http() {
    systemd-run --quiet --collect --unit="$1" --property=Type=exec \
        /usr/bin/python3 -m http.server --bind "$2" --directory /tmp/www 8022
}
says() { head -c 4 < /dev/tcp/127.0.0.1/8022 2> /dev/null || echo closed; }
blocked() { banger vm show --json alice/web | tr -d '[:space:]' | grep -o '"blocked_ports":\[[^]]*' | grep -c host_port || true; }
bind() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 8022))' 2> /dev/null && echo taken || echo held; }
running() { wait_until 180 'the service' quietly banger vm list --all-users; }
http neighbour 127.0.1.1
wait_until 180 'the neighbour' curl -s -o /dev/null http://127.0.1.1:8022/
echo "a service at 127.0.1.1: $(curl -s http://127.0.1.1:8022/)"
systemctl stop neighbour
kill -KILL "$(systemctl show --property MainPID --value banger-system.service)"
running
echo "killed: $(says) $(blocked)"
systemctl stop banger-system
echo "stopped: $(says) $(bind)"
http thief 127.0.0.1
wait_until 180 'the thief' curl -s -o /dev/null http://127.0.0.1:8022/
systemctl start banger-system
running
echo "taken: $(curl -s http://127.0.0.1:8022/) $(blocked)"
systemctl stop thief
# The kernel keeps the port of a server that hung up first for a minute.
wait_until 180 'the port' quietly banger vm publish alice/web 8022:22
echo "published again: $(says) $(blocked)"
