//! Sets the guest's time zone by `/etc/localtime` (localtime(5)).
//!
//! If the image knows the zone, this is a link to its file. If not, it becomes a file with the zone's rule, which
//! every C library reads. So daemons and their logs use the user's time, too; a variable in the environment of
//! commands would not reach them.

use std::{io, path::Path};

use banger_proto::guest::config::GuestTimezone;

use crate::{apply, log};

const LOCALTIME: &str = "/etc/localtime";
/// Debian's own copy of the name. Other systems have none.
const NAME: &str = "/etc/timezone";
const ZONES: &str = "/usr/share/zoneinfo";
/// When the rule begins to apply: earlier than any time of a 32-bit program. Readers treat a file without any
/// transition as one whose first type never changes, whatever its rule says.
const FIRST_TRANSITION: i32 = i32::MIN;

/// Sets the system's zone below this root. Returns the problems.
pub fn apply(root: &str, zone: &GuestTimezone) -> Vec<String> {
    let problem = |error: io::Error| {
        let problem = format!("cannot set the time zone {}: {error}", zone.name);
        log::error(&problem);
        problem
    };
    put(root, zone).map_err(problem).err().into_iter().collect()
}

fn put(root: &str, zone: &GuestTimezone) -> io::Result<()> {
    let known = format!("{ZONES}/{}", zone.name);
    if apply::exists(root, &known) {
        apply::link(root, LOCALTIME, &known)?;
        if apply::exists(root, NAME) {
            apply::write(root, &file(NAME, format!("{}\n", zone.name)))?;
        }
        return Ok(());
    }
    match zone.rule.as_deref().and_then(tzif) {
        Some(content) => apply::write_bytes(root, Path::new(LOCALTIME), 0o644, &content),
        None => Ok(()),
    }
}

fn file(path: &str, content: String) -> banger_proto::guest::config::GuestFile {
    banger_proto::guest::config::GuestFile { path: path.to_owned(), mode: 0o644, content }
}

/// Returns a time zone file that consists of a rule (RFC 9636): twice a header and one transition, with 32 and with
/// 64 bits, and the rule. Returns `None` if the rule is not valid in the last line of such a file.
fn tzif(rule: &str) -> Option<Vec<u8>> {
    if rule.is_empty() || !rule.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut bytes = Vec::new();
    for begin in [FIRST_TRANSITION.to_be_bytes().to_vec(), i64::from(FIRST_TRANSITION).to_be_bytes().to_vec()]
    {
        bytes.extend(b"TZif2");
        bytes.extend([0; 15]);
        // Counts of UT and standard time indicators, leap seconds, transitions, types, and characters of names.
        for count in [0u32, 0, 0, 1, 1, 4] {
            bytes.extend(count.to_be_bytes());
        }
        bytes.extend(begin);
        // The type of the transition, and that type: no offset, no daylight saving, the first name.
        bytes.extend([0; 1 + 6]);
        bytes.extend(b"UTC\0");
    }
    bytes.extend(format!("\n{rule}\n").bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, process::Command};

    use super::*;

    const RULE: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    fn berlin(rule: Option<&str>) -> GuestTimezone {
        GuestTimezone { name: "Europe/Berlin".into(), rule: rule.map(str::to_owned) }
    }

    #[test]
    fn a_zone_that_the_image_knows_is_linked() {
        let root = root(&["usr/share/zoneinfo/Europe/Berlin", "etc/localtime", "etc/timezone"]);
        for _ in 0..2 {
            assert_eq!(apply(root.path().to_str().unwrap(), &berlin(Some(RULE))), Vec::<String>::new());
            let link = fs::read_link(root.path().join("etc/localtime")).unwrap();
            assert_eq!(link, Path::new("/usr/share/zoneinfo/Europe/Berlin"));
            assert_eq!(fs::read_to_string(root.path().join("etc/timezone")).unwrap(), "Europe/Berlin\n");
        }
    }

    #[test]
    fn a_zone_unknown_to_the_image_becomes_a_file() {
        let root = root(&[]);
        assert_eq!(apply(root.path().to_str().unwrap(), &berlin(Some(RULE))), Vec::<String>::new());
        let localtime = root.path().join("etc/localtime");
        for (time, expect) in [("1750000000", "17:06 CEST\n"), ("1765000000", "06:46 CET\n")] {
            let mut date = Command::new("date");
            date.env("TZ", format!(":{}", localtime.display())).args([
                "-d",
                &format!("@{time}"),
                "+%H:%M %Z",
            ]);
            assert_eq!(String::from_utf8(date.output().unwrap().stdout).unwrap(), expect);
        }
        assert!(!root.path().join("etc/timezone").exists());
    }

    #[test]
    fn without_zone_and_rule_the_image_keeps_its_own() {
        let root = root(&["etc/localtime"]);
        assert_eq!(apply(root.path().to_str().unwrap(), &berlin(None)), Vec::<String>::new());
        assert!(fs::symlink_metadata(root.path().join("etc/localtime")).unwrap().is_file());
        assert_eq!(tzif("CET-1\nX"), None);
        assert_eq!(tzif(""), None);
    }
}
