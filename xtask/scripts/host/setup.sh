#!/bin/sh -eu
# Creates the file system of the private host and becomes its systemd. Runs in its namespaces. `cache` is what it sees
# of the developer's host beside the file system, at `inside`; `resolved` has the files of systemd-resolved.
directory=$1
cache=$2
inside=$3
resolved=$4

memory=$directory/memory
root=$memory/root
mkdir -p "$memory"
mount -t tmpfs -o size=75%,mode=755 banger-host "$memory"
mkdir "$memory/upper" "$memory/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$memory/upper,workdir=$memory/work" overlay "$root"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"

mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/tty" c 5 0
mknod -m 660 "$root/dev/loop-control" c 10 237
for n in 0 1 2 3 4 5 6 7; do mknod -m 660 "$root/dev/loop$n" b 7 "$n"; done
mkdir "$root/dev/net" "$root/dev/pts" "$root/dev/shm"
mknod -m 666 "$root/dev/net/tun" c 10 200
if [ -e /dev/kvm ]; then mknod -m 666 "$root/dev/kvm" c 10 232; fi
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"

# A host of its own: a name, an identity, and none of this machine's services.
hostname private-host
echo private-host > "$root/etc/hostname"
rm -f "$root/etc/machine-id" "$root/etc/fstab"
tr -d - < /proc/sys/kernel/random/uuid > "$root/etc/machine-id"
: > "$root/etc/fstab"
find "$root/etc/systemd/system" -mindepth 1 -delete
for unit in systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
    systemd-udev-trigger.service systemd-udev-settle.service systemd-networkd.service systemd-networkd.socket \
    systemd-modules-load.service systemd-sysctl.service systemd-hwdb-update.service systemd-firstboot.service \
    systemd-random-seed.service systemd-remount-fs.service systemd-tmpfiles-setup-dev.service \
    systemd-journald-audit.socket systemd-binfmt.service systemd-sysusers.service ldconfig.service \
    systemd-update-utmp.service systemd-machine-id-commit.service kmod-static-nodes.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount \
    systemd-ask-password-wall.path getty.target getty-static.service modprobe@.service \
    systemd-tmpfiles-clean.timer apt-daily.timer apt-daily-upgrade.timer man-db.timer fstrim.timer \
    e2scrub_all.timer dpkg-db-backup.timer; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# systemd-resolved, as on a desktop. The link that is /etc/resolv.conf then comes from its tmpfiles.d.
cp -a "$resolved/." "$root/"
chroot "$root" systemd-sysusers systemd-resolve.conf
systemctl --quiet --root="$root" enable systemd-resolved.service
rm -f "$root/etc/resolv.conf"

cp -a "$directory/install/." "$root/"
mkdir -p "$root/var/lib/banger"
rm -rf "$root/var/log/journal"
mount --bind "$directory/state" "$root/var/lib/banger"
chmod 711 "$root/var/lib/banger"

mkdir -p "$root/$(dirname "$inside")"
chmod 700 "$root/$(dirname "$inside")"
mkdir -p "$root/$inside"
mount --bind "$cache" "$root/$inside"
mount -o remount,bind,ro "$root/$inside"

# alice and bob may use sandboxes, carol may not, dave may do everything after authentication.
chroot "$root" groupadd --force --system banger
for user in alice bob carol dave; do
    chroot "$root" useradd --create-home --shell /bin/bash "$user" 2> /dev/null || true
    echo "$user:$user" | chroot "$root" chpasswd
done
chroot "$root" usermod -aG banger alice
chroot "$root" usermod -aG banger bob
chroot "$root" usermod -aG sudo dave

cd "$root"
mkdir -p old-root
pivot_root . old-root
umount -l /old-root
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target
