//! `cargo xtask dist`: builds packages from release programs. The same sources give the same bytes: times are those of
//! the last commit, or of `SOURCE_DATE_EPOCH`, and no program has a path of the building host.
//!
//! Packages have the client, the service, the debug symbols of each, and the Cockpit page
//! (docs/decisions/0047-packages.md, docs/decisions/0052-cockpit.md).

mod check;
mod contents;
mod copyright;
pub mod crates;
pub mod deb;
mod libraries;
pub mod platform;
mod rpm;
mod sbom;
mod symbols;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use self::contents::Common;
pub use self::contents::VERSION;
use crate::{
    build::{self, Programs},
    packages,
    run::{cache, command, output, repository, say},
    sdk,
};

/// Who maintains the packages. The project has no mail address.
const MAINTAINER: &str = "the banger maintainers <maintainers@localhost>";
/// The project's line in descriptions.
const LICENSE: &str = "MIT OR Apache-2.0";

/// Arguments of `cargo xtask dist`.
#[derive(Parser)]
pub struct Arguments {
    /// Which packages to build
    #[arg(value_enum)]
    what: What,
    /// Check the packages with lintian, rpmlint, rpm and systemd, and that they are reproducible
    #[arg(long)]
    check: bool,
    /// Pack the programs in this directory instead of building them; the agent must be static to work in guests
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Do not compress the packages
    #[arg(long)]
    uncompressed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Debian packages
    Deb,
    /// RPM packages
    Rpm,
    /// Both, with the bill of materials
    All,
    /// The SDKs: a wheel and an archive of sources for Python, and a package for npm
    Sdk,
}

/// How the content of packages is compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, for tests.
    None,
    /// As distributions do.
    Best,
}

/// Builds the packages, and prints their paths.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.what == What::Sdk {
        return pack_sdks(arguments.check);
    }
    let programs = match &arguments.programs {
        Some(directory) => Programs { directory: directory.clone(), agent: directory.join("banger-agent") },
        None => build::release()?,
    };
    let compression = if arguments.uncompressed { Compression::None } else { Compression::Best };
    let directory = cache().join("dist");
    let packages = pack(&programs, &directory, arguments.what, compression)?;
    if arguments.check {
        let again = cache().join("dist-again");
        check::are_the_same(&packages, &pack(&programs, &again, arguments.what, compression)?)?;
        fs::remove_dir_all(&again).with_context(|| format!("cannot remove {}", again.display()))?;
        match arguments.programs {
            Some(_) => say("SKIP paths in programs: these may be built without `cargo xtask dist`"),
            None => check::no_path_of_the_host(&programs)?,
        }
        check::all(&packages, compression)?;
    }
    for package in packages {
        println!("{}", package.display());
    }
    Ok(())
}

/// Packs the SDKs, and prints the paths of the packages.
fn pack_sdks(check: bool) -> Result<()> {
    let tools = packages::sdk_tools()?;
    let pack = |name: &str| {
        let directory = cache().join(name);
        clear(&directory)?;
        sdk::pack(&tools, &directory)
    };
    let packed = pack("dist-sdk")?;
    if check {
        check::are_the_same(&packed, &pack("dist-sdk-again")?)?;
        clear(&cache().join("dist-sdk-again"))?;
    }
    packed.iter().for_each(|package| println!("{}", package.display()));
    Ok(())
}

/// Removes a directory, if there is one.
fn clear(directory: &Path) -> Result<()> {
    match directory.exists() {
        true => {
            fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
        }
        false => Ok(()),
    }
}

/// Packs the programs into a directory that has nothing else afterwards, and returns the files.
fn pack(programs: &Programs, directory: &Path, what: What, compression: Compression) -> Result<Vec<PathBuf>> {
    clear(directory)?;
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let common = Common::collect()?;
    let mut files = Vec::new();
    if what != What::Rpm {
        files.extend(deb::make(programs, directory, &common, compression)?);
    }
    if what != What::Deb {
        files.extend(rpm::make(programs, directory, &common, compression)?);
    }
    if what == What::All {
        let bill = directory.join(format!("banger-{VERSION}.cdx.json"));
        fs::write(&bill, &common.sbom).with_context(|| format!("cannot write {}", bill.display()))?;
        files.push(bill);
    }
    Ok(files)
}

/// Builds the Debian packages of a test host, and returns those of the client and the service.
pub fn for_test_host(programs: &Programs, directory: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let common = Common { version: version.to_owned(), ..Common::collect()? };
    deb::make_without_symbols(programs, directory, &common)
}

/// Returns the time of the sources in seconds (<https://reproducible-builds.org/specs/source-date-epoch/>).
pub fn source_date() -> Result<String> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) => Ok(epoch),
        Err(_) => {
            let time = output(command("git", ["log", "-1", "--format=%ct"]).current_dir(repository()))?;
            Ok(time.trim().to_owned())
        }
    }
}
