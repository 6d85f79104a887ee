//! The layers of `docs/architecture.md`. Cargo keeps the crates apart; this test checks what cargo does not know: what the
//! crates that face hostile bytes may depend on, and which layers of a crate may name which.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use banger_proto::bus::ErrorName;
use banger_system::host::programs::{SHIM, WORKER};

/// Runtimes, buses, databases and clients of the network: none of these comes into a crate that decides, or into one that
/// faces hostile bytes.
const OUTSIDE: &[&str] = &[
    "crabtables",
    "futures-util",
    "hickory-server",
    "hyper",
    "libsqlite3-sys",
    "mio",
    "oci-client",
    "reqwest",
    "rtnetlink",
    "rustls",
    "socket2",
    "sqlx",
    "tokio",
    "zbus",
];
/// Decoders, and what touches the host.
const HOST_AND_DECODERS: &[&str] =
    &["a3s-box-mkext4", "caps", "flate2", "landlock", "rustix", "ruzstd", "seccompiler", "tar", "zstd"];
/// The crates of banger that know what an image or a sandbox is.
const OURS: &[&str] = &["banger-domain", "banger-image", "banger-proto", "banger-system"];

/// A crate, and what it may not depend on, not even by way of another one.
const CRATES: &[(&str, &[&[&str]])] = &[
    ("banger-domain", &[OUTSIDE, HOST_AND_DECODERS]),
    ("banger-image", &[OUTSIDE]),
    ("banger-mount", &[OUTSIDE, &["banger-domain", "banger-image", "flate2", "ruzstd", "tar", "zstd"]]),
    ("banger-jail", &[OUTSIDE, OURS, &["flate2", "ruzstd", "tar", "zstd"]]),
];

/// A layer, and the words that its files may not have.
const LAYERS: &[(&str, &[&str])] = &[
    ("domain/", NO_HOST),
    ("image/catalog/", NO_HOST),
    ("image/kernel/", NO_HOST),
    ("image/oci/", NO_HOST),
    ("image/rootfs/", NO_HOST),
    ("ports", &["zbus::", "sqlx::", "crate::engine", "crate::host", "crate::sim", "crate::bus"]),
    ("engine/", &["zbus::", "sqlx::", "crate::host", "crate::sim", "crate::bus"]),
    ("host/", &["crate::engine", "crate::bus", "crate::sim"]),
    ("sim/", &["crate::engine", "crate::bus", "crate::host"]),
    ("bus/", &["sqlx::", "crate::host", "crate::sim"]),
];
const NO_HOST: &[&str] = &["std::fs", "std::net", "std::process", "SystemTime"];

/// Only these may have `unsafe`, and only these may start programs.
const UNSAFE: &[&str] = &["host/", "jail/"];
const PROGRAMS: &[&str] = &[
    "jail/run.rs",
    "host/programs.rs",
    // Which tries whether it can, to show that it cannot.
    "image/importer/lockdown.rs",
    // Tests alone, which ask other programs what they make of the same inputs.
    "image/inputs/",
];

/// What starts a program, or names one.
const STARTS: &[&str] =
    &["Command::new(", "process::Command", "posix_spawn", "execve(", "\"/usr/bin/", "\"/usr/sbin/"];

/// Where a step of the lifecycle table changes the state of a sandbox.
const STATE: &str = "engine/vm_task/mod.rs";

/// The crates whose files are looked at, and what their paths begin with here.
const SOURCES: &[(&str, &str)] =
    &[("banger-system", ""), ("banger-domain", "domain"), ("banger-image", "image"), ("banger-jail", "jail")];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A crate and everything that it depends on in a program, by its name.
fn dependencies(package: &str) -> BTreeSet<String> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    let output = tree.args(["--package", package]).current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

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
    if path.starts_with("engine/") && path != STATE {
        let set = lines().filter(|line| line.contains(".state = "));
        found.extend(set.map(|line| format!("{path}: only {STATE} sets the state of a sandbox: {line}")));
    }
    let is_one_of = |list: &[&str]| list.iter().any(|allowed| path.starts_with(allowed));
    if !is_one_of(UNSAFE) {
        found.extend(lines().filter(|line| line.contains("unsafe {")).map(|line| format!("{path}: {line}")));
    }
    if !is_one_of(PROGRAMS) {
        found.extend(
            lines()
                .filter(|line| STARTS.iter().any(|word| line.contains(word)))
                .map(|line| format!("{path}: {line}")),
        );
    }
    found
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn crates_that_face_hostile_bytes_depend_on_nothing_that_reaches_outside() {
    for (package, forbidden) in CRATES {
        let has = dependencies(package);
        assert!(has.contains(*package), "{package}: {has:?}");
        let wrong: Vec<&str> =
            forbidden.iter().copied().flatten().copied().filter(|name| has.contains(*name)).collect();
        assert!(wrong.is_empty(), "{package} depends on {}; see `cargo tree -p {package}`", wrong.join(", "));
    }
}

