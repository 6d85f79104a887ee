//! The rules of `deny.toml` for the crates of others: their licenses, which crates may use which, which are there in
//! more than one version, and where they come from.
//!
//! cargo-deny reads the same file, but takes minutes to build. `cargo metadata` has all that these rules need. For
//! advisories, cargo-deny and a copy of their database have to be installed.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Deserialize;
use spdx::Expression;

use crate::{
    dist::crates::{self, Metadata, Package},
    run::{cargo, say},
};

/// The file with the rules. What is in it for cargo-deny alone is not read.
const RULES: &str = "deny.toml";

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
    #[serde(default)]
    skip: Vec<Skip>,
}

/// A crate that only its wrappers may depend on.
#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    wrappers: BTreeSet<String>,
}

/// An old version of a crate that may be there beside a newer one: `name@0.10`, which stands for 0.10.4, too.
#[derive(Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    spec: String,
}

impl Skip {
    fn covers(&self, package: &Package) -> bool {
        let Some((name, version)) = self.spec.split_once('@') else { return false };
        let rest = package.version.strip_prefix(version);
        package.name == name && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Returns what the crates of others break, one line for each.
///
/// # Errors
/// If the rules or the crates cannot be read.
pub fn findings(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join(RULES)).with_context(|| format!("cannot read {RULES}"))?;
    let rules: Rules = toml::from_str(&text).with_context(|| format!("cannot parse {RULES}"))?;
    let metadata = crates::metadata()?;
    let mut findings = licenses(&rules.licenses, &metadata)?;
    findings.extend(banned(&rules.bans, &metadata));
    findings.extend(doubled(&rules.bans.skip, &metadata));
    findings.extend(foreign(&metadata));
    findings.extend(advisories(root)?);
    Ok(findings.into_iter().map(|finding| format!("{RULES}:1: {finding}")).collect())
}

fn licenses(rules: &Licenses, metadata: &Metadata) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let license = crates::license_of(package)?;
        let parsed = Expression::parse(&license).with_context(|| format!("cannot parse {license}"))?;
        if !parsed.evaluate(|wanted| rules.allow.contains(&wanted.to_string())) {
            findings.push(format!("{package} has the license {license}, which is not allowed"));
        }
    }
    Ok(findings)
}

fn banned(rules: &Bans, metadata: &Metadata) -> Vec<String> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (&*package.id, package)).collect();
    let mut findings = Vec::new();
    for node in &metadata.resolve.nodes {
        let Some(user) = packages.get(&*node.id) else { continue };
        for used in node.deps.iter().filter_map(|edge| packages.get(&*edge.pkg)) {
            let ban = rules.deny.iter().find(|ban| ban.name == used.name);
            if ban.is_some_and(|ban| !ban.wrappers.contains(&user.name)) {
                findings.push(format!("{user} may not use {used}"));
            }
        }
    }
    findings
}

/// Returns the crates in more than one version that no rule names, and the rules that nothing needs.
fn doubled(skips: &[Skip], metadata: &Metadata) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in &metadata.packages {
        versions.entry(&package.name).or_default().push(package);
    }
    versions.retain(|_, packages| packages.len() > 1);
    let mut findings = Vec::new();
    for packages in versions.values() {
        let kept: Vec<String> = packages
            .iter()
            .filter(|package| !skips.iter().any(|skip| skip.covers(package)))
            .map(ToString::to_string)
            .collect();
        if kept.len() > 1 {
            findings.push(format!("there are {}; use one, or add one to `skip`", kept.join(" and ")));
        }
    }
    let is_needed = |skip: &&Skip| versions.values().flatten().any(|package| skip.covers(package));
    let unused = skips.iter().filter(|skip| !is_needed(skip));
    findings.extend(unused.map(|skip| format!("{} in `skip` is not needed any more", skip.spec)));
    findings
}

/// Returns the crates that do not come from the registry of most others.
fn foreign(metadata: &Metadata) -> Vec<String> {
    let mut sources: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in &metadata.packages {
        if let Some(source) = &package.source {
            sources.entry(source).or_default().push(package);
        }
    }
    let usual = sources.iter().max_by_key(|(_, packages)| packages.len()).map(|(source, _)| *source);
    let others = sources.into_iter().filter(|(source, _)| Some(*source) != usual);
    others
        .flat_map(|(source, packages)| {
            packages.into_iter().map(move |package| format!("{package} comes from {source}"))
        })
        .collect()
}

