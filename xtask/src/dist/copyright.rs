//! The copyright file of the packages, in Debian's machine-readable format.
//! See <https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/>

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use spdx::{Expression, LicenseId};

use super::crates::Crate;

/// Texts that Debian installs for all packages.
const COMMON: [&str; 2] = ["Apache-2.0", "MPL-2.0"];
/// The license of banger itself.
const OURS: &str = "MIT OR Apache-2.0";
/// The license of xterm.js.
const OF_THE_TERMINAL: &str = "MIT";

/// Returns the text of the file for our programs with these crates in them.
pub fn text(crates: &[Crate]) -> Result<String> {
    let mut text = String::from(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: banger\n\
         Comment: The programs are linked with the crates below. \"Files\" names each as\n \
         `cargo vendor` would lay it out.\n\n",
    );
    text += &format!("Files: *\nCopyright: the banger maintainers\nLicense: {}\n\n", debian(OURS));
    for each in crates {
        let copyright = each.copyright.join("\n ");
        let license = debian(&each.license);
        let (name, version) = (&each.name, &each.version);
        text += &format!("Files: vendor/{name}-{version}/*\nCopyright: {copyright}\nLicense: {license}\n\n");
    }
    let expressions = crates.iter().map(|each| &*each.license).chain([OURS]);
    for (name, body) in bodies(expressions)? {
        text += &format!("License: {name}\n{body}\n");
    }
    Ok(text)
}

/// Returns the text of the file for the Cockpit page and the terminal that comes with it.
pub fn of_the_page() -> Result<String> {
    let mut text = format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: banger\n\n\
         Files: *\nCopyright: the banger maintainers\nLicense: {}\n\n\
         Files: usr/share/cockpit/banger/vendor/*\n\
         Copyright: 2017-2019, The xterm.js authors\n \
         2014-2016, SourceLair Private Company\n \
         2012-2013, Christopher Jeffrey\n\
         License: {}\n\n",
        debian(OURS),
        debian(OF_THE_TERMINAL)
    );
    for (name, body) in bodies([OURS, OF_THE_TERMINAL].into_iter())? {
        text += &format!("License: {name}\n{body}\n");
    }
    Ok(text)
}

/// Returns the license of the Cockpit page with its terminal, as rpm and SPDX write it.
pub fn combined_of_the_page() -> String {
    format!("({OURS}) AND {OF_THE_TERMINAL}")
}

/// Returns the license of a package that holds all of it, as rpm and SPDX write it.
pub fn combined(crates: &[Crate]) -> String {
    let mut all = vec![format!("({OURS})")];
    for license in crates.iter().map(|each| &each.license) {
        let license = if license.contains(" OR ") { format!("({license})") } else { license.clone() };
        if !all.contains(&license) {
            all.push(license);
        }
    }
    all[1..].sort();
    all.join(" AND ")
}

/// Writes an SPDX expression in the words of Debian, which has no parentheses.
fn debian(expression: &str) -> String {
    let words = expression.replace(") AND ", ", and ").replace(" AND (", ", and ").replace(['(', ')'], "");
    let words = words.split(' ').map(|word| match word {
        "OR" => "or",
        "AND" => "and",
        "WITH" => "with",
        "LLVM-exception" => "LLVM exception",
        name => short(name),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns Debian's name of a license.
fn short(spdx: &str) -> &str {
    if spdx == "MIT" { "Expat" } else { spdx }
}

/// Returns the text of each license in these expressions, by Debian's name.
fn bodies<'a>(expressions: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, String>> {
    let mut bodies = BTreeMap::new();
    for expression in expressions {
        let parsed = Expression::parse(expression).with_context(|| format!("cannot parse {expression}"))?;
        for requirement in parsed.requirements() {
            let id = requirement.req.license.id().with_context(|| format!("{expression} is not in SPDX"))?;
            bodies.entry(short(id.name).to_owned()).or_insert_with(|| body(id));
            if let Some(exception) = requirement.req.addition.as_ref().and_then(|addition| addition.id()) {
                let name = format!("{} with LLVM exception", id.name);
                let both = || format!("{} .\n{}", body(id), indented(exception.text()));
                bodies.entry(name).or_insert_with(both);
            }
        }
    }
    Ok(bodies)
}

fn body(id: LicenseId) -> String {
    match COMMON.contains(&id.name) {
        true => format!(" On Debian systems, the text is in /usr/share/common-licenses/{}.\n", id.name),
        false => indented(id.text()),
    }
}

/// Indents a text as a field of several lines.
fn indented(text: &str) -> String {
    let lines = text
        .trim()
        .lines()
        .map(|line| if line.trim().is_empty() { " .\n".into() } else { format!(" {line}\n") });
    lines.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn made(name: &str, license: &str) -> Crate {
        Crate {
            name: name.into(),
            version: "1.0.0".into(),
            license: license.into(),
            copyright: vec!["2020 A. Author".into(), "2021 Others".into()],
            checksum: None,
            repository: None,
        }
    }

    #[test]
    fn expressions_are_written_in_the_words_of_debian() {
        for (spdx, expect) in [
            ("MIT OR Apache-2.0", "Expat or Apache-2.0"),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", "Expat or Apache-2.0, and Unicode-3.0"),
            (
                "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
                "Apache-2.0 with LLVM exception or Apache-2.0 or Expat",
            ),
            ("MIT-0", "MIT-0"),
        ] {
            assert_eq!(debian(spdx), expect);
        }
    }

    #[test]
    fn every_crate_and_every_license_has_a_paragraph() {
        let crates = [made("a", "MIT"), made("b", "ISC AND (MPL-2.0 OR Apache-2.0 WITH LLVM-exception)")];
        let text = text(&crates).unwrap();
        for part in [
            "Files: vendor/a-1.0.0/*\nCopyright: 2020 A. Author\n 2021 Others\nLicense: Expat\n\n",
            "License: ISC, and MPL-2.0 or Apache-2.0 with LLVM exception\n",
            "\nLicense: Expat\n MIT License\n",
            "\nLicense: MPL-2.0\n On Debian systems",
            "\nLicense: Apache-2.0 with LLVM exception\n On Debian systems",
            "\nLicense: ISC\n",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert_eq!(
            combined(&crates),
            "(MIT OR Apache-2.0) AND (ISC AND (MPL-2.0 OR Apache-2.0 WITH LLVM-exception)) AND MIT"
        );
    }
}