#[test]
fn what_comes_by_way_of_another_crate_is_seen() {
    let has = dependencies("banger-system");
    for name in OUTSIDE.iter().chain(HOST_AND_DECODERS) {
        assert!(
            has.contains(*name),
            "no crate is called {name} any more: the lists of this test are out of date"
        );
    }
}

#[test]
fn the_layers_look_one_way() {
    let all: Vec<String> = SOURCES
        .iter()
        .flat_map(|(package, name)| {
            let source = repository().join(package).join("src");
            files(&source)
                .into_iter()
                .map(move |path| (Path::new(name).join(path.strip_prefix(&source).unwrap()), path))
        })
        .flat_map(|(inside, path)| {
            violations(inside.to_str().unwrap(), &fs::read_to_string(path).unwrap_or_default())
        })
        .collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn the_programs_of_the_service_are_its_vmms_the_shim_and_the_worker() {
    let list = fs::read_to_string(repository().join("banger-system/src/host/programs.rs")).unwrap();
    let names = list.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
    assert_eq!(names.collect::<Vec<_>>(), ["SHIM", "WORKER", "QEMU", "FIRECRACKER"]);
    let page = fs::read_to_string(repository().join("docs/security.md")).unwrap();
    for named in [SHIM, WORKER].map(|name| format!("| `{name}` |")) {
        assert!(page.contains(&named), "docs/security.md does not list {named}");
    }
}

#[test]
fn every_error_name_can_be_returned() {
    let source = repository().join("banger-system/src");
    let code: String =
        files(&source).into_iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
    let is_used = |name: &ErrorName| code.contains(&format!("ErrorName::{name:?}"));
    let dead: Vec<&ErrorName> = ErrorName::ALL.iter().filter(|name| !is_used(name)).collect();
    // That one comes from the bus.
    assert_eq!(dead, [&ErrorName::NotSupported]);
}

#[test]
fn the_files_and_functions_that_the_architecture_document_names_exist() {
    let page = fs::read_to_string(repository().join("docs/architecture.md")).unwrap();
    let directories = SOURCES.iter().map(|(package, _)| *package).chain([
        "banger-agent",
        "banger-cli",
        "banger-proto",
        "cockpit",
    ]);
    let sources: Vec<PathBuf> = directories.flat_map(|package| files(&repository().join(package))).collect();
    let code: String = sources.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
    let has_file = |name: &str| {
        let ends = format!("/{name}");
        sources.iter().any(|path| {
            let path = path.to_str().unwrap();
            if name.ends_with('/') { path.contains(&ends) } else { path.ends_with(&ends) }
        })
    };
    let has_function =
        |name: &str| code.contains(&format!("fn {name}(")) || code.contains(&format!("fn {name}<"));
    // Charts stand between backticks, too.
    let names = page.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    let (files, others): (Vec<&str>, Vec<&str>) =
        names.partition(|name| name.ends_with(".rs") || name.ends_with('/'));
    let is_function =
        |name: &&str| name.contains("::") || name.contains('_') && !name.contains(char::is_uppercase);
    let functions: Vec<&str> = others.into_iter().filter(is_function).collect();
    assert!(files.len() > 40 && functions.len() > 15, "{files:?} {functions:?}");
    for file in files {
        assert!(has_file(file), "there is no {file}");
    }
    for function in functions {
        assert!(has_function(function.rsplit(':').next().unwrap()), "there is no function {function}");
    }
}

#[test]
fn a_violation_is_found() {
    assert_eq!(violations("domain/x.rs", "use std::fs::File;").len(), 1);
    assert_eq!(violations("engine/x.rs", "    crate::host::storage::disks::new()").len(), 1);
    assert_eq!(violations("engine/vm_task/stop.rs", "self.vm.state = State::Stopped;").len(), 1);
    assert_eq!(violations("bus/x.rs", "let x = unsafe { y() };").len(), 1);
    assert_eq!(violations("host/x.rs", "Command::new(\"ip\")").len(), 1);
    assert_eq!(violations("host/x.rs", "use tokio::process::Command as Helper;").len(), 1);
    assert_eq!(violations("host/x.rs", "const NFT: &str = \"/usr/sbin/nft\";").len(), 1);
    assert_eq!(
        violations("domain/x.rs", "// std::fs is not for us\n#[cfg(test)]\nuse std::fs;"),
        Vec::<String>::new()
    );
}
