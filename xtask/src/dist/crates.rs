//! The crates that are linked into the installed programs, as `cargo metadata` lists them.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use super::platform;
use crate::run::{cargo, output, repository};

/// The packages whose programs are installed.
const PROGRAMS: [&str; 7] = [
    "banger-agent",
    "banger-cli",
    "banger-e2b",
    "banger-image",
    "banger-jail",
    "banger-notify",
    "banger-system",
];
/// How many lines of copyright of one crate are kept.
const MAX_NOTICES: usize = 20;

/// A crate of others in our programs.
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its license, as an SPDX expression.
    pub license: String,
    /// The lines of copyright in its license files, or else its authors.
    pub copyright: Vec<String>,
    /// The SHA-256 of its archive, if Cargo.lock has it.
    pub checksum: Option<String>,
    /// Its repository, if it names one.
    pub repository: Option<String>,
}

/// All crates of the workspace and of others, as `cargo metadata` lists them for this platform.
#[derive(Deserialize)]
pub struct Metadata {
    /// The crates.
    pub packages: Vec<Package>,
    /// Which of them use which.
    pub resolve: Resolve,
}

/// A crate.
#[derive(Deserialize)]
pub struct Package {
    /// Its id in this output.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    license: Option<String>,
    authors: Vec<String>,
    /// Where it comes from, unless it is in the workspace.
    pub source: Option<String>,
    manifest_path: String,
    repository: Option<String>,
    rust_version: Option<String>,
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// Which crates use which.
#[derive(Deserialize)]
pub struct Resolve {
    /// One for each crate.
    pub nodes: Vec<Node>,
}

/// A crate with those that it uses.
#[derive(Deserialize)]
pub struct Node {
    /// The id of the crate.
    pub id: String,
    /// What it uses.
    pub deps: Vec<Edge>,
}

/// The use of a crate.
#[derive(Deserialize)]
pub struct Edge {
    /// The id of the used crate.
    pub pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// Nothing for an ordinary dependency.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// Returns the crates of others in our programs, by name and version.
pub fn linked() -> Result<Vec<Crate>> {
    let metadata = metadata()?;
    let lock = fs::read_to_string(repository().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let lock: Lock = toml::from_str(&lock).context("cannot parse Cargo.lock")?;
    let checksums: HashMap<(&str, &str), &Option<String>> =
        lock.package.iter().map(|locked| ((&*locked.name, &*locked.version), &locked.checksum)).collect();
    let wanted = reached(&metadata);
    let others =
        metadata.packages.iter().filter(|package| package.source.is_some() && wanted.contains(&*package.id));
    let mut crates = Vec::new();
    for package in others {
        let checksum = checksums.get(&(&*package.name, &*package.version)).copied();
        crates.push(Crate {
            name: package.name.clone(),
            version: package.version.clone(),
            license: license_of(package)?,
            copyright: copyright_of(package),
            checksum: checksum.cloned().flatten(),
            repository: package.repository.clone(),
        });
    }
    crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(crates)
}

/// Returns the crates that need a newer compiler than `rust-version` in Cargo.toml promises.
pub fn newer_than_promised() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let promised = metadata.packages.iter().find(|package| package.name == "xtask");
    let promised = promised.and_then(|package| package.rust_version.as_deref());
    let promised = parsed(promised.context("Cargo.toml has no rust-version")?);
    let newer = metadata.packages.iter().filter_map(|package| {
        let needed = package.rust_version.as_deref().filter(|needed| parsed(needed) > promised)?;
        Some(format!(
            "Cargo.toml:1: {} {} needs Rust {needed}, more than rust-version",
            package.name, package.version
        ))
    });
    Ok(newer.collect())
}

/// Parses a version such as 1.94 or 1.94.0.
fn parsed(version: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    numbers.resize(3, 0);
    numbers
}

/// Asks cargo for all crates that this platform uses.
pub fn metadata() -> Result<Metadata> {
    let host = platform::here()?.rust;
    let arguments = ["metadata", "--format-version=1", "--locked", "--filter-platform", host];
    let text = output(cargo(arguments).current_dir(repository()))?;
    serde_json::from_str(&text).context("cannot parse the output of cargo metadata")
}

/// Returns the ids of all packages that the programs link.
fn reached(metadata: &Metadata) -> BTreeSet<&str> {
    let nodes: HashMap<&str, &Node> = metadata.resolve.nodes.iter().map(|node| (&*node.id, node)).collect();
    let programs = metadata.packages.iter().filter(|package| PROGRAMS.contains(&&*package.name));
    let mut waiting: Vec<&str> = programs.map(|package| &*package.id).collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !reached.insert(id) {
            continue;
        }
        let edges = nodes.get(id).map(|node| &*node.deps).unwrap_or_default();
        let linked = edges.iter().filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        waiting.extend(linked.map(|edge| &*edge.pkg));
    }
    reached
}

/// Returns the license of a crate, as an SPDX expression.
pub fn license_of(package: &Package) -> Result<String> {
    let named = || format!("the license of {} {}", package.name, package.version);
    let license = package.license.as_deref().with_context(|| format!("cannot find {}", named()))?;
    let parsed = Expression::parse_mode(license, ParseMode::LAX);
    let parsed = parsed.with_context(|| format!("cannot parse {}", named()))?;
    // The old form with a slash is not SPDX.
    Ok(parsed.as_ref().replace(" / ", "/").replace('/', " OR "))
}

fn copyright_of(package: &Package) -> Vec<String> {
    let directory = Path::new(&package.manifest_path).parent().unwrap_or(Path::new("/"));
    let mut names: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    names.sort();
    let is_license = |path: &&std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        ["LICEN", "COPYING", "COPYRIGHT", "NOTICE"].iter().any(|begin| name.starts_with(begin))
    };
    let mut notices = Vec::new();
    for text in names.iter().filter(is_license).filter_map(|path| fs::read_to_string(path).ok()) {
        for notice in text.lines().filter_map(notice) {
            if !notices.contains(&notice) && notices.len() < MAX_NOTICES {
                notices.push(notice);
            }
        }
    }
    if notices.is_empty() {
        notices = package.authors.clone();
    }
    if notices.is_empty() {
        notices = vec![format!("the authors of {}", package.name)];
    }
    notices
}

