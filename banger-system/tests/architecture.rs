//! The layers of `docs/architecture.md`: a file that names what its layer may not use fails this test.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A layer, and the words that its files may not have.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "domain/",
        &[
            "tokio::",
            "zbus::",
            "sqlx::",
            "std::fs",
            "std::net",
            "SystemTime",
            "crate::ports",
            "crate::engine",
            "crate::host",
            "crate::sim",
            "crate::bus",
        ],
    ),
    ("ports", &["zbus::", "sqlx::", "crate::engine", "crate::host", "crate::sim", "crate::bus"]),
    ("engine/", &["zbus::", "sqlx::", "crate::host", "crate::sim", "crate::bus"]),
    ("host/", &["crate::engine", "crate::bus", "crate::sim"]),
    (
        "importer/",
        &["tokio::", "zbus::", "sqlx::", "crate::engine", "crate::host", "crate::bus", "crate::sim"],
    ),
    ("sim/", &["crate::engine", "crate::bus", "crate::host"]),
    ("bus/", &["sqlx::", "crate::host", "crate::sim"]),
];

/// Only these may have `unsafe`, and only these may start programs.
const UNSAFE: &[&str] = &["host/", "shim/"];
const PROGRAMS: &[&str] = &[
    "shim/run.rs",
    "host/network/nft.rs",
    "host/supervisor_process.rs",
    "host/worker_process.rs",
    // Which tries whether it can, to show that it cannot.
    "importer/wall.rs",
];

/// What is wrong with a file.
fn violations(path: &str, text: &str) -> Vec<String> {
    // What stands in tests and in comments is free.
    let code = text.split("#[cfg(test)]").next().unwrap();
    let lines = || code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = Vec::new();
    for (layer, forbidden) in LAYERS.iter().filter(|(layer, _)| path.starts_with(layer)) {
        for word in *forbidden {
            found.extend(
                lines()
                    .filter(|line| line.contains(word))
                    .map(|line| format!("{path}: {layer} uses {word}: {line}")),
            );
        }
    }
    let is_one_of = |list: &[&str]| list.iter().any(|allowed| path.starts_with(allowed));
    if !is_one_of(UNSAFE) {
        found.extend(lines().filter(|line| line.contains("unsafe {")).map(|line| format!("{path}: {line}")));
    }
    if !is_one_of(PROGRAMS) {
        found.extend(
            lines().filter(|line| line.contains("Command::new(")).map(|line| format!("{path}: {line}")),
        );
    }
    found
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn the_layers_look_one_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let all: Vec<String> = files(&source)
        .iter()
        .flat_map(|path| {
            let inside = path.strip_prefix(&source).unwrap().to_str().unwrap();
            violations(inside, &fs::read_to_string(path).unwrap_or_default())
        })
        .collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn a_violation_is_found() {
    assert_eq!(violations("domain/x.rs", "use tokio::sync::Mutex;").len(), 1);
    assert_eq!(violations("engine/x.rs", "    crate::host::disks::new()").len(), 1);
    assert_eq!(violations("bus/x.rs", "let x = unsafe { y() };").len(), 1);
    assert_eq!(violations("host/x.rs", "Command::new(\"ip\")").len(), 1);
    assert_eq!(
        violations("domain/x.rs", "// tokio:: is not for us\n#[cfg(test)]\nuse tokio::x;"),
        Vec::<String>::new()
    );
}
