//! Checks of builds: the default image from a recipe, Dockerfiles, and images of stopped sandboxes.

use anyhow::{Result, ensure};

use super::{Check, as_user, run_as, run_as_root, text};
use crate::{
    host::{self, Host},
    image,
    try_it::{self, QUICK},
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("the default image is built once from a recipe, with its base from a registry", default_image),
    (
        "a Dockerfile becomes an image as a recipe does, and a build that ends early leaves nothing",
        dockerfile,
    ),
    ("a stopped sandbox becomes an image without a recipe, with what it has changed", committed),
];

/// Starts a registry of this host with one image, and names it in a recipe.
pub(super) fn with_registry(host: &Host, check: impl FnOnce(&Host) -> Result<()>) -> Result<()> {
    let tar = host::inside(&image::archive("minimal")?)?;
    let start = script!(
        "level4/recipe/start.sh" uses "wait.sh",
        tar = tar.display(),
        serve = script_text!("level4/recipe/serve.py"),
    );
    let checked = run_as_root(host, &start).and_then(|_| check(host));
    run_as_root(host, &script!("level4/recipe/end.sh"))?;
    checked
}

fn default_image(host: &Host) -> Result<()> {
    let checked = with_registry(host, |host| {
        try_it::set_default_image(host, "first")?;
        let said = run_as(host, "alice", &script!("level4/recipe/default_image.sh"))?;
        let seen: Vec<&str> = said.lines().collect();
        let expect = [
            "built one time",
            "hello from the recipe",
            "hello from the recipe",
            "machine id: 0",
            "history is gone",
            "work disk was kept",
            "commit",
            "localhost:5000/library/tiny:1",
            "recipe first.toml",
            "no base is left",
            "no second build",
        ];
        ensure!(seen == expect, "{said}");
        Ok(())
    });
    try_it::set_default_image(host, QUICK)?;
    checked
}

fn dockerfile(host: &Host) -> Result<()> {
    with_registry(host, |host| {
        let said = run_as(host, "alice", &script!("level4/recipe/dockerfile.sh" uses "wait.sh"))?;
        let seen: Vec<&str> = said.lines().collect();
        let expect = [
            "app",
            "two words in /srv/app as nobody",
            "a.txt sub",
            "failed 1",
            "line 3: RUN false: it exited with status 1",
            "interrupted 143",
            "nothing is left",
        ];
        ensure!(seen == expect, "{said}");
        Ok(())
    })
}

fn committed(host: &Host) -> Result<()> {
    let output = as_user(host, "alice", &script!("level4/recipe/commit.sh"))?;
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    let seen: Vec<&str> = said.lines().collect();
    let expect = ["refused while it runs", "tool", "kept on the system disk", "not the work disk", "quick"];
    ensure!(output.status.success() && seen == expect, "{said:?}, with errors {errors:?}");
    Ok(())
}
