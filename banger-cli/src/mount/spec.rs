//! The values of `--mount`: `DIR[:PATH][:ro]`, as users of docker write them.

use std::{env, path::PathBuf, str::FromStr};

use banger_proto::guest::mount::check_path;

/// A directory of the host, and where it is in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// The directory.
    pub directory: PathBuf,
    /// The path in the sandbox; that of the directory when absent.
    pub path: Option<String>,
    /// Whether changes are refused.
    pub read_only: bool,
}

impl FromStr for MountSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || Err("it must be DIR[:PATH][:ro]".to_owned());
        if text.starts_with("type=") || text.contains('\0') {
            return form();
        }
        let (text, read_only) = match (text.strip_suffix(":ro"), text.strip_suffix(":rw")) {
            (Some(rest), _) => (rest, true),
            (_, Some(rest)) => (rest, false),
            _ => (text, false),
        };
        let (directory, path) = match text.rsplit_once(':') {
            Some((directory, path)) => (directory, Some(path.to_owned())),
            None => (text, None),
        };
        if let Some(path) = &path {
            check_path(path)?;
        }
        if directory.is_empty() {
            return form();
        }
        // A shell leaves `~` as it is in the middle of a word.
        let directory = match (directory.strip_prefix("~/"), env::home_dir()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(directory),
        };
        Ok(Self { directory, path, read_only })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mount_has_a_directory_a_path_and_a_mode() {
        for (text, directory, path, read_only) in [
            (".", ".", None, false),
            ("src:ro", "src", None, true),
            ("src:rw", "src", None, false),
            ("/a b:/srv", "/a b", Some("/srv"), false),
            ("../src:/srv/web:ro", "../src", Some("/srv/web"), true),
            ("a:b:/srv", "a:b", Some("/srv"), false),
        ] {
            let expect = MountSpec { directory: directory.into(), path: path.map(str::to_owned), read_only };
            assert_eq!(text.parse(), Ok(expect), "{text}");
        }
        let home = env::home_dir().unwrap();
        assert_eq!("~/x:/x".parse::<MountSpec>().unwrap().directory, home.join("x"));
        for wrong in [
            "",
            ":/srv",
            ":ro",
            "src:srv",
            "src:",
            "src:/",
            "src:/proc",
            "src:/a/../b",
            "type=bind,src=/a,dst=/b",
        ] {
            assert!(wrong.parse::<MountSpec>().is_err(), "{wrong}");
        }
    }
}
