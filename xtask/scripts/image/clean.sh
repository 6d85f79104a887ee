#!/bin/sh -eu
# Removes files that differ between two builds, or must differ between two sandboxes.
root=$1
epoch=$2

cd "$root"
rm -rf var/log/* var/cache/apt/* var/cache/ldconfig/* var/lib/apt/lists/* var/cache/debconf/*-old
rm -rf run/* tmp/* var/tmp/* etc/ssh/ssh_host_* root/.bash_history var/lib/systemd/random-seed
rm -f etc/resolv.conf etc/hostname var/lib/dpkg/*-old etc/*-
: > etc/machine-id
rm -f var/lib/dbus/machine-id
printf 'nameserver 127.0.0.53\n' > etc/resolv.conf
printf 'banger\n' > etc/hostname
mkdir -p root proc sys dev run tmp
chmod 1777 tmp var/tmp
if [ -d etc/systemd/system ]; then
    # No unit waits for a network that may never come, and nothing updates itself in the background.
    for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
        fstrim.timer dpkg-db-backup.timer systemd-networkd-wait-online.service getty@tty1.service; do
        ln -sf /dev/null "etc/systemd/system/$unit"
    done
    # Each sandbox makes its host keys at its first boot.
    if [ -e lib/systemd/system/ssh.service ]; then
        mkdir -p etc/systemd/system/ssh.service.d
        printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
            > etc/systemd/system/ssh.service.d/10-host-keys.conf
    fi
fi
if [ -e bin/busybox ] && [ ! -e lib/systemd ]; then
    for applet in $(bin/busybox --list); do
        [ -e "bin/$applet" ] || [ -e "usr/bin/$applet" ] || ln -s busybox "bin/$applet"
    done
    rm -f sbin/init bin/init usr/sbin/init usr/bin/init bin/linuxrc usr/bin/linuxrc
fi
find . -xdev -newermt "@$epoch" -exec touch --no-dereference --date="@$epoch" {} +
