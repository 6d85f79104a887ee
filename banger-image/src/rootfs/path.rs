//! Parses names in archives as paths below the root.

use super::{Error, limits};

/// Returns the components of a path from the root, none for the root itself.
///
/// An absolute path starts at the same root, as in GNU tar and Docker. `..` removes the component before it, whatever
/// that is in the image, as in Docker; a path that would leave the root is refused.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    if path.len() > limits::PATH {
        return Err(Error::entry(path, format!("has a name of more than {} bytes", limits::PATH)));
    }
    if path.contains(&0) {
        return Err(Error::entry(path, "has a NUL byte in its name"));
    }
    if path.is_empty() {
        return Err(Error::entry(path, "has no name"));
    }
    let mut components: Vec<&[u8]> = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if components.pop().is_some() => {}
            b".." => return Err(Error::entry(path, "leaves the root by `..`")),
            _ if name.len() > limits::NAME => {
                return Err(Error::entry(
                    path,
                    format!("has a name of more than {} bytes in it", limits::NAME),
                ));
            }
            _ => components.push(name),
        }
    }
    Ok(components)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(path: &[u8], expect: &[&str]) {
        let found: Vec<&[u8]> = components(path).unwrap();
        let expect: Vec<&[u8]> = expect.iter().map(|name| name.as_bytes()).collect();
        assert_eq!(found, expect, "{}", path.escape_ascii());
    }

    fn refused(path: &[u8], why: &str) {
        let message = components(path).unwrap_err().to_string();
        assert!(message.contains(why), "{message}");
    }

    #[test]
    fn names_lead_from_the_root() {
        for root in ["/", ".", "./", "././/", "///"] {
            check(root.as_bytes(), &[]);
        }
        check(b"usr/bin/", &["usr", "bin"]);
        check(b"./usr//./bin", &["usr", "bin"]);
        check(b"a/...", &["a", "..."]);
        check(b"/etc/passwd", &["etc", "passwd"]);
        check(b"//etc", &["etc"]);
        check(b"etc/../etc/y", &["etc", "y"]);
        check(b"a/..", &[]);
        assert_eq!(components(b"\xff/\n").unwrap(), [b"\xff".as_slice(), b"\n"]);
    }

    #[test]
    fn a_path_that_leaves_the_root_is_refused() {
        refused(b"", "no name");
        for path in ["..", "../etc", "a/../..", "a/../../b", "./..", "/..", "/../b", "a/../../a"] {
            refused(path.as_bytes(), "`..`");
        }
        refused(b"a\0b", "NUL");
        refused(&[b'a'; 256], "255");
        refused(&b"a/".repeat(2048), "4095");
        check(&[b'a'; 255], &[&"a".repeat(255)]);
    }
}
