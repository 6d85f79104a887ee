//! The shared libraries that programs need, and the packages that have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, bail};

use crate::run::{command, output};

/// Versions of symbols, by the library that has them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Libraries(BTreeMap<String, BTreeSet<String>>);

impl Libraries {
    /// Adds what a program needs. A static program needs nothing.
    pub fn add(&mut self, program: &Path) -> Result<()> {
        let text = output(command("objdump", ["-p"]).arg(program))?;
        for (library, versions) in parse(&text).0 {
            self.0.entry(library).or_default().extend(versions);
        }
        Ok(())
    }

    /// Returns the packages of Debian that have the libraries.
    pub fn deb(&self) -> Result<Vec<String>> {
        let mut packages = BTreeSet::new();
        for (library, versions) in &self.0 {
            match library.as_str() {
                "libgcc_s.so.1" => packages.insert("libgcc-s1 (>= 4.2)".to_owned()),
                name if is_glibc(name) => {
                    let newest = versions.iter().filter_map(|version| glibc(version)).max();
                    // Every symbol of glibc has a version; the others are counted with it.
                    newest
                        .is_some_and(|(major, minor)| packages.insert(format!("libc6 (>= {major}.{minor})")))
                }
                name => bail!("no package of Debian is known for {name}"),
            };
        }
        Ok(newest_glibc(packages))
    }

    /// Returns the capabilities that rpm looks for: each library with each version.
    pub fn rpm(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (library, versions) in &self.0 {
            all.push(format!("{library}()(64bit)"));
            all.extend(versions.iter().map(|version| format!("{library}({version})(64bit)")));
        }
        all
    }
}

fn is_glibc(library: &str) -> bool {
    ["libc.so.", "libm.so.", "ld-linux-"].iter().any(|begin| library.starts_with(begin))
}

fn glibc(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("GLIBC_")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Keeps the highest of several versions of libc6.
fn newest_glibc(packages: BTreeSet<String>) -> Vec<String> {
    let version = |package: &str| {
        let inner = package.strip_prefix("libc6 (>= ")?.strip_suffix(')')?;
        glibc(&format!("GLIBC_{inner}"))
    };
    let newest = packages.iter().filter_map(|package| version(package)).max();
    packages.into_iter().filter(|package| version(package).is_none_or(|it| Some(it) == newest)).collect()
}

/// Parses the output of `objdump -p`.
fn parse(text: &str) -> Libraries {
    let mut libraries = Libraries::default();
    let mut current = None;
    for line in text.lines().map(str::trim) {
        if let Some(library) = line.strip_prefix("NEEDED") {
            libraries.0.entry(library.trim().to_owned()).or_default();
        } else if let Some(library) = line.strip_prefix("required from ") {
            current = Some(library.trim_end_matches(':').to_owned());
        } else if let (Some(library), true) = (&current, line.starts_with("0x")) {
            let version = line.split_whitespace().last().unwrap_or_default();
            libraries.0.entry(library.clone()).or_default().insert(version.to_owned());
        } else {
            current = None;
        }
    }
    libraries
}

/// Returns the build id of a program, if it has one.
pub fn build_id(program: &Path) -> Result<Option<String>> {
    let text = output(command("readelf", ["--notes", "--wide"]).arg(program))?;
    Ok(text.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "
Dynamic Section:
  NEEDED               libgcc_s.so.1
  NEEDED               libc.so.6
  NEEDED               ld-linux-x86-64.so.2
Version References:
  required from libgcc_s.so.1:
    0x0b792650 0x00 02 GCC_3.0
  required from libc.so.6:
    0x06969194 0x00 05 GLIBC_2.34
    0x0d696919 0x00 03 GLIBC_2.9
  required from ld-linux-x86-64.so.2:
    0x0d696913 0x00 04 GLIBC_2.3
";

    #[test]
    fn what_programs_need_is_what_both_formats_ask_for() {
        let libraries = parse(TEXT);
        assert_eq!(libraries.deb().unwrap(), ["libc6 (>= 2.34)", "libgcc-s1 (>= 4.2)"]);
        let capabilities = libraries.rpm();
        for capability in
            ["libc.so.6()(64bit)", "libc.so.6(GLIBC_2.34)(64bit)", "libgcc_s.so.1(GCC_3.0)(64bit)"]
        {
            assert!(capabilities.iter().any(|it| it == capability), "{capability}");
        }
        let arm = parse(
            "  NEEDED   libc.so.6\n  NEEDED   ld-linux-aarch64.so.1\n  required from libc.so.6:\n    0x1 0x00 02 GLIBC_2.17\n",
        );
        assert_eq!(arm.deb().unwrap(), ["libc6 (>= 2.17)"]);
        assert!(arm.rpm().contains(&"ld-linux-aarch64.so.1()(64bit)".to_owned()));
        assert_eq!(parse("Dynamic Section:\n"), Libraries::default());
        assert!(parse("  NEEDED   libother.so.1\n").deb().is_err());
    }
}
