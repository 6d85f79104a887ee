//! Makes the guest know the terminal of a client. A new terminal (ghostty, kitty, foot) has no description in the images
//! of distributions, and without one most full-screen programs refuse to start.
//!
//! The host sends its description, which is written beside those of the guest: every program finds it there, also below
//! sudo and ssh. Without one, the commands get the nearest terminal that the guest knows.

use std::path::Path;

use banger_proto::guest::terminfo::{DIRECTORIES, TerminalType, describes, is_name, paths};

use crate::{apply, log};

/// Terminals of which every guest with descriptions has at least one, the best first. Nearly every terminal of today
/// behaves as `xterm-256color` does.
const COMMON: [&str; 6] = ["xterm-256color", "xterm", "linux", "vt220", "vt100", "dumb"];
/// Terminals that are tried before, by the beginning of the name.
const NEAREST: [(&str, &[&str]); 4] = [
    ("tmux", &["tmux-256color", "screen-256color", "tmux", "screen"]),
    ("screen", &["screen-256color", "screen"]),
    ("rxvt", &["rxvt-unicode-256color", "rxvt-unicode", "rxvt"]),
    ("vt", &["vt220", "vt100"]),
];

/// Installs a description that the guest lacks. Returns the value of `TERM` for commands.
pub fn ensure(root: &str, terminal: &TerminalType) -> String {
    let TerminalType { name, entry } = terminal;
    if !is_name(name) || has(root, name) {
        return name.clone();
    }
    let Some(directory) = database(root) else {
        // No program of this guest uses descriptions.
        return name.clone();
    };
    if let Some(entry) = entry.as_deref().filter(|entry| describes(entry, name)) {
        match apply::write_bytes(root, Path::new(&place(root, directory, name)), 0o644, entry) {
            Ok(()) => return name.clone(),
            Err(error) => {
                log::error(&format!("cannot install the description of the terminal {name}: {error}"))
            }
        }
    }
    nearest(root, name).unwrap_or(name).to_owned()
}

fn has(root: &str, name: &str) -> bool {
    DIRECTORIES.iter().any(|directory| is_in(root, directory, name))
}

fn is_in(root: &str, directory: &str, name: &str) -> bool {
    paths(name).iter().any(|path| apply::exists(root, &format!("{directory}/{path}")))
}

/// Returns the directory with the descriptions of the guest's common terminals.
fn database(root: &str) -> Option<&'static str> {
    DIRECTORIES.into_iter().find(|directory| COMMON.iter().any(|name| is_in(root, directory, name)))
}

/// Returns where a description goes: named as the common ones there are.
fn place(root: &str, directory: &str, name: &str) -> String {
    let by_code = |name: &&str| apply::exists(root, &format!("{directory}/{}", paths(name)[1]));
    let [letter, code] = paths(name);
    let path = if COMMON.iter().any(by_code) { code } else { letter };
    format!("{directory}/{path}")
}

/// Returns the terminal of the guest that is most like this one.
fn nearest(root: &str, name: &str) -> Option<&'static str> {
    let kin = NEAREST.iter().filter(|(beginning, _)| name.starts_with(beginning)).flat_map(|(_, kin)| *kin);
    kin.chain(&COMMON).copied().find(|name| has(root, name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    /// Returns a root with these files.
    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "of the image").unwrap();
        }
        root
    }

    fn entry(names: &str) -> Vec<u8> {
        let header = [0o432u16, names.len() as u16 + 1, 0, 0, 0, 0];
        [&header.map(u16::to_le_bytes).concat()[..], names.as_bytes(), &[0]].concat()
    }

    const DEBIAN: &[&str] =
        &["lib/terminfo/x/xterm-256color", "lib/terminfo/s/screen", "usr/share/terminfo/r/rxvt"];

    #[test]
    fn a_terminal_has_the_nearest_description() {
        let bare: &[&str] = &["etc/terminfo/v/vt100", "etc/terminfo/d/dumb"];
        let codes: &[&str] = &["usr/share/terminfo/78/xterm"];
        for (files, term, expect) in [
            (DEBIAN, "xterm-256color", "xterm-256color"),
            (DEBIAN, "rxvt", "rxvt"),
            (DEBIAN, "xterm-ghostty", "xterm-256color"),
            (DEBIAN, "xterm-kitty", "xterm-256color"),
            (DEBIAN, "wezterm", "xterm-256color"),
            (DEBIAN, "foot", "xterm-256color"),
            (DEBIAN, "alacritty", "xterm-256color"),
            (DEBIAN, "tmux-256color", "screen"),
            (DEBIAN, "screen-256color", "screen"),
            (DEBIAN, "rxvt-unicode-256color", "rxvt"),
            (DEBIAN, "vt320", "xterm-256color"),
            (bare, "xterm-kitty", "vt100"),
            (bare, "vt320", "vt100"),
            (codes, "foot", "xterm"),
            (&[], "foot", "foot"),
            (DEBIAN, "../../etc/passwd", "../../etc/passwd"),
            (DEBIAN, "", ""),
        ] {
            let root = root(files);
            let terminal = TerminalType { name: term.to_owned(), entry: None };
            assert_eq!(ensure(root.path().to_str().unwrap(), &terminal), expect, "{term} with {files:?}");
        }
    }

    #[test]
    fn a_description_of_the_host_is_written_beside_those_of_the_guest() {
        let codes: &[&str] = &["usr/share/terminfo/78/xterm"];
        for (files, place) in
            [(DEBIAN, Some("lib/terminfo/f/foot")), (codes, Some("usr/share/terminfo/66/foot")), (&[], None)]
        {
            let root = root(files);
            let terminal = TerminalType { name: "foot".to_owned(), entry: Some(entry("foot|a terminal")) };
            for _ in 0..2 {
                assert_eq!(ensure(root.path().to_str().unwrap(), &terminal), "foot", "{files:?}");
            }
            match place {
                Some(place) => {
                    assert_eq!(fs::read(root.path().join(place)).unwrap(), entry("foot|a terminal"))
                }
                None => assert!(fs::read_dir(root.path()).unwrap().next().is_none()),
            }
        }
    }

    #[test]
    fn a_description_that_is_none_or_is_known_changes_nothing() {
        let root = root(DEBIAN);
        let path = root.path().to_str().unwrap();
        for (name, entry, expect) in [
            ("foot", entry("other"), "xterm-256color"),
            ("foot", b"#!/bin/sh".to_vec(), "xterm-256color"),
            ("screen", entry("screen"), "screen"),
        ] {
            let terminal = TerminalType { name: name.to_owned(), entry: Some(entry) };
            assert_eq!(ensure(path, &terminal), expect);
        }
        assert!(!root.path().join("lib/terminfo/f").exists());
        assert_eq!(fs::read(root.path().join("lib/terminfo/s/screen")).unwrap(), b"of the image");
    }
}
