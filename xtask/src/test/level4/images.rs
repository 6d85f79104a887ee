//! Checks of imports: a confined worker turns archives into file systems that boot.

use anyhow::{Result, ensure};

use super::{Check, script};
use crate::{
    host::{self, Host},
    image::{self, bundle},
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("the tar of a root file system becomes an image that boots", tar_boots),
    ("an import runs as a user of its own and sees nothing of the host", import_is_confined),
    ("an import whose worker is killed fails and leaves nothing", killed_worker),
    ("the catalog of the package is listed, and says what is not published yet", packaged_catalog),
    ("an image that is exported and registered again is the same", exported),
    ("a bundle is registered with the name and the kernel that it names, and boots", bundled),
];

/// Checks the smallest image, which has no init: the agent stays the first process.
fn tar_boots(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("minimal")?)?;
    let tar = tar.display();
    let session = format!(
        "
        banger image register --shared --name tar --rootfs {tar}
        gzip -1 < {tar} > /tmp/rootfs.tar.gz
        banger image register --shared --name gzip --rootfs /tmp/rootfs.tar.gz
        rm /tmp/rootfs.tar.gz"
    );
    super::expect(&host.enter(&["sh", "-euc", &session]).output()?, 0)?;
    let out = script(
        host,
        "alice",
        "banger vm run --rm --image tar -- sh -c 'ls -l /bin/busybox; stat -f -c %T / || df -T /'",
    )?;
    ensure!(out.contains("busybox"), "{out:?}");
    // The same tar, compressed or not, is the same image.
    let digests = script(
        host,
        "alice",
        "for name in tar gzip; do banger image show $name --json | grep -o 'sha256:[0-9a-f]*'; done",
    )?;
    let mut digests = digests.lines();
    ensure!(digests.next() == digests.next(), "two imports of one tar differ");
    super::expect(
        &host.enter(&["sh", "-euc", "for name in tar gzip; do banger image delete $name; done"]).output()?,
        0,
    )?;
    Ok(())
}

fn packaged_catalog(host: &Host) -> Result<()> {
    let listed = script(host, "alice", "banger image list --available --refresh --json")?;
    let compact = listed.replace([' ', '\n'], "");
    let parts = ["\"name\":\"debian-bookworm\"", "\"catalog\":\"banger\"", "\"published\":false"];
    ensure!(parts.iter().all(|part| compact.contains(part)), "{listed}");
    let said = script(host, "alice", "banger image pull debian-bookworm 2>&1 || true")?;
    ensure!(said.contains("not published for this host yet") && said.contains("cargo xtask image"), "{said}");
    // The next run of the service reads the stored catalog.
    let again = "systemctl restart banger-system && banger kernel list --available --json";
    let kept = super::expect(&host.enter(&["sh", "-euc", again]).output()?, 0)?;
    ensure!(kept.replace(' ', "").contains("\"name\":\"debian\""), "{kept}");
    Ok(())
}

fn exported(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("minimal")?)?;
    let register = format!("banger image register --shared --name out --rootfs {}", tar.display());
    super::expect(&host.enter(&["sh", "-euc", &register]).output()?, 0)?;
    let session = "
        set -e; cd; rm -rf exported; mkdir exported; cd exported
        banger image export out --oci out.tar
        banger image export out --oci layout
        banger image register --name back --oci layout
        banger image export back --oci back.tar
        cmp out.tar back.tar && echo same
        banger image delete back
        cd; rm -rf exported";
    let said = script(host, "alice", session)?;
    ensure!(said.lines().any(|line| line == "same"), "{said}");
    super::expect(&host.enter(&["banger", "image", "delete", "out"]).output()?, 0)?;
    Ok(())
}

