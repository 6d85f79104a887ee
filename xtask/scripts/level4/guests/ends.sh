#!/bin/sh -eu
# Ends a guest in each way, and prints what banger reports.

show() { banger vm show --json box | sed -n "s/^ *\"$1\": *\"\([^\"]*\)\".*/\1/p"; }
how() { echo "$(show state) $(show state_reason)"; }
is() { [ "$(how)" = "$1" ]; }
await() {
    wait_until 240 "$1" is "$1" || true
    echo "$2: $(how)"
}
booted_up() {
    wait_until 180 'the end of the boot' quietly banger vm exec box -- systemctl is-active -q multi-user.target
}
# systemd accepts requests once its socket exists.
end() {
    banger vm exec box -- sh -c 'until [ -S /run/systemd/private ]; do sleep 0.2; done' > /dev/null 2>&1 || true
    timeout 180 banger vm exec box -- sh -c "$1" > /dev/null 2>&1 || true
}
booted() {
    has_rebooted() { now=$(banger vm exec box -- cat /proc/sys/kernel/random/boot_id 2> /dev/null) && [ "$now" != "$1" ]; }
    wait_until 240 'a new boot' has_rebooted "$1"
    if [ "$now" ] && [ "$now" != "$1" ] && [ "$now" = "$(show boot_id)" ]; then echo "$2: a new boot id"; fi
}
banger vm create --quiet --name other
echo "first: $(banger vm exec other -- hostname)"
banger vm rename other box
first=$(show boot_id)
banger vm exec box -- sh -c 'echo kept > kept; exec sleep 1000' > /dev/null 2>&1 &
wait_until 180 'a file of the guest' quietly banger vm exec box -- cat kept
booted_up
end 'systemctl reboot'
booted "$first" reboot
echo "kept: $(banger vm exec box -- cat kept)"
echo "after a reboot: $(how)"
echo "renamed: $(banger vm exec box -- sh -c 'hostname; getent hosts box | grep -c box')"
banger vm exec box -- sh -c 'exec 3> open; exec sleep 1000' > /dev/null 2>&1 &
wait_until 180 'a file of the guest' quietly banger vm exec box -- test -e open
booted_up
end 'systemctl poweroff'
await 'stopped guest-shutdown' poweroff
banger vm logs box > log
echo "unmounted: $(grep -c 'Failed unmounting' log) $(grep -c 'Power down' log)"
banger vm start --quiet box
echo "start: $(how)"
first=$(show boot_id)
end 'systemctl poweroff; until [ -e /run/banger-stopping ]; do sleep 0.05; done'
banger vm start --quiet box
booted "$first" "start while it shuts down"
timeout 180 banger vm exec box -- sh -c 'echo c > /proc/sysrq-trigger' > /dev/null 2>&1 || true
await 'failed guest-panic' panic
banger vm start --quiet box
end 'systemctl halt'
await 'stopped guest-halt' halt
banger vm delete --force box
