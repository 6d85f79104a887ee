#!/bin/bash -eu
# Does what a boot of the host does: no VMM, an empty /run/banger, and the units that the boot wants.

# Without a session of logind: a new one waits for the end of the one before.
alice() { HOME=/home/alice runuser -u alice -- sh -c "cd; $1"; }
field() { alice "banger show --json $1" | sed -n "s/.*\"$2\": \"\{0,1\}\([^\",]*\).*/\1/p"; }
is_up() { [ "$(field first ready)" = true ]; }
boot() {
    systemctl stop banger-system.service 'banger-vm-*.service'
    rm -f /run/banger/has-run
    systemctl start banger-autostart.service
}

alice 'banger create -q --no-start --vcpu 1 --autostart --name first; banger create -q --vcpu 1 --name other'
systemctl show --property Wants multi-user.target | grep -q banger-autostart.service && echo 'wanted by the boot'
boot
wait_until 180 'the service' quietly systemctl is-active banger-system.service && echo 'the service is started'
wait_until 180 'the first sandbox' is_up
echo "first $(field first state) $(field first state_reason)"
echo "other $(field other state) $(field other state_reason)"
# A restart of the service is no boot.
alice 'banger stop -q --force first'
systemctl restart banger-system.service
sleep 3
echo "after a restart $(field first state) $(field first state_reason)"
alice 'banger rm -q --force first other'
boot
quietly systemctl is-active banger-system.service || echo 'the service is not started'
