//! `cargo xtask dist … --check`: what distributions check of packages.
//!
//! Every remark of lintian and rpmlint fails the check, unless a file in `packaging` says why it is right.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

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

/// The units of the service's package.
const UNITS: [&str; 2] = ["banger-system.service", "banger.slice"];

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

/// Installs the checkers, and runs all checks that suit the packages.
pub fn all(packages: &[PathBuf], compression: Compression) -> Result<()> {
    let with = |extension: &str| -> Vec<&PathBuf> {
        packages.iter().filter(|path| path.extension().is_some_and(|it| it == extension)).collect()
    };
    packages::ensure_package_checkers()?;
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
    let host = ["banger", "banger-e2b", "banger-notify", "banger-system", "banger-shim", "banger-import"];
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
    let (success, said) = tried(checker)?;
    ensure!(success, "{name} has remarks:\n{said}");
    say(&format!("PASS {name}"));
    Ok(())
}

/// Runs a program, and returns whether it succeeded and all that it printed.
fn tried(command: &mut Command) -> Result<(bool, String)> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Installs the packages below an empty root, and checks what is there.
fn installed_by_rpm(rpms: &[&PathBuf]) -> Result<()> {
    let root = tempfile::tempdir().context("cannot create a directory")?;
    let options = ["--install", "--nodeps", "--noscripts", "--dbpath", DATABASE, "--root"];
    let (success, said) = tried(command("rpm", options).arg(root.path()).args(rpms))?;
    ensure!(success, "rpm cannot install the packages: {said}");
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

/// Checks the units, users and directories as they are installed below a root.
fn units(root: &Path) -> Result<()> {
    // Units that ours name are the host's.
    let mut verify = command("systemd-analyze", ["verify", "--man=no", "--recursive-errors=no", "--root"]);
    verify.arg(root);
    verify.args(UNITS.map(|unit| root.join("usr/lib/systemd/system").join(unit)));
    let (success, said) = tried(&mut verify)?;
    ensure!(success && !said.contains("banger"), "systemd-analyze verify fails:\n{said}");
    // Both create what the files say, below the root, where nothing else is.
    fs::create_dir(root.join("etc")).context("cannot create a directory")?;
    for (program, arguments) in [("systemd-sysusers", &[][..]), ("systemd-tmpfiles", &["--create"])] {
        let (success, said) = tried(command(program, arguments).arg("--root").arg(root).arg("banger.conf"))?;
        ensure!(success, "{program} fails:\n{said}");
    }
    let groups = fs::read_to_string(root.join("etc/group")).context("there are no groups")?;
    ensure!(groups.lines().any(|line| line.starts_with("banger:")), "there is no group banger");
    ensure!(root.join("var/lib/banger").is_dir(), "there is no directory of the service's state");
    say("PASS systemd verifies the units, and makes the group and the directories");
    Ok(())
}
