//! `cargo xtask tidy`: what neither the compiler nor a linter checks of our texts.
//!
//! - Links between documents lead to files and headings that exist.
//! - Every source file says at its beginning what it is.
//! - No text has a word of the list in `docs/glossary.md`.
//! - What D-Bus interfaces, schemas and exit statuses promised in earlier commits, they still promise.
//! - No crate needs a newer compiler than Cargo.toml promises, and all keep the rules of `deny.toml`.
//! - ShellCheck finds nothing in the scripts of a shell, and pyflakes nothing in those in Python.
//!
//! It looks at the files that git knows. The layers of the code have a test: `banger-system/tests/architecture.rs`.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    compatibility, deny,
    dist::crates,
    packages,
    run::{command, output, repository},
};

const GLOSSARY: &str = "docs/glossary.md";
/// The heading of the list in the glossary.
const LIST: &str = "## Words that are not used";
/// Texts of others, and what programs write.
const NOT_OURS: [&str; 4] = ["LICENSE-", "Cargo.lock", "dbus/interfaces", "cockpit/vendor"];

/// Checks all files and prints what is wrong, one finding per line.
///
/// # Errors
/// If anything is wrong, or the files cannot be read.
pub fn run() -> Result<()> {
    let root = repository();
    let listed = output(command("git", ["ls-files"]).current_dir(&root))?;
    let files: BTreeSet<PathBuf> =
        listed.lines().map(PathBuf::from).filter(|path| root.join(path).is_file()).collect();
    let glossary = fs::read_to_string(root.join(GLOSSARY)).context("cannot read the glossary")?;
    let unused = unused_words(&glossary);
    if unused.is_empty() {
        bail!("{GLOSSARY} has no list {LIST:?}");
    }
    let mut texts = HashMap::new();
    for path in &files {
        let name = path.to_string_lossy();
        if NOT_OURS.iter().any(|part| name.contains(part)) {
            continue;
        }
        // What is no text has no words.
        if let Ok(text) = fs::read_to_string(root.join(path)) {
            texts.insert(path.clone(), text);
        }
    }
    let mut findings = Vec::new();
    for (path, text) in &texts {
        let name = path.display();
        let extension = path.extension().and_then(|extension| extension.to_str());
        // The words of style sheets are those of CSS.
        if path != Path::new(GLOSSARY) && extension != Some("css") {
            let found = words_in(text, &unused).into_iter();
            findings.extend(
                found.map(|(line, word)| format!("{name}:{line}: the word {word:?}; see {GLOSSARY}")),
            );
        }
        match extension {
            Some("rs") if !has_module_doc(text) => {
                findings.push(format!("{name}:1: no `//!` line that says what this file is"));
            }
            Some("md") => {
                let broken =
                    links_in(text).into_iter().filter(|(_, link)| !resolves(path, link, &files, &texts));
                findings.extend(
                    broken.map(|(line, link)| format!("{name}:{line}: the link {link:?} leads nowhere")),
                );
            }
            _ => {}
        }
    }
    findings.extend(compatibility::findings(&root)?);
    findings.extend(lint(&root, &texts)?);
    findings.extend(crates::newer_than_promised()?);
    findings.extend(deny::findings(&root)?);
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    println!("{} files, nothing to tidy", texts.len());
    Ok(())
}

/// Returns what the linters find in scripts.
fn lint(root: &Path, texts: &HashMap<PathBuf, String>) -> Result<Vec<String>> {
    packages::ensure_linters()?;
    let mut findings = Vec::new();
    for (linter, options, language) in
        [("shellcheck", &["--format=gcc"][..], Language::Shell), ("pyflakes3", &[], Language::Python)]
    {
        let scripts = texts.iter().filter(|(path, text)| language_of(path, text) == Some(language));
        let mut lint = command(linter, options);
        lint.args(scripts.map(|(path, _)| path)).current_dir(root);
        let output = lint.output().with_context(|| format!("cannot run {linter}"))?;
        // It exits with 1 for findings, which are on standard output.
        if !matches!(output.status.code(), Some(0 | 1)) || !output.stderr.is_empty() {
            bail!("{linter} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        findings.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
    }
    Ok(findings)
}

/// The languages of scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Shell,
    Python,
}

/// Returns the language of a script, by its first line or its name.
fn language_of(path: &Path, text: &str) -> Option<Language> {
    let first = text.lines().next().filter(|line| line.starts_with("#!")).unwrap_or_default();
    let program = first.split(['/', ' ']).find(|word| ["sh", "bash", "python3"].contains(word));
    match (program, path.extension().and_then(|extension| extension.to_str())) {
        (Some("sh" | "bash"), _) | (None, Some("sh")) => Some(Language::Shell),
        (Some(_), _) | (None, Some("py")) => Some(Language::Python),
        _ => None,
    }
}

/// Returns the words in backticks below the heading [`LIST`].
fn unused_words(glossary: &str) -> Vec<String> {
    let Some((_, section)) = glossary.split_once(LIST) else { return Vec::new() };
    let section = section.split("\n## ").next().unwrap_or_default();
    section.split('`').skip(1).step_by(2).map(str::to_lowercase).collect()
}

/// Returns where these words are in a text, whole and in any case, with the number of the line.
fn words_in<'a>(text: &str, words: &'a [String]) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.to_lowercase();
        for word in words {
            let is_whole = |(at, _): (usize, &str)| {
                let before = line.get(..at).and_then(|text| text.chars().next_back());
                let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
                !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
            };
            if line.match_indices(word.as_str()).any(is_whole) {
                found.push((number, word.as_str()));
            }
        }
    }
    found
}