fn bundled(host: &Host) -> Result<()> {
    let (bundle, ..) = bundle::make("minimal")?;
    let place = format!("cp {} /tmp/bundle.tar.zst", host::inside(&bundle)?.display());
    super::expect(&host.enter(&["sh", "-euc", &place]).output()?, 0)?;
    let session = "
        banger image register --quiet --oci /tmp/bundle.tar.zst
        banger image show --json minimal | grep -q $(banger kernel show debian | sed -n 's,^id  *,,p') && echo its kernel
        banger vm run --quiet --rm --image minimal -- ls /bin/busybox
        banger image delete minimal";
    let said = script(host, "alice", session)?;
    super::expect(&host.enter(&["rm", "/tmp/bundle.tar.zst"]).output()?, 0)?;
    ensure!(said.lines().eq(["minimal", "its kernel", "/bin/busybox", "minimal: deleted"]), "{said:?}");
    Ok(())
}

/// Starts a long import, of a file of 4 GiB, and waits for its unit.
pub(super) const LONG: &str = "
    cd /tmp
    truncate -s 4G zeros
    tar -c zeros | zstd -q -1 > long.tar.zst
    rm zeros
    banger image register --name long --rootfs long.tar.zst > said 2>&1 &
    register=$!
    for n in $(seq 200); do
        unit=$(systemctl list-units --plain --no-legend 'banger-import-*' | cut -d ' ' -f 1)
        pid=0
        [ -z \"$unit\" ] || pid=$(systemctl show -p MainPID --value $unit)
        # The first worker only reads the beginning of the file, and ends soon.
        [ $pid = 0 ] || { sleep 0.5; [ -e /proc/$pid ] && break; }
        sleep 0.05
    done
    [ -n \"$unit\" ]
    # Wait until the worker has locked itself down.
    for n in $(seq 200); do [ $(grep -c 'Seccomp_filters:.*[2-9]' /proc/$pid/status) = 1 ] && break; sleep 0.05; done
";

fn import_is_confined(host: &Host) -> Result<()> {
    let look = format!(
        "{LONG}
        systemctl show -p DynamicUser -p PrivateNetwork -p CapabilityBoundingSet -p NoNewPrivileges $unit
        grep -e Uid: -e CapEff: -e CapBnd: -e NoNewPrivs: -e Seccomp: -e Groups: /proc/$pid/status
        [ $(readlink /proc/$pid/ns/net) != $(readlink /proc/1/ns/net) ] && echo own network
        echo etc: $(ls -A /proc/$pid/root/etc)
        for name in root tmp var home srv; do ls -A /proc/$pid/root/$name 2> /dev/null || true; done | sed 's/^/has /'
        readlink /proc/$pid/fd/* | sort -u
        systemctl kill -s KILL $unit
        wait $register || true
        rm long.tar.zst"
    );
    let out = super::expect(&host.enter(&["sh", "-euc", &look]).output()?, 0)?;
    let line = |key: &str| out.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
    for expected in [
        "DynamicUser=yes",
        "PrivateNetwork=yes",
        "CapabilityBoundingSet=",
        "NoNewPrivileges=yes",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "own network",
    ] {
        ensure!(out.lines().any(|found| found == expected), "no {expected:?} in {out}");
    }
    let user = line("Uid:").split_whitespace().nth(1).and_then(|user| user.parse::<u32>().ok());
    ensure!(user.is_some_and(|user| (61_184..=65_519).contains(&user)), "it runs as {user:?}");
    let programs_only = ["", "alternatives", "ld.so.cache"];
    let etc = line("etc:").split_off(4);
    ensure!(etc.split(' ').all(|name| programs_only.contains(&name)), "it sees {etc} in /etc");
    ensure!(["", "has tmp"].contains(&line("has").as_str()), "it {}", line("has"));
    Ok(())
}

fn killed_worker(host: &Host) -> Result<()> {
    let kill = format!(
        "{LONG}
        systemctl kill -s KILL $unit
        status=0; wait $register || status=$?
        cat said
        echo status $status
        rm long.tar.zst
        systemctl is-active banger-system
        ls -A /var/lib/banger/images | grep staging || echo nothing staged"
    );
    let out = super::expect(&host.enter(&["sh", "-euc", &kill]).output()?, 0)?;
    for expected in ["error:", "killed:9", "active", "nothing staged"] {
        ensure!(out.contains(expected), "no {expected:?} in {out}");
    }
    ensure!(!out.contains("status 0"), "{out}");
    Ok(())
}
