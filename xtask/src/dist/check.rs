//! `cargo xtask dist … --check`: what distributions check of packages.
//!
//! Every remark of lintian and rpmlint fails the check, unless a file in `packaging` says why it is right.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::Compression;
use crate::{
    build::{Programs, remap},
    packages,
    run::{command, digest_of, output, repository, say},
};

/// Where rpm keeps what it has installed. Debian's would use root's home.
const DATABASE: &str = "/var/lib/rpm";
/// The scriptlets of each RPM package, as `rpm --scripts` titles them.
const SCRIPTLETS: [(&str, &[&str]); 2] =
    [("banger", &[]), ("banger-system", &["postinstall", "preuninstall", "postuninstall"])];

/// What lintian says of packages that only tests build: uncompressed, and with programs that no release has.
const OF_TESTS: [&str; 3] = [
    "repeated-path-segment",
    "uses-no-compression-for-control-tarball",
    "uses-no-compression-for-data-tarball",
];

/// Fails unless two builds made the same files.
pub fn are_the_same(first: &[PathBuf], second: &[PathBuf]) -> Result<()> {
    ensure!(first.len() == second.len(), "two builds make different packages");
    for (one, other) in first.iter().zip(second) {
        let same = one.file_name() == other.file_name() && digest_of(one)? == digest_of(other)?;
        ensure!(same, "two builds make a different {}", one.display());
    }
    say(&format!("PASS {} files are the same when they are packed again", first.len()));
    Ok(())
}

/// Runs all checks that suit the packages. What cannot run says so.
pub fn all(packages: &[PathBuf], compression: Compression) -> Result<()> {
    let with = |extension: &str| -> Vec<&PathBuf> {
        packages.iter().filter(|path| path.extension().is_some_and(|it| it == extension)).collect()
    };
    if let Err(error) = packages::ensure_package_checkers() {
        say(&format!("SKIP lintian, rpmlint and rpm: {error:#}"));
        return Ok(());
    }
    let (debs, rpms) = (with("deb"), with("rpm"));
    if !debs.is_empty() {
        lintian(&debs, compression)?;
    }
    if !rpms.is_empty() {
        rpmlint(&rpms)?;
        installed_by_rpm(&rpms)?;
    }
    Ok(())
}

/// Fails if a program has a path of the host that built it.
pub fn no_path_of_the_host(programs: &Programs) -> Result<()> {
    let host = ["banger", "banger-notify", "banger-system", "banger-shim", "banger-import"];
    let host = host.iter().map(|name| programs.directory.join(name));
    for program in host.chain([programs.agent.clone()]) {
        let content = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        // Root's home is also that of guests.
        for (place, _) in remap::places().iter().filter(|(_, to)| to != remap::HOME) {
            let found = content.windows(place.len()).any(|part| part == place.as_bytes());
            ensure!(!found, "{} has the path {place}", program.display());
        }
    }
    say("PASS programs have no path of the host that built them");
    Ok(())
}

fn lintian(debs: &[&PathBuf], compression: Compression) -> Result<()> {
    let mut lintian = command("lintian", ["--pedantic", "--display-info", "--tag-display-limit=0"]);
    // Root may run it here: it looks into packages of our own.
    lintian.args(["--allow-root", "--fail-on=error,warning,info,pedantic"]).args(debs);
    lintian.arg("--suppress-tags-from-file").arg(repository().join("packaging/deb/lintian-suppressed-tags"));
    if compression == Compression::None {
        lintian.args(["--suppress-tags", &OF_TESTS.join(",")]);
    }
    quiet("lintian", &mut lintian)
}

fn rpmlint(rpms: &[&PathBuf]) -> Result<()> {
    let mut rpmlint = command("rpmlint", ["--strict", "--config"]);
    rpmlint.arg(repository().join("packaging/rpm/rpmlint.toml")).args(rpms);
    quiet("rpmlint", &mut rpmlint)
}

/// Runs a checker that must find nothing.
fn quiet(name: &str, checker: &mut Command) -> Result<()> {
    let output = checker.output().with_context(|| format!("cannot run {name}"))?;
    let text = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{name} has remarks:\n{}", String::from_utf8_lossy(&text));
    say(&format!("PASS {name}"));
    Ok(())
}

/// Installs the packages below an empty root, and checks what is there.
fn installed_by_rpm(rpms: &[&PathBuf]) -> Result<()> {
    let root = tempfile::tempdir().context("cannot create a directory")?;
    let options = ["--install", "--nodeps", "--noscripts", "--dbpath", DATABASE, "--root"];
    let install = command("rpm", options).arg(root.path()).args(rpms).output().context("cannot run rpm")?;
    let said = String::from_utf8_lossy(&install.stderr).into_owned();
    ensure!(install.status.success(), "rpm cannot install the packages: {said}");
    let mut listed = BTreeSet::new();
    for rpm in rpms {
        let files = output(command("rpm", ["--query", "--list", "--package"]).arg(rpm))?;
        listed.extend(files.lines().map(str::to_owned));
        scriptlets(rpm)?;
    }
    let mut found = BTreeSet::new();
    collect(root.path(), root.path(), &mut found)?;
    let found: BTreeSet<&String> = found.iter().filter(|path| !path.starts_with(DATABASE)).collect();
    for path in &found {
        ensure!(listed.contains(*path), "rpm installs {path}, which it does not list");
    }
    for path in &listed {
        ensure!(root.path().join(&path[1..]).exists(), "rpm lists {path}, but does not install it");
    }
    say(&format!("PASS rpm installs {} files, all of which it lists", found.len()));
    units(root.path())
}

/// Adds all files below a directory, as paths of the root.
fn collect(root: &Path, directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            collect(root, &path, found)?;
        } else {
            found.insert(format!("/{}", path.strip_prefix(root)?.display()));
        }
    }
    Ok(())
}

/// Checks that a package has the scriptlets that it should have, and that a shell can parse them.
fn scriptlets(rpm: &Path) -> Result<()> {
    let name = output(command("rpm", ["--query", "--queryformat=%{NAME}", "--package"]).arg(rpm))?;
    let text = output(command("rpm", ["--query", "--scripts", "--package"]).arg(rpm))?;
    let expected =
        SCRIPTLETS.iter().find(|(package, _)| *package == name).map_or(&[][..], |(_, titles)| titles);
    let titles: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once(" scriptlet (using /bin/sh):"))
        .map(|(title, _)| title)
        .collect();
    ensure!(titles == expected, "{name} has the scriptlets {titles:?}, not {expected:?}");
    let script: String = text
        .lines()
        .filter(|line| !line.contains(" scriptlet (using "))
        .map(|line| format!("{line}\n"))
        .collect();
    output(command("sh", ["-n", "-c", &script]).current_dir("/"))
        .with_context(|| format!("the scriptlets of {name}"))?;
    Ok(())
}

/// Checks the units as they are installed below a root.
fn units(root: &Path) -> Result<()> {
    let unit = root.join("usr/lib/systemd/system/banger-system.service");
    // Units that ours name are the host's.
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no", "--root"])
        .arg(root)
        .arg(&unit)
        .output()
        .context("cannot run systemd-analyze")?;
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    let remarks: Vec<&str> = said.lines().filter(|line| line.contains("banger")).collect();
    if !verify.status.success() || !remarks.is_empty() {
        bail!("systemd-analyze verify fails:\n{said}");
    }
    say("PASS systemd-analyze verifies the service as it is installed");
    Ok(())
}
