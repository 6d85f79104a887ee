#!/bin/sh -eu
# Makes the unpacked Debian packages in `root` a host that can be reached: its users, its network and its SSH server.
# `key` is the file with the public key that may log in as root.
root=$1
key=$2

cd "$root"

printf 'test-host\n' > etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 test-host\n' > etc/hosts
printf '/dev/vda / ext4 defaults 0 1\n' > etc/fstab
: > etc/machine-id
rm -rf var/lib/apt/lists/* var/cache/apt/* var/log/* run/* tmp/*

# alice and bob may use sandboxes, carol may not, dave may do everything after authentication.
# The group is the one that banger's package would make.
chroot . groupadd --force --system banger
for user in alice bob carol dave; do
    chroot . useradd --create-home --shell /bin/bash "$user"
    echo "$user:$user" | chroot . chpasswd
done
chroot . usermod -aG banger alice
chroot . usermod -aG banger bob
chroot . usermod -aG sudo dave

# The address is the one that QEMU's network gives.
cat > etc/systemd/network/10-qemu.network << 'END'
[Match]
Driver=virtio_net
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
DNS=10.0.2.3
END
ln -sf /run/systemd/resolve/stub-resolv.conf etc/resolv.conf

# Root comes in by its key, without a session: sessions are made for the commands of users.
mkdir -p root/.ssh
chmod 700 root/.ssh
cat "$key" > root/.ssh/authorized_keys
cat > etc/ssh/sshd_config.d/test-host.conf << 'END'
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxSessions 100
END
rm -f etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -C test-host -f etc/ssh/ssh_host_ed25519_key

systemctl --root=. --quiet enable systemd-networkd.service systemd-resolved.service ssh.service
systemctl --root=. --quiet mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer systemd-tmpfiles-clean.timer

# What is put into `share` of the test host's directory is here, read-only.
mkdir -p host
cat > etc/systemd/system/host.mount << 'END'
[Mount]
What=host
Where=/host
Type=9p
Options=trans=virtio,version=9p2000.L,msize=512000,ro,cache=none
END
