//! Checks of imports: a confined worker turns archives into file systems that boot.

use anyhow::{Result, ensure};

use super::{Check, run_as, run_as_root, sh, sh_as_root};
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
    run_as_root(host, &script!("level4/images/tar_boots.sh", tar = tar.display()))?;
    let out = sh(
        host,
        "alice",
        "banger vm run --rm --image tar -- sh -c 'ls -l /bin/busybox; stat -f -c %T / || df -T /'",
    )?;
    ensure!(out.contains("busybox"), "{out:?}");
    // The same tar, compressed or not, is the same image.
    let digests = sh(
        host,
        "alice",
        "for name in tar gzip; do banger image show $name --json | grep -o 'sha256:[0-9a-f]*'; done",
    )?;
    let mut digests = digests.lines();
    ensure!(digests.next() == digests.next(), "two imports of one tar differ");
    sh_as_root(host, "for name in tar gzip; do banger image delete $name; done")?;
    Ok(())
}

fn packaged_catalog(host: &Host) -> Result<()> {
    let listed = sh(host, "alice", "banger image list --available --refresh --json")?;
    let compact = listed.replace([' ', '\n'], "");
    let parts = ["\"name\":\"debian-bookworm\"", "\"catalog\":\"banger\"", "\"published\":false"];
    ensure!(parts.iter().all(|part| compact.contains(part)), "{listed}");
    let said = sh(host, "alice", "banger image pull debian-bookworm 2>&1 || true")?;
    ensure!(
        said.contains("not published for this host yet")
            && said.contains("banger image build debian-bookworm"),
        "{said}"
    );
    // The next run of the service reads the stored catalog.
    let again = "systemctl restart banger-system && banger kernel list --available --json";
    let kept = sh_as_root(host, again)?;
    ensure!(kept.replace(' ', "").contains("\"name\":\"debian\""), "{kept}");
    Ok(())
}

fn exported(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("minimal")?)?;
    let register = format!("banger image register --shared --name out --rootfs {}", tar.display());
    sh_as_root(host, &register)?;
    let said = run_as(host, "alice", &script!("level4/images/exported.sh"))?;
    ensure!(said.lines().any(|line| line == "same"), "{said}");
    run_as_root(host, &["banger", "image", "delete", "out"])?;
    Ok(())
}

fn bundled(host: &Host) -> Result<()> {
    let (bundle, ..) = bundle::make("minimal")?;
    let place = format!("cp {} /tmp/bundle.tar.zst", host::inside(&bundle)?.display());
    sh_as_root(host, &place)?;
    let said = run_as(host, "alice", &script!("level4/images/bundled.sh"))?;
    run_as_root(host, &["rm", "/tmp/bundle.tar.zst"])?;
    ensure!(said.lines().eq(["minimal", "its kernel", "/bin/busybox", "minimal: deleted"]), "{said:?}");
    Ok(())
}

fn import_is_confined(host: &Host) -> Result<()> {
    let look = script!("level4/images/import_is_confined.sh" uses "wait.sh" + "level4/images/long.sh");
    let out = run_as_root(host, &look)?;
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
    let kill = script!("level4/images/killed_worker.sh" uses "wait.sh" + "level4/images/long.sh");
    let out = run_as_root(host, &kill)?;
    for expected in ["error:", "killed:9", "active", "nothing staged"] {
        ensure!(out.contains(expected), "no {expected:?} in {out}");
    }
    ensure!(!out.contains("status 0"), "{out}");
    Ok(())
}
