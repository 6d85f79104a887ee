//! Every help page, as a golden file in `tests/help/`. `BANGER_BLESS=1` rewrites the files.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, env, fs, path::PathBuf, process::Command};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/help")
}

fn page(verbs: &[String]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_banger"))
        .args(verbs)
        .arg("--help")
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    assert!(output.status.success(), "{verbs:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the verbs that a page lists, in one group or several.
fn verbs_of(page: &str) -> Vec<String> {
    let lines = page.lines().skip_while(|line| !line.starts_with("Usage:"));
    lines
        .take_while(|line| *line != "Options:")
        .filter_map(|line| {
            line.strip_prefix("  ").filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        })
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_verb_without_its_group_has_the_same_page() {
    let of_vm = verbs_of(&page(&["vm".to_owned()]));
    assert!(of_vm.len() > 20, "{of_vm:?}");
    for verb in of_vm {
        let (flat, full) = (page(std::slice::from_ref(&verb)), page(&["vm".to_owned(), verb.clone()]));
        let (group, alone) = (format!("banger vm {verb}"), format!("banger {verb}"));
        let usage = |page: &str| {
            ["Usage: ", "       "].into_iter().fold(page.to_owned(), |page, before| {
                page.replace(&format!("{before}{group}"), &format!("{before}{alone}"))
            })
        };
        assert_eq!(flat, usage(&full), "{verb}");
    }
}

#[test]
fn the_first_page_fits_one_screen() {
    let short = Command::new(env!("CARGO_BIN_EXE_banger")).arg("-h").output().unwrap();
    let short = String::from_utf8(short.stdout).unwrap();
    assert!(short.lines().count() <= 47, "{short}");
}

#[test]
fn every_help_page_matches_its_golden_file() {
    let bless = env::var_os("BANGER_BLESS").is_some();
    let mut waiting = vec![Vec::<String>::new()];
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    while let Some(verbs) = waiting.pop() {
        let text = page(&verbs);
        let is_first = verbs.is_empty();
        let of_vm = if is_first { verbs_of(&page(&["vm".to_owned()])) } else { Vec::new() };
        for verb in verbs_of(&text).into_iter().filter(|verb| !of_vm.contains(verb)) {
            waiting.push(verbs.iter().cloned().chain([verb]).collect());
        }
        let name =
            format!("{}.txt", ["banger".to_owned()].into_iter().chain(verbs).collect::<Vec<_>>().join("-"));
        let file = directory().join(&name);
        if bless {
            fs::write(&file, &text).unwrap();
        } else if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
            wrong.push(name.clone());
        }
        seen.insert(name);
    }
    assert!(seen.len() > 20, "the pages are not found any more: {seen:?}");
    for entry in fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !seen.contains(&name) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "changed, if on purpose bless with BANGER_BLESS=1: {wrong:?}");
}

#[test]
fn every_page_has_an_example_and_fits_a_terminal() {
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("Example"), "{}", path.display());
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{}", path.display());
    }
}
