//! Checks of a user of a remote host. It is the same private host: the client has no system bus, and reaches the service through
//! a server of ssh that its user runs.

use anyhow::{Result, ensure};

use super::{Check, run_as, sh_as_root};
use crate::{
    host::{self, Host},
    packages,
};

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a user of another host reaches sandboxes by ssh alone", session)];

fn session(host: &Host) -> Result<()> {
    let sshd = host::inside(&packages::sshd()?)?;
    sh_as_root(host, &format!("install -m 755 {} /usr/local/bin/sshd-of-tests", sshd.display()))?;
    let session = script!("level4/remote/session.sh" uses "wait.sh");
    let out = run_as(host, "alice", &session)?;
    for line in [
        "no local bus",
        "hello",
        "status 42",
        "web",
        "copied",
        "forwarded",
        "console",
        "size 31 97",
        "ended",
        "clean",
    ] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}
