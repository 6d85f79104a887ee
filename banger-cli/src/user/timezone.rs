//! Chooses the time zone of a sandbox: the user's, unless they set another one.

use std::{
    env, fs,
    path::{Component, Path, PathBuf},
};

use crate::error::{Error, Result};

/// Path of the time zone database.
const ZONES: &str = "/usr/share/zoneinfo";
const LOCALTIME: &str = "/etc/localtime";
/// Keywords instead of a zone: the host's zone, and the image's.
pub const HOST: &str = "host";
pub const IMAGE: &str = "image";
/// Limit on the size of a zone's file; the largest existing one has 4 KiB.
const MAX_FILE: u64 = 64 << 10;

/// A time zone: its name, and its current rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timezone {
    /// The name in the database, such as `Europe/Berlin`.
    pub name: String,
    /// The rule in the POSIX format of `TZ`.
    pub rule: Option<String>,
}

/// Resolves a setting. Returns `None` for the image's own zone, and if the host's zone is unknown.
pub fn from_setting(setting: &str) -> Result<Option<Timezone>> {
    let zones = Path::new(ZONES);
    match setting {
        IMAGE => Ok(None),
        HOST => {
            let name = name_of_host(env::var("TZ").ok().as_deref(), Path::new(LOCALTIME), zones);
            Ok(name.map(|name| Timezone { rule: rule(&zones.join(&name)), name }))
        }
        // Without the database, names cannot be checked.
        name if zones.is_dir() && !zones.join(name).is_file() => {
            let error = Error::Refused(format!("there is no time zone {name}"));
            Err(error.with_hint("`ls /usr/share/zoneinfo` shows the names, such as Europe/Berlin."))
        }
        name => Ok(Some(Timezone { name: name.to_owned(), rule: rule(&zones.join(name)) })),
    }
}

/// Returns the user's zone if it is set, else the host's (tzset(3), localtime(5)).
fn name_of_host(variable: Option<&str>, localtime: &Path, zones: &Path) -> Option<String> {
    if let Some(name) = variable.map(|text| text.trim_start_matches(':')).filter(|text| !text.is_empty()) {
        let below = Path::new(name).strip_prefix(zones).unwrap_or(Path::new(name)).to_owned();
        // It may also be a rule, which has no name.
        return relative_name(&below).filter(|name| zones.join(name).is_file());
    }
    let target = fs::read_link(localtime).ok()?;
    let mut components = target.components();
    components.find(|component| component.as_os_str() == "zoneinfo")?;
    let below = components.as_path();
    let below =
        ["posix", "right"].iter().find_map(|variant| below.strip_prefix(variant).ok()).unwrap_or(below);
    relative_name(below)
}

/// Returns a relative path without special components.
fn relative_name(path: &Path) -> Option<String> {
    let is_plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    path.to_str().filter(|text| is_plain && !text.is_empty()).map(str::to_owned)
}

/// Returns the rule in the last line of a zone's file (RFC 9636, section 3.3).
fn rule(file: &PathBuf) -> Option<String> {
    if fs::metadata(file).ok()?.len() > MAX_FILE {
        return None;
    }
    let bytes = fs::read(file).ok()?;
    let line = bytes.strip_suffix(b"\n")?.rsplit(|byte| *byte == b'\n').next()?;
    let text = std::str::from_utf8(line).ok()?;
    (bytes.starts_with(b"TZif") && !text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_users_zone_overrides_the_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let zones = dir.path().join("zoneinfo");
        fs::create_dir_all(zones.join("Asia")).unwrap();
        fs::write(zones.join("Asia/Tokyo"), "TZif2…\nJST-9\n").unwrap();
        let localtime = dir.path().join("localtime");
        let zone = |variable: Option<&str>| name_of_host(variable, &localtime, &zones);
        assert_eq!(zone(None), None);
        for (target, expect) in [
            ("/usr/share/zoneinfo/Europe/Berlin", Some("Europe/Berlin")),
            ("../usr/share/zoneinfo/UTC", Some("UTC")),
            ("/usr/share/zoneinfo/right/America/Lima", Some("America/Lima")),
            ("/usr/share/zoneinfo/../x", None),
            ("/usr/share/zoneinfo", None),
            ("/opt/zone", None),
        ] {
            let _ = fs::remove_file(&localtime);
            symlink(target, &localtime).unwrap();
            assert_eq!(zone(None).as_deref(), expect, "{target}");
        }
        let path = zones.join("Asia/Tokyo");
        for variable in ["Asia/Tokyo", ":Asia/Tokyo", path.to_str().unwrap()] {
            assert_eq!(zone(Some(variable)).as_deref(), Some("Asia/Tokyo"), "{variable}");
        }
        for variable in ["CET-1CEST", "Asia/Nowhere", "../localtime"] {
            assert_eq!(zone(Some(variable)), None, "{variable}");
        }
        assert_eq!(rule(&path).as_deref(), Some("JST-9"));
    }

    #[test]
    fn other_files_have_no_rule() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("zone");
        for content in ["", "TZif2", "TZif2\n\n", "text\nJST-9\n"] {
            fs::write(&file, content).unwrap();
            assert_eq!(rule(&file), None, "{content:?}");
        }
    }
}