/// Returns the advisories for our crates, where cargo-deny has a copy of their database.
fn advisories(root: &Path) -> Result<Vec<String>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let databases = home.and_then(|home| fs::read_dir(home.join("advisory-dbs")).ok());
    if databases.is_none_or(|mut entries| entries.next().is_none()) {
        say(
            "SKIP advisories for crates: their database is on the internet, and cargo-deny has no copy of it",
        );
        return Ok(Vec::new());
    }
    let arguments = ["deny", "--offline", "check", "--hide-inclusion-graph", "advisories"];
    let deny = cargo(arguments).current_dir(root).output().context("cannot run cargo deny")?;
    if deny.status.success() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&deny.stderr).into_owned();
    Ok(text.lines().filter(|line| line.starts_with("error")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    /// Returns a graph of crates, each `name@version`, with its license, source and dependencies.
    fn graph(crates: &[(&str, &str, &str, &[&str])]) -> Metadata {
        let package = |(id, license, source, _): &(&str, &str, &str, &[&str])| -> Value {
            let (name, version) = id.split_once('@').unwrap();
            json!({
                "id": id, "name": name, "version": version, "license": license, "source": source,
                "authors": [], "manifest_path": "/Cargo.toml", "repository": null, "rust_version": null,
            })
        };
        let node = |(id, _, _, used): &(&str, &str, &str, &[&str])| -> Value {
            let deps: Vec<Value> = used.iter().map(|id| json!({ "pkg": id, "dep_kinds": [] })).collect();
            json!({ "id": id, "deps": deps })
        };
        serde_json::from_value(json!({
            "packages": crates.iter().map(package).collect::<Vec<_>>(),
            "resolve": { "nodes": crates.iter().map(node).collect::<Vec<_>>() },
        }))
        .unwrap()
    }

    #[test]
    fn a_license_must_be_allowed_with_its_exception() {
        let rules = Licenses { allow: ["MIT", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into() };
        for (license, allowed) in [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only OR MIT", true),
            ("GPL-3.0-only AND MIT", false),
            ("Apache-2.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
        ] {
            let found = licenses(&rules, &graph(&[("a@1.0.0", license, "r", &[])])).unwrap();
            assert_eq!(found.is_empty(), allowed, "{license}: {found:?}");
        }
        assert!(licenses(&rules, &graph(&[("a@1.0.0", "unknown words", "r", &[])])).is_err());
    }

    #[test]
    fn only_its_wrappers_may_use_a_crate() {
        let ban = |wrappers: &[&str]| Bans {
            deny: vec![Ban {
                name: "tls".into(),
                wrappers: wrappers.iter().map(|&name| name.to_owned()).collect(),
            }],
            skip: Vec::new(),
        };
        let crates = graph(&[
            ("ours@1.0.0", "MIT", "r", &["http@1.0.0"]),
            ("http@1.0.0", "MIT", "r", &["tls@2.0.0"]),
            ("tls@2.0.0", "MIT", "r", &[]),
        ]);
        assert_eq!(banned(&ban(&["http"]), &crates), Vec::<String>::new());
        assert_eq!(banned(&ban(&["ours"]), &crates), ["http 1.0.0 may not use tls 2.0.0"]);
        assert_eq!(banned(&ban(&[]), &crates), ["http 1.0.0 may not use tls 2.0.0"]);
    }

    #[test]
    fn a_second_version_of_a_crate_has_a_rule_and_a_rule_has_a_second_version() {
        let skips =
            |specs: &[&str]| specs.iter().map(|&spec| Skip { spec: spec.to_owned() }).collect::<Vec<_>>();
        let crates = graph(&[
            ("a@0.1.5", "MIT", "r", &[]),
            ("a@0.10.0", "MIT", "r", &[]),
            ("b@1.0.0", "MIT", "r", &[]),
        ]);
        assert_eq!(doubled(&[], &crates), ["there are a 0.1.5 and a 0.10.0; use one, or add one to `skip`"]);
        assert_eq!(doubled(&skips(&["a@0.1"]), &crates), Vec::<String>::new());
        assert_eq!(doubled(&skips(&["a@0.1", "b@1"]), &crates), ["b@1 in `skip` is not needed any more"]);
    }

    #[test]
    fn crates_come_from_one_registry() {
        let crates = graph(&[
            ("a@1.0.0", "MIT", "registry+x", &[]),
            ("b@1.0.0", "MIT", "registry+x", &[]),
            ("c@1.0.0", "MIT", "git+https://example.org/c", &[]),
        ]);
        assert_eq!(foreign(&crates), ["c 1.0.0 comes from git+https://example.org/c"]);
    }
}
