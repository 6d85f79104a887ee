//! Checks of kernel modules: guests have them all, the kernel loads them on demand, and containers run.

use anyhow::{Result, ensure};

use super::{Check, expect, script};
use crate::{
    host::{self, Host},
    image,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("the kernel loads modules in an image without kmod", without_kmod),
    ("docker and podman run containers with published ports", containers),
    ("a kernel without the drivers for its root is refused at import", no_drivers),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] =
    &[("a guest has all modules of its kernel, and systemd reports no failure", all_modules)];

fn all_modules(host: &Host) -> Result<()> {
    let session = r#"
        banger vm create --quiet --name mods
        banger vm exec mods -- sh -ec '
            until [ -S /run/systemd/private ]; do sleep 0.2; done
            echo "system: $(systemctl is-system-running --wait)"
            systemctl --failed --no-legend --plain
            dir=/usr/lib/modules/$(uname -r)
            test -s $dir/modules.dep.bin && touch $dir/x 2> /dev/null || echo read-only
            echo "lost: $(ls $dir | grep -c lost || true)"
            for name in bridge br_netfilter veth nf_tables nft_chain_nat xt_MASQUERADE wireguard fuse overlay tun loop \
                dm_mod btrfs squashfs nfs binfmt_misc; do
                modprobe $name || echo "no $name"
            done
            ip link add wg0 type wireguard && ip -oneline link show wg0
            ip link add br0 type bridge && ip -oneline link show br0
            ls -l /dev/fuse /dev/net/tun /dev/loop-control
            echo "alias: $(modprobe --resolve-alias fs-fuse) $(modprobe --show-depends br_netfilter | wc -l)"' > said
        cat said
        banger kernel show debian | grep module_tree_size
        banger vm delete --force --quiet mods"#;
    let out = script(host, "alice", session)?;
    let has = |text: &str| out.lines().any(|line| line.contains(text));
    for expected in [
        "system: running",
        "read-only",
        "lost: 0",
        "wg0:",
        "br0:",
        "/dev/fuse",
        "/dev/net/tun",
        "alias: fuse",
    ] {
        ensure!(has(expected), "no {expected:?} in {out:?}");
    }
    ensure!(!has("no "), "modules are missing: {out:?}");
    Ok(())
}

/// Checks an image that has only busybox, and no `modprobe` where the kernel looks for it.
fn without_kmod(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("minimal")?)?;
    let register = format!("banger image register --shared --name bare --rootfs {}", tar.display());
    expect(&host.enter(&["sh", "-euc", &register]).output()?, 0)?;
    let session = r#"
        banger vm run --quiet --rm --image bare -- sh -c '
            ls /lib/modules/$(uname -r)/modules.dep
            cat /proc/sys/kernel/modprobe
            # Opening a device loads its module, and so does naming a file system, even if the mount fails.
            head -c 0 /dev/fuse
            for kind in squashfs nfs; do mount -t $kind none /mnt 2> /dev/null; done
            for name in fuse squashfs nfs sunrpc; do grep -o "^$name " /proc/modules; done
            true'"#;
    let out = script(host, "alice", session)?;
    expect(&host.enter(&["banger", "image", "delete", "bare"]).output()?, 0)?;
    for expected in ["modules.dep", "/run/banger-modprobe", "fuse", "squashfs", "nfs", "sunrpc"] {
        ensure!(out.lines().any(|line| line.trim().ends_with(expected)), "no {expected:?} in {out:?}");
    }
    Ok(())
}

/// Runs containers from an image that is built from a tar, so nothing is downloaded.
fn containers(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("containers")?)?;
    let register = format!("banger image register --shared --name containers --rootfs {}", tar.display());
    expect(&host.enter(&["sh", "-euc", &register]).output()?, 0)?;
    let session = r#"
        banger vm create --quiet --memory 2G --image containers --name ship
        banger vm exec ship -- sh -ec '
            until [ -S /run/systemd/private ]; do sleep 0.2; done
            systemctl is-system-running --wait || true
            mkdir -p /tmp/root/bin /tmp/root/www
            cp /bin/busybox /tmp/root/bin/
            echo content > /tmp/root/www/index.html
            tar -C /tmp/root -cf /tmp/box.tar . && chmod 644 /tmp/box.tar
            serve="-p PORT:80 box /bin/busybox httpd -f -p 80 -h /www"
            ask() { curl -sf --retry 20 --retry-connrefused --retry-all-errors --retry-delay 1 http://127.0.0.1:$1/; }
            systemctl start docker
            docker import /tmp/box.tar box > /dev/null
            # The image has no apparmor_parser, which Debian only recommends.
            docker run -d --security-opt apparmor=unconfined $(echo $serve | sed s/PORT/8080/) > /dev/null
            echo "docker: $(ask 8080) $(docker info --format "{{.Driver}} {{.CgroupVersion}}")"
            podman import --quiet /tmp/box.tar box > /dev/null
            podman run -d $(echo $serve | sed s/PORT/8081/) > /dev/null
            echo "podman: $(ask 8081)"
            touch /etc/subuid /etc/subgid
            useradd --create-home --shell /bin/sh dev
            loginctl enable-linger dev
            until [ -d /run/user/$(id -u dev) ]; do sleep 0.2; done
            runuser -l dev -c "export XDG_RUNTIME_DIR=/run/user/$(id -u dev); cd
                podman import --quiet /tmp/box.tar box > /dev/null
                podman run -d $(echo $serve | sed s/PORT/8082/) > /dev/null"
            echo "rootless: $(ask 8082)"' > said 2>&1 || echo failed
        cat said
        banger vm delete --force --quiet ship"#;
    let out = script(host, "alice", session)?;
    expect(&host.enter(&["banger", "image", "delete", "containers"]).output()?, 0)?;
    for expected in ["docker: content overlay2 2", "podman: content", "rootless: content"] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out}");
    }
    Ok(())
}

/// Imports Debian's kernel without its modules, which contain the drivers.
fn no_drivers(host: &Host) -> Result<()> {
    let kernel = image::kernel::ensure()?;
    let vmlinuz = host::inside(&kernel.vmlinuz)?;
    let import =
        format!("banger kernel import --name lone --vmlinuz {} 2>&1 && echo taken", vmlinuz.display());
    let out = super::text(&host.enter(&["sh", "-c", &import]).output()?.stdout);
    ensure!(out.contains("no virtio_blk") && !out.contains("taken"), "{out:?}");
    Ok(())
}
