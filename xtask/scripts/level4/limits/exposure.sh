#!/bin/sh -eu
# Rates the confinement of a sandbox's unit, with what the shim proves in a unit of the same settings.
unit=$1

copy=/run/systemd/system/banger-proof.service
sed -e 's,^ExecStart=.*,ExecStart=/usr/libexec/banger/banger-shim --proof,' -e '/^StandardInput/d' \
    -e 's/^Type=.*/Type=oneshot/' -e 's/^User=.*/User=bgr-proof/' -e '/^Before=/d' "/run/systemd/transient/$unit" > $copy
systemctl daemon-reload
since=$(date +%s)
systemctl start banger-proof.service
journalctl --sync
journalctl --quiet --unit banger-proof.service --since "@$since" --output cat --identifier banger-shim > /tmp/proven
grep -q RestrictNamespaces=yes /tmp/proven
grep -q 'Seccomp:.2' "/proc/$(systemctl show --value --property MainPID "$unit")/status"
mkdir -p /tmp/exposure
cat $copy /tmp/proven > /tmp/exposure/banger-proof.service
rm -f $copy
systemctl daemon-reload
systemd-analyze security --no-pager "$unit" | tail -1
systemd-analyze security --no-pager --offline=yes --threshold=22 /tmp/exposure/banger-proof.service
