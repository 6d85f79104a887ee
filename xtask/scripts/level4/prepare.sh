#!/bin/sh -eu
# Configures a host for the checks.

mkdir -p /etc/banger
printf '[vm_defaults]
vcpu = 1
[registry]
local_ports = [5000]
' > /etc/banger/config.toml
systemctl try-restart banger-system
# Most checks need no more of a boot than the agent, and systemd takes four times as long under emulation.
for user in alice bob carol dave; do
    install -d -o $user -g $user /home/$user/.config /home/$user/.config/banger
    echo 'wait = "agent"' > /home/$user/.config/banger/config.toml
done
