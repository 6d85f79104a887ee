//! Keeps the paths of the building host out of the programs: the same sources give the same bytes in every checkout.

use std::{env, ffi::OsString, fs, path::Path, path::PathBuf, process::Command};

use crate::run::{repository, target};

/// What replaces the home directory.
pub const HOME: &str = "/build";
/// What separates the arguments in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\u{1f}";

/// Replaces host paths in what a cargo command compiles, and adds these arguments of rustc. Both come after the
/// arguments in the environment, which a packager may have set.
pub fn apply(cargo: &mut Command, arguments: &[&str]) {
    let places = places();
    let variable = |name: &str| env::var(name).ok();
    let mut rust = of_environment(variable("CARGO_ENCODED_RUSTFLAGS"), variable("RUSTFLAGS"));
    rust.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    rust.extend(places.iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}")));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rust.join(SEPARATOR));
    let mut c: Vec<String> = variable("CFLAGS").into_iter().collect();
    c.extend(places.iter().map(|(from, to)| format!("-ffile-prefix-map={from}={to}")));
    cargo.env("CFLAGS", c.join(" "));
}

/// Returns the arguments of rustc in `CARGO_ENCODED_RUSTFLAGS`, else those in `RUSTFLAGS`, as cargo reads them.
fn of_environment(encoded: Option<String>, plain: Option<String>) -> Vec<String> {
    match encoded {
        Some(encoded) if encoded.is_empty() => Vec::new(),
        Some(encoded) => encoded.split(SEPARATOR).map(str::to_owned).collect(),
        None => plain.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
    }
}

/// Returns the directories that sources are compiled in, and what replaces them.
pub fn places() -> Vec<(String, String)> {
    let variable = |name: &str| env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let home = variable("HOME").map(PathBuf::from);
    let cargo = variable("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".cargo")));
    let registries = cargo.and_then(|cargo| fs::read_dir(cargo.join("registry/src")).ok());
    let mut registries: Vec<PathBuf> =
        registries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    registries.sort();
    in_order(home.as_deref(), &registries, &target(), &repository())
}

/// Orders the places as both compilers want them: the last one that matches is applied.
fn in_order(
    home: Option<&Path>,
    registries: &[PathBuf],
    target: &Path,
    repository: &Path,
) -> Vec<(String, String)> {
    let mut places = Vec::new();
    let mut add = |from: &Path, to: &str| places.push((from.display().to_string(), to.to_owned()));
    // A root user's home may be `/` in a container, and everything is below that.
    if let Some(home) = home.filter(|home| home.parent().is_some()) {
        add(home, HOME);
    }
    for registry in registries {
        add(registry, "/usr/src/crates");
    }
    add(repository, "/usr/src/banger");
    add(target, "/usr/src/banger/target");
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_in_the_environment_are_kept() {
        let check = |encoded: Option<&str>, plain: Option<&str>, expect: &[&str]| {
            assert_eq!(of_environment(encoded.map(str::to_owned), plain.map(str::to_owned)), expect);
        };
        check(None, None, &[]);
        check(None, Some(" -C  debuginfo=1 "), &["-C", "debuginfo=1"]);
        check(Some("--cfg\u{1f}a b"), Some("-g"), &["--cfg", "a b"]);
        check(Some(""), Some("-g"), &[]);
    }

    #[test]
    fn the_narrowest_place_comes_last() {
        let registry = PathBuf::from("/home/a/.cargo/registry/src/x");
        let place = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let tree = [
            place("/home/a/banger", "/usr/src/banger"),
            place("/home/a/banger/target", "/usr/src/banger/target"),
        ];
        let repository = Path::new("/home/a/banger");
        let places =
            in_order(Some(Path::new("/home/a")), &[registry], &repository.join("target"), repository);
        assert_eq!(
            places[..2],
            [place("/home/a", "/build"), place("/home/a/.cargo/registry/src/x", "/usr/src/crates")]
        );
        assert_eq!(places[2..], tree);
        let places = in_order(Some(Path::new("/")), &[], &repository.join("target"), repository);
        assert_eq!(places, tree);
    }
}
