//! Checks the manual pages with mandoc.
#![allow(clippy::unwrap_used)]

use std::{fs, process::Command};

#[test]
fn every_verb_has_a_manual_page_without_mandoc_warnings() {
    let directory = tempfile::tempdir().unwrap();
    let mut banger = Command::new(env!("CARGO_BIN_EXE_banger"));
    banger.args(["manual", "--date", "2026-01-01"]).arg(directory.path());
    assert!(banger.status().unwrap().success());
    let pages: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|page| page.unwrap().path()).collect();
    let names: Vec<_> = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap()).collect();
    for name in ["banger.1", "banger-vm-run.1", "banger-ssh-config.1"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"banger-run.1"), "a verb has two pages");
    assert!(!names.contains(&"banger-ssh-proxy.1"), "a hidden verb has a page");
    match Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(&pages).output() {
        Ok(lint) => assert_eq!(String::from_utf8_lossy(&lint.stdout), ""),
        Err(_) => {
            eprintln!("SKIPPED: this test needs mandoc");
            if let Some(file) = std::env::var_os("BANGER_TEST_SKIPS") {
                let mut file = fs::File::options().append(true).open(file).unwrap();
                std::io::Write::write_all(&mut file, b"mandoc\n").unwrap();
            }
        }
    }
}