/// Whether a source file begins with its documentation; attributes and a license may come first.
fn has_module_doc(text: &str) -> bool {
    let is_before = |line: &str| {
        let is_comment = line.starts_with("//") && !line.starts_with("//!");
        line.trim().is_empty() || line.starts_with("#!") || is_comment
    };
    let first = text.lines().find(|line| !is_before(line));
    first.is_some_and(|line| line.starts_with("//!"))
}

/// Returns the targets of links to files of ours, with the number of the line.
fn links_in(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") && !target.is_empty() {
                links.push((number, target.to_owned()));
            }
        }
    }
    links
}

/// Whether a link of the document `from` leads to a file or directory that git knows, and to a heading of it.
fn resolves(from: &Path, link: &str, files: &BTreeSet<PathBuf>, texts: &HashMap<PathBuf, String>) -> bool {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => from.to_path_buf(),
        path => normal(&from.parent().unwrap_or(Path::new("")).join(path)),
    };
    let exists = files.contains(&target) || files.iter().any(|file| file.starts_with(&target));
    let has_anchor =
        || texts.get(&target).is_some_and(|text| headings(text).iter().any(|slug| slug == anchor));
    exists && (anchor.is_empty() || has_anchor())
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// Returns the anchors of a document's headings, as GitHub makes them: lower case, hyphens for spaces, no punctuation.
fn headings(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let slug = |line: &str| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_are_found_whole_and_in_any_case() {
        let unused =
            unused_words("# G\n`no`\n## Words that are not used\n`Gizmo`, `old name`\n## More\n`yes`\n");
        assert_eq!(unused, ["gizmo", "old name"]);
        for (text, expect) in [
            ("a gizmo of ours", vec![(1, "gizmo")]),
            ("fine\nthe Old Name.", vec![(2, "old name")]),
            ("gizmos", vec![]),
            ("enum Gizmo {", vec![(1, "gizmo")]),
        ] {
            assert_eq!(words_in(text, &unused), expect, "{text}");
        }
    }

    #[test]
    fn scripts_are_found_by_their_first_line_or_their_name() {
        for (path, text, expect) in [
            ("a.sh", "#!/bin/sh -eu\n", Some(Language::Shell)),
            (".ci/run", "#!/usr/bin/env bash\n", Some(Language::Shell)),
            ("a.py", "import os\n", Some(Language::Python)),
            ("a", "#!/usr/bin/python3\n", Some(Language::Python)),
            ("a.rs", "#![allow(missing_docs)]\n", None),
            ("a.md", "sh\n", None),
        ] {
            assert_eq!(language_of(Path::new(path), text), expect, "{path}");
        }
    }

    #[test]
    fn a_file_begins_with_what_it_is() {
        for (text, expect) in [
            ("//! A list.\n", true),
            ("#![allow(missing_docs)]\n\n//! A list.\n", true),
            ("// A licence.\n//! A list.\n", true),
            ("use std::fs;\n//! Late.\n", false),
            ("", false),
        ] {
            assert_eq!(has_module_doc(text), expect, "{text:?}");
        }
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        let files: BTreeSet<PathBuf> = ["README.md", "docs/a.md", "docs/more/b.md"].map(PathBuf::from).into();
        let texts = HashMap::from([
            (PathBuf::from("docs/a.md"), "# A page\n## From a catalog: `x`\n".to_owned()),
            (PathBuf::from("docs/more/b.md"), "# B\n".to_owned()),
        ]);
        for (link, expect) in [
            ("b.md", true),
            ("../a.md", true),
            ("../a.md#from-a-catalog-x", true),
            ("../a.md#elsewhere", false),
            ("#b", true),
            ("..", true),
            ("../../README.md", true),
            ("c.md", false),
        ] {
            assert_eq!(resolves(Path::new("docs/more/b.md"), link, &files, &texts), expect, "{link}");
        }
        let text = "[a](a.md) and [b](https://example.org)\n```\n[c](c.md)\n```\n[d](d.md#x)\n";
        assert_eq!(links_in(text), [(1, "a.md".to_owned()), (5, "d.md#x".to_owned())]);
    }
}
