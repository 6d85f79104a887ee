#!/bin/sh -eu
# Pulls both images of Debian and runs a command in each.

mkdir -p ~/.docker
echo '{"auths":{"localhost:5000":{"auth":"YWxpY2U6c2VjcmV0"}}}' > ~/.docker/config.json
for name in minbase debian; do banger image pull --quiet localhost:5000/team/$name:1; done
banger vm run --rm --quiet --image localhost:5000/team/minbase:1 -- cat /etc/os-release /proc/1/comm
# The agent answers before systemd has set its process name.
named='for n in $(seq 300); do grep systemd /proc/1/comm && exit; sleep 0.2; done'
banger vm run --rm --quiet --image localhost:5000/team/debian:1 -- sh -c "cat /etc/os-release; $named"
