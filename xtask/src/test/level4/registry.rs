//! Checks of registries: images are pulled with the user's credentials, and boot.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, run_as, text};
use crate::{
    host::{self, Host},
    image, packages,
    run::run as shell,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("an image from a registry with a password is pulled, run and shared", pulled),
    ("Debian from a registry runs, with systemd and without an init", debian),
];

fn pulled(host: &Host) -> Result<()> {
    let image = host::inside(&image::ensure("minimal")?)?;
    let push = script!(
        "level4/registry/push.sh" uses "wait.sh" + "level4/registry/start.sh",
        registry = registry()?.display(),
        image = image.display()
    );
    with_registry(host, &push, pull_and_run)
}

fn debian(host: &Host) -> Result<()> {
    let image = host::inside(&image::ensure("debian-bookworm")?)?;
    let without_init = host::inside(&image::ensure("minimal")?)?;
    let push = script!(
        "level4/registry/push_debian.sh" uses "wait.sh" + "level4/registry/start.sh",
        registry = registry()?.display(),
        image = image.display(),
        without_init = without_init.display()
    );
    with_registry(host, &push, pull_and_run_debian)
}

/// Returns the path of the registry's program in the host.
fn registry() -> Result<PathBuf> {
    host::inside(&packages::docker_registry()?)
}

/// Starts a registry and fills it by this script, and then runs the check.
fn with_registry(host: &Host, push: &[String], check: Check) -> Result<()> {
    let filled = shell(&mut host.enter(push)).context("cannot fill the registry");
    let checked = filled.and_then(|()| check(host));
    shell(&mut host.enter(&script!("level4/registry/end.sh")))?;
    checked
}

fn pull_and_run_debian(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/registry/run_debian.sh"))?;
    let seen: Vec<&str> = out.lines().filter(|line| !line.contains('=') || *line == "ID=debian").collect();
    ensure!(seen == ["minbase-1", "debian-1", "ID=debian", "init", "ID=debian", "systemd"], "{seen:?}");
    Ok(())
}

fn pull_and_run(host: &Host) -> Result<()> {
    const REFERENCE: &str = "localhost:5000/team/alpine-like:1";
    let refused = as_user(host, "bob", &["banger", "image", "pull", REFERENCE])?;
    ensure!(!refused.status.success(), "bob, who has no account at the registry, got the image");
    let message = text(&refused.stderr);
    ensure!(message.contains("hint: log in with"), "bob gets no hint: {message:?}");

    let output = as_user(host, "alice", &script!("level4/registry/pull_and_run.sh"))?;
    let (out, err) = (expect(&output, 0)?, text(&output.stderr));
    for expected in ["alpine-like-1\n", "ID=debian", "hello from /srv", "alpine-like-again\n", "still here"] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    ensure!(err.contains("resolve: asking localhost:5000") && err.contains("pull: fetching"), "{err:?}");
    Ok(())
}
