//! Checks of kernel templates: sandboxes from one template differ in everything that must differ, and a damaged one is
//! not used.

use anyhow::{Result, ensure};

use super::{Check, run_as, run_as_root};
use crate::{host::Host, run::say};

pub(super) const WITH_SYSTEMD: &[(&str, Check)] =
    &[("sandboxes from one template share no identity, and a damaged template is not used", templates)];

fn templates(host: &Host) -> Result<()> {
    run_as_root(host, &script!("level4/template/forget.sh"))?;
    let checked = children(host).and_then(|()| damaged(host));
    // The damaged one is not kept for other checks.
    run_as_root(host, &script!("level4/template/forget.sh"))?;
    checked
}

fn children(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/template/children.sh" uses "wait.sh"))?;
    for time in out.lines().filter(|line| line.starts_with("created ")) {
        say(time);
    }
    for line in [
        "first: cold",
        "one: template",
        "two: template",
        "facts: 7, equal: 0",
        "sizes: 50331648 6291456",
        "kept",
        "SSH-",
        "one",
        "the clock is right",
        "restarted: template, kept",
    ] {
        ensure!(out.lines().any(|found| found == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn damaged(host: &Host) -> Result<()> {
    run_as_root(host, &script!("level4/template/damage.sh"))?;
    let out = run_as(host, "alice", &script!("level4/template/damaged.sh"))?;
    ensure!(out.contains("\"cold\""), "{out:?}");
    ensure!(out.contains("one was damaged and is not used"), "{out:?}");
    Ok(())
}
