//! The scripts below `xtask/scripts`, which are files so that ShellCheck and pyflakes read them.
//!
//! `script!("level4/guests/ends.sh" uses "wait.sh", name = value)` returns the words of a command that runs a script,
//! after the scripts that it uses. The script is passed as text, because it runs where the repository is not: in a
//! private host or in a test host. Its first line says by which program and with which flags.
//!
//! The parameters of a script are lines such as `address=$1` or `runs = int(sys.argv[1])`. A call that does not give
//! them all, in order and by their names, does not compile.

/// Returns the words of a command that runs a script with these arguments.
macro_rules! script {
    ($path:literal $(uses $first:literal $(+ $next:literal)*)? $(, $name:ident = $value:expr)* $(,)?) => {{
        const MAIN: &str = script_text!($path);
        const TEXT: &str = concat!(
            $(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/", $first)),
            $(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/", $next)),)*)?
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/", $path)),
        );
        const _: () = assert!(
            $crate::script::declares(TEXT, &[$(stringify!($name)),*]),
            "these are not the parameters of the script"
        );
        $crate::script::words($path, MAIN, TEXT, &[$(&*$value.to_string()),*])
    }};
}

/// Returns the text of a script, which is an argument of another one.
macro_rules! script_text {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/", $path))
    };
}

/// Returns the words of a command that runs `text` as the first line of `main` says. Shells report errors with the
/// name `path`.
pub fn words(path: &str, main: &str, text: &str, arguments: &[&str]) -> Vec<String> {
    let first = main.lines().next().unwrap_or_default();
    let (program, flags) = first.split_once(' ').unwrap_or((first, "-"));
    let program = program.rsplit('/').next().unwrap_or_default();
    let mut words = vec![program.to_owned(), format!("{flags}c"), text.to_owned()];
    if program != "python3" {
        words.push(path.to_owned());
    }
    words.extend(arguments.iter().map(|&argument| argument.to_owned()));
    words
}

/// Whether these are the names of the parameters of a script, in order.
pub const fn declares(text: &str, names: &[&str]) -> bool {
    let text = text.as_bytes();
    let (mut at, mut found) = (0, 0);
    while at < text.len() {
        let mut end = at;
        while end < text.len() && text[end] != b'\n' {
            end += 1;
        }
        if let Some((number, length)) = parameter(text, at, end) {
            let is_next = number == found + 1 && found < names.len();
            if !is_next || names[found].len() != length || !has(text, at, names[found].as_bytes()) {
                return false;
            }
            found += 1;
        }
        at = end + 1;
    }
    found == names.len()
}

/// Returns the number of the parameter that the line from `at` to `end` declares, and the length of its name.
const fn parameter(text: &[u8], at: usize, end: usize) -> Option<(usize, usize)> {
    let mut place = at;
    while place < end && (text[place].is_ascii_alphanumeric() || text[place] == b'_') {
        place += 1;
    }
    let length = place - at;
    if length == 0 {
        return None;
    }
    if has(text, place, b"=$") && place + 3 == end && text[place + 2].is_ascii_digit() {
        return Some((digit(text[place + 2]), length));
    }
    if !has(text, place, b" = ") {
        return None;
    }
    while place < end {
        if has(text, place, b"sys.argv[") && place + 9 < end {
            return Some((digit(text[place + 9]), length));
        }
        place += 1;
    }
    None
}

const fn digit(byte: u8) -> usize {
    (byte - b'0') as usize
}

/// Whether `text` has these bytes at a place.
const fn has(text: &[u8], place: usize, bytes: &[u8]) -> bool {
    let mut at = 0;
    while at < bytes.len() {
        if place + at >= text.len() || text[place + at] != bytes[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        collections::{BTreeMap, BTreeSet},
        fs,
        path::{Path, PathBuf},
    };

    use super::*;
    use crate::run::command;

    #[test]
    fn a_script_has_its_interpreter_and_its_arguments() {
        let words = |main: &str| words("a.sh", main, "text", &["one", "$two 'three'"]);
        assert_eq!(words("#!/bin/sh -eu\n"), ["sh", "-euc", "text", "a.sh", "one", "$two 'three'"]);
        assert_eq!(words("#!/bin/bash\n"), ["bash", "-c", "text", "a.sh", "one", "$two 'three'"]);
        assert_eq!(words("#!/usr/bin/python3\n"), ["python3", "-c", "text", "one", "$two 'three'"]);
    }

    #[test]
    fn parameters_are_declared_in_order_and_by_name() {
        for (text, names, expect) in [
            ("#!/bin/sh\na=$1\nb=$2\necho $3\n", &["a", "b"][..], true),
            ("a=$1\nb=$2\n", &["a"], false),
            ("a=$1\nb=$2\n", &["b", "a"], false),
            ("a=$1\n", &["a", "b"], false),
            ("a=$1\n", &["an"], false),
            ("ab=$1\n", &["a"], false),
            ("b=$2\na=$1\n", &["b", "a"], false),
            ("f() {\n    a=$1\n}\nunit=$1.service\nx=$!\n", &[], true),
            ("a=$1", &["a"], true),
            ("runs = int(sys.argv[1])\nsmall = sys.argv[2] == 'small'\n", &["runs", "small"], true),
            ("runs = int(sys.argv[1])\n", &[], false),
        ] {
            assert_eq!(declares(text, names), expect, "{text:?} {names:?}");
        }
    }

    /// Waits for a file that another process writes, with the functions that all scripts use.
    #[test]
    fn scripts_wait_until_something_holds_and_say_what_did_not() {
        let dir = tempfile::tempdir().unwrap();
        let wait = script_text!("wait.sh");
        let run = |text: &str| {
            let words = words("test", "#!/bin/sh -eu", &format!("{wait}{text}"), &[]);
            let output = command(&words[0], &words[1..]).current_dir(dir.path()).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let come = "(sleep 0.2; touch came) & wait_until 20 'a file' test -e came; test -e came";
        assert_eq!(run(come), (Some(0), String::new()));
        let (status, said) = run("wait_until 0 'a file' quietly ls missing; echo on >&2");
        assert_eq!((status, said.as_str()), (Some(1), "waited in vain for a file\n"));
        assert_eq!(run("wait_until 0 'a file' test -e no || echo on >&2").0, Some(0));
    }

    /// Returns all files below a directory.
    fn below(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { below(&path, files) } else { files.push(path) }
        }
    }

    /// Returns the script that each call of this macro runs, with those that it uses.
    fn calls<'a>(sources: &'a str, name: &str) -> Vec<Vec<&'a str>> {
        let calls = sources.split(name).skip(1).map(str::trim_start);
        let paths = calls.filter(|call| call.starts_with('"')).map(|call| {
            let paths = call.split([',', ')']).next().unwrap_or_default();
            paths.split('"').skip(1).step_by(2).collect()
        });
        paths.collect()
    }

    #[test]
    fn every_script_is_used_together_with_the_functions_that_it_calls() {
        let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut sources, mut scripts) = (Vec::new(), Vec::new());
        below(&crate_root.join("src"), &mut sources);
        below(&crate_root.join("scripts"), &mut scripts);
        let sources: String = sources
            .iter()
            .filter(|path| !path.ends_with("script.rs"))
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        let scripts: BTreeMap<String, String> = scripts
            .iter()
            .filter(|path| !path.ends_with(".shellcheckrc"))
            .map(|path| {
                let name = path.strip_prefix(crate_root.join("scripts")).unwrap();
                (name.to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap())
            })
            .collect();
        let calls = [calls(&sources, "script!("), calls(&sources, "script_text!(")].concat();
        let used: BTreeSet<&str> = calls.iter().flatten().copied().collect();
        let there: BTreeSet<&str> = scripts.keys().map(String::as_str).collect();
        assert_eq!(used, there);

        // The functions of the scripts that others use.
        let libraries: BTreeSet<&str> = calls.iter().flat_map(|call| &call[1..]).copied().collect();
        let functions = |name: &str| {
            let lines = scripts[name].lines().filter_map(|line| line.split_once("() {"));
            lines.map(|(function, _)| function.to_owned()).collect::<Vec<String>>()
        };
        let is_called = |function: &str, text: &str| {
            let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| word == function)
        };
        for call in &calls {
            let text: String = call.iter().map(|name| scripts[*name].as_str()).collect();
            for library in libraries.iter().filter(|library| !call.contains(library)) {
                // Other functions have names that are also words.
                let functions = functions(library);
                for function in functions.iter().filter(|function| function.contains('_')) {
                    let is_its_own = text.contains(&format!("{function}() {{"));
                    assert!(is_its_own || !is_called(function, &text), "{call:?} calls {function}");
                }
            }
        }
    }

    #[test]
    fn every_script_says_what_it_is() {
        let mut scripts = Vec::new();
        below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts"), &mut scripts);
        for path in scripts.iter().filter(|path| !path.ends_with(".shellcheckrc")) {
            let text = fs::read_to_string(path).unwrap();
            let mut lines = text.lines();
            let first = lines.next().unwrap();
            let expect: &[&str] = match path.extension().and_then(|extension| extension.to_str()) {
                Some("py") => &["#!/usr/bin/python3"],
                _ => &[
                    "#!/bin/sh",
                    "#!/bin/sh -e",
                    "#!/bin/sh -u",
                    "#!/bin/sh -eu",
                    "#!/bin/bash",
                    "#!/bin/bash -eu",
                ],
            };
            assert!(expect.contains(&first), "{}: {first}", path.display());
            assert!(lines.next().unwrap().starts_with("# "), "{}", path.display());
        }
    }
}