/// Returns whose copyright a line of a license states.
fn notice(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("Copyright ")?;
    let rest = rest.trim_start_matches("(c)").trim_start_matches("(C)").trim_start_matches('©').trim();
    let names_a_year = rest.starts_with(|c: char| c.is_ascii_digit());
    let names_someone =
        rest.starts_with(char::is_uppercase) || rest.starts_with("the ") || rest.starts_with("The ");
    // Texts of licenses speak of copyright, and of a form to fill in.
    let is_form = rest.contains(['[', '{', '<']) && !rest.contains('@');
    ((names_a_year || names_someone) && !is_form).then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_copyright_are_found_and_texts_of_licenses_are_not() {
        for (line, expect) in [
            ("Copyright (c) 2020 A. Author <a@example.org>", Some("2020 A. Author <a@example.org>")),
            ("   Copyright © 2014 The Developers", Some("2014 The Developers")),
            ("Copyright The Rust Project Developers", Some("The Rust Project Developers")),
            ("Copyright [yyyy] [name of copyright owner]", None),
            ("Copyright (c) <year> <owner>.", None),
            ("copyright license to reproduce", None),
            ("Copyright notice", None),
        ] {
            let expect = expect.map(str::to_owned);
            assert_eq!(notice(line), expect, "{line}");
        }
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(parsed("1.94") == parsed("1.94.0") && parsed("1.100") > parsed("1.94.2"));
        assert!(parsed("1.9") < parsed("1.10"));
    }
}
