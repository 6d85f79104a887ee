//! The values of `--mount` and `-v`: `DIR[:PATH][:ro]`, as users of docker and podman write them.

use std::{env, path::PathBuf, str::FromStr};

use banger_proto::guest::mount::check_path;

/// Options of docker and podman that mean nothing here: labels of SELinux, and how docker's virtual machine caches.
const IGNORED: [&str; 5] = ["z", "Z", "cached", "delegated", "consistent"];
/// Directories without a slash that are no names.
const SHORT: [&str; 3] = [".", "..", "~"];

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
        let is_option = |word: &str| matches!(word, "ro" | "rw") || IGNORED.contains(&word);
        let (text, options) = match text.rsplit_once(':') {
            Some((rest, options)) if options.split(',').all(is_option) => (rest, options),
            _ => (text, ""),
        };
        let has = |option: &str| options.split(',').any(|word| word == option);
        if has("ro") && has("rw") {
            return Err("it cannot be both ro and rw".to_owned());
        }
        let read_only = has("ro");
        let (directory, path) = match text.rsplit_once(':') {
            Some((directory, path)) => (directory, Some(path.to_owned())),
            None => (text, None),
        };
        if let Some(path) = &path {
            if directory.contains(":/") && !path.starts_with('/') {
                return Err(format!("`{path}` is not a mount option; use `ro` or `rw`"));
            }
            check_path(path)?;
        }
        if directory.is_empty() {
            return form();
        }
        // A shell leaves `~` as it is in the middle of a word.
        let below_home = if directory == "~" { Some("") } else { directory.strip_prefix("~/") };
        let directory = match (below_home, env::home_dir()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(directory),
        };
        Ok(Self { directory, path, read_only })
    }
}

/// Reads a value of `-v`. Without a directory of the host, it would be a volume of docker, which is no mount.
pub fn volume(text: &str) -> Result<MountSpec, String> {
    let spec: MountSpec = text.parse()?;
    if spec.path.is_none() {
        return Err("it must be DIR:PATH[:ro]: there are no anonymous volumes".to_owned());
    }
    match volume_name(text) {
        Some(_) => Err("there are no named volumes".to_owned()),
        None => Ok(spec),
    }
}

/// Returns the name of the volume that docker would take for a value of `-v`.
pub fn volume_name(text: &str) -> Option<&str> {
    let (name, _) = text.split_once(":/")?;
    (!name.is_empty() && !name.contains('/') && !SHORT.contains(&name)).then_some(name)
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
            (".:/w:Z", ".", Some("/w"), false),
            (".:/w:z", ".", Some("/w"), false),
            (".:/w:ro,Z", ".", Some("/w"), true),
            (".:/w:z,ro", ".", Some("/w"), true),
            (".:/w:cached", ".", Some("/w"), false),
            (".:/w:rw,delegated", ".", Some("/w"), false),
            (".:/w:consistent", ".", Some("/w"), false),
            ("./Z:/w/Z", "./Z", Some("/w/Z"), false),
            ("src:ro,z", "src", None, true),
        ] {
            let expect = MountSpec { directory: directory.into(), path: path.map(str::to_owned), read_only };
            assert_eq!(text.parse(), Ok(expect), "{text}");
        }
        let home = env::home_dir().unwrap();
        assert_eq!("~/x:/x".parse::<MountSpec>().unwrap().directory, home.join("x"));
        assert_eq!(volume("~:/x").unwrap().directory, home.join(""));
        for wrong in [
            "",
            ":/srv",
            ":ro",
            "src:srv",
            "src:",
            "src:/",
            "src:/proc",
            "src:/a/../b",
            "src:/a:ro,rw",
            "src:/a:ro,",
            "src:/a:roz",
            "type=bind,src=/a,dst=/b",
        ] {
            assert!(wrong.parse::<MountSpec>().is_err(), "{wrong}");
        }
        let reason = "src:/a:ro,U".parse::<MountSpec>().unwrap_err();
        assert_eq!(reason, "`ro,U` is not a mount option; use `ro` or `rw`");
    }

    #[test]
    fn what_would_be_a_volume_of_docker_is_refused() {
        for text in [".:/w", "..:/w:ro", "./src:/w", "/src:/w:Z", "a/b:/w", "~/src:/w"] {
            assert_eq!(volume(text), text.parse(), "{text}");
        }
        for text in ["/app/node_modules", "/data:ro", ".", "src", "src:ro"] {
            assert!(text.parse::<MountSpec>().is_ok(), "{text}");
            assert!(volume(text).unwrap_err().contains("no anonymous volumes"), "{text}");
        }
        for text in ["data:/var/lib/data", "src:/w:ro", "a.b:/w:Z", "...:/w"] {
            assert!(text.parse::<MountSpec>().is_ok(), "{text}");
            assert_eq!(volume(text), Err("there are no named volumes".to_owned()), "{text}");
        }
    }
}
