#!/bin/sh -eu
# Installs the self-test, and makes what it tries to reach: files, sockets, processes and devices of others.
program=$1

libexec=/usr/libexec/banger
install -m 755 "$program" $libexec/confinement
echo secret > /home/alice/secret
echo secret > /root/secret
chown alice /home/alice/secret
listener='import signal, socket
s = socket.socket(socket.AF_UNIX)
s.bind("\0confinement-of-bob")
s.listen()
signal.pause()'
systemd-run --quiet --collect --unit=confinement-target --property=User=bob python3 -c "$listener"
listens() { grep -q '@confinement-of-bob' /proc/net/unix; }
wait_until 60 'the process of bob' listens

mknod /dev/mem c 1 1
mknod /dev/port c 1 4
mknod /dev/kmsg c 1 11
mknod /dev/fuse c 10 229
# The first disk of the host.
# shellcheck disable=SC2046 # They are two words.
mknod /dev/disk-of-the-host b $(awk 'NR > 2 { print $1, $2; exit }' /proc/partitions)

id=$(banger vm show --json bob/neighbour | grep -o 'banger-vm-[0-9a-f]*' | head -n 1 | sed 's/banger-vm-//')
{
    find "/var/lib/banger/vms/$id" -type f -printf 'file %p\n'
    echo file /var/lib/banger/db/banger.sqlite
    find "/run/banger/vm/$id" -type s -printf 'socket %p\n'
    echo socket /run/dbus/system_bus_socket
    echo socket /run/systemd/private
    echo abstract confinement-of-bob
    echo secret /home/alice/secret
    echo secret /root/secret
    echo "process $(systemctl show --property MainPID --value confinement-target)"
} > $libexec/confinement.targets
