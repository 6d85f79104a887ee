//! The SDKs as they are published: a wheel and an archive of the sources for Python, and a package for npm. The same sources
//! give the same bytes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    dist,
    run::{command, repository, run},
};

/// Files of the repository that each package has.
const LICENSES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];

/// Checks that the tools for packing could be installed.
pub fn check_tools(tools: &Path) -> Result<()> {
    for tool in ["bin/hatchling", "node_modules/typescript"] {
        ensure!(tools.join(tool).exists(), "there is no {tool}: PyPI or npm cannot be reached");
    }
    Ok(())
}

/// Packs both SDKs with these tools into a directory, and returns the files.
pub fn pack(tools: &Path, directory: &Path) -> Result<Vec<PathBuf>> {
    check_tools(tools)?;
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    python(tools, directory)?;
    typescript(tools, directory)?;
    let mut files = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// Copies the files of an SDK that git knows, and the licenses, to a directory of their own.
fn staged(name: &str) -> Result<tempfile::TempDir> {
    let stage = tempfile::tempdir().context("cannot create a directory")?;
    let source = repository().join("sdk").join(name);
    let listed = crate::run::output(command("git", ["ls-files"]).current_dir(&source))?;
    let files = listed.lines().map(|file| (source.join(file), file));
    let licenses = LICENSES.iter().map(|license| (repository().join(license), *license));
    for (from, name) in files.chain(licenses) {
        let to = stage.path().join(name);
        fs::create_dir_all(to.parent().unwrap_or(stage.path()))?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(stage)
}

fn python(tools: &Path, directory: &Path) -> Result<()> {
    let stage = staged("python")?;
    let mut build = Command::new(tools.join("bin/python"));
    build.args(["-m", "build", "--no-isolation", "--outdir"]).arg(directory).arg(stage.path());
    run(build.env("SOURCE_DATE_EPOCH", dist::source_date()?).stdout(std::process::Stdio::null()))
}

fn typescript(tools: &Path, directory: &Path) -> Result<()> {
    let stage = staged("typescript")?;
    symlink(tools.join("node_modules"), stage.path().join("node_modules"))?;
    run(Command::new("node").arg("node_modules/typescript/bin/tsc").current_dir(stage.path()))?;
    let mut pack = command("npm", ["pack", "--silent", "--ignore-scripts", "--pack-destination"]);
    run(pack.arg(directory).current_dir(stage.path()).stdout(std::process::Stdio::null()))
}
