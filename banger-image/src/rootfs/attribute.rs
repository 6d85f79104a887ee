//! Extended attributes: selects those that an image keeps, and checks that ext4 has room for them.

use super::{Error, acl, limits};

/// Names and values.
pub type Attributes = Box<[(Box<str>, Box<[u8]>)]>;

const ACCESS_LIST: &str = "system.posix_acl_access";
const DEFAULT_LIST: &str = "system.posix_acl_default";
/// The prefixes of attributes that Linux lets root set on any file. Only files and directories have `user.`
/// attributes (xattr(7)).
const ANY_FILE: [&str; 2] = ["security.", "trusted."];
const USER: &str = "user.";
/// The room for attributes in a block of ext4, which has a header of 32 bytes and a zero at the end.
const ROOM: usize = limits::ATTRIBUTES - 32 - 4;

/// Returns whether a file of an image can have the attribute: whether its name is in a namespace of Linux. Others, such
/// as those of macOS, are left out.
pub(super) fn is_of_linux(name: &[u8]) -> bool {
    let prefixes = ANY_FILE.into_iter().chain([USER]);
    [ACCESS_LIST, DEFAULT_LIST].iter().any(|list| name == list.as_bytes())
        || prefixes.into_iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// Returns the attributes of an entry that an image keeps: those that Linux allows for what it is.
pub(super) fn kept(
    path: &[u8],
    has_user_attributes: bool,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
) -> Result<Option<Attributes>, Error> {
    let (mut kept, mut room) = (Vec::new(), 0);
    for (name, value) in attributes {
        if !is_of_linux(&name) || (!has_user_attributes && name.starts_with(USER.as_bytes())) {
            continue;
        }
        let Ok(name) = String::from_utf8(name) else {
            return Err(Error::entry(path, "has an extended attribute whose name is not text"));
        };
        let (suffix, value) = if matches!(name.as_str(), ACCESS_LIST | DEFAULT_LIST) {
            let list = acl::to_disk(&value);
            ("", list.ok_or_else(|| Error::entry(path, "has an invalid access control list"))?)
        } else if let Some(suffix) = ANY_FILE.iter().find_map(|prefix| name.strip_prefix(prefix)) {
            (named(path, suffix)?, value)
        } else {
            (named(path, name.strip_prefix(USER).unwrap_or_default())?, value)
        };
        // `struct ext4_xattr_entry`, the name and the value, each padded to four bytes.
        room += 16 + suffix.len().next_multiple_of(4) + value.len().next_multiple_of(4);
        kept.push((name.into_boxed_str(), value.into_boxed_slice()));
    }
    if room > ROOM {
        return Err(Error::entry(path, format!("has more extended attributes than fit into {ROOM} bytes")));
    }
    Ok((!kept.is_empty()).then(|| kept.into_boxed_slice()))
}

fn named<'a>(path: &[u8], suffix: &'a str) -> Result<&'a str, Error> {
    match suffix.len() {
        1..=limits::NAME if !suffix.contains('\0') => Ok(suffix),
        _ => Err(Error::entry(path, "has an extended attribute with an invalid name")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(has_user_attributes: bool, names: &[&str]) -> Vec<String> {
        let given = names.iter().map(|name| (name.as_bytes().to_vec(), b"v".to_vec())).collect();
        let kept = kept(b"f", has_user_attributes, given).unwrap().unwrap_or_default();
        kept.iter().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn attributes_of_linux_are_kept() {
        let all = ["user.a", "security.capability", "trusted.b", "com.apple.provenance", "system.nfs4_acl"];
        assert_eq!(names(true, &all), ["user.a", "security.capability", "trusted.b"]);
        assert_eq!(names(false, &all), ["security.capability", "trusted.b"]);
    }

    #[test]
    fn attributes_without_room_or_name_are_refused() {
        let refused = |name: &[u8], value: usize| kept(b"f", true, vec![(name.to_vec(), vec![0; value])]);
        assert!(refused(b"user.x", ROOM - 20).is_ok());
        assert!(refused(b"user.x", ROOM - 19).is_err());
        for name in [b"user.".as_slice(), b"user.\xff", b"security.a\0", b"system.posix_acl_access"] {
            assert!(refused(name, 3).is_err());
        }
        assert!(refused(&[b"user.".as_slice(), &[b'a'; 256]].concat(), 1).is_err());
        // What is left out needs neither.
        for name in [b"com.apple.\xff".as_slice(), b"system.other"] {
            assert_eq!(refused(name, 2 * ROOM).unwrap(), None);
        }
        assert_eq!(kept(b"l", false, vec![(b"user.\xff".to_vec(), vec![0; 2 * ROOM])]).unwrap(), None);
    }
}
