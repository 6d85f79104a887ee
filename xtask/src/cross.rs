//! `cargo xtask cross`: checks that the programs compile for arm64. Nothing is linked or run.

use std::path::Path;

use anyhow::Result;

use crate::{
    build,
    dist::platform,
    packages,
    run::{cargo, command, output, repository, run, say},
};

/// Compiles for arm64, or says why it cannot.
pub fn check() -> Result<()> {
    let target = platform::of("aarch64")?.rust;
    let libraries = output(&mut command("rustc", ["--print", "target-libdir", "--target", target]))?;
    if !Path::new(libraries.trim()).is_dir() {
        say(&format!(
            "SKIP arm64: Rust has no standard library for {target}; run: rustup target add {target}"
        ));
        return Ok(());
    }
    packages::ensure()?;
    packages::ensure_cross_compiler()?;
    let mut check = cargo(["check", "--quiet", "--target", target, "--package", "banger-agent"]);
    check.args(build::RELEASE.packages);
    // Of these, only headers are read.
    check.env("PKG_CONFIG_ALLOW_CROSS", "1");
    check.env("BINDGEN_EXTRA_CLANG_ARGS", "-I/usr/aarch64-linux-gnu/include");
    run(check.current_dir(repository()))?;
    say(&format!("PASS the programs compile for {target}; none of them was run"));
    Ok(())
}
