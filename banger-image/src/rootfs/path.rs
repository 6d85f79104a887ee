//! Parses names in archives as paths below the root.

use super::{Error, limits};

/// Returns the components of a path from the root, none for the root itself. Paths with `..` and absolute paths are
/// refused, wherever they would lead.
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
    let components: Vec<&[u8]> =
        path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    // Some tools use `/` for the root.
    if path[0] == b'/' && !components.is_empty() {
        return Err(Error::entry(path, "has an absolute name"));
    }
    if components.contains(&b"..".as_slice()) {
        return Err(Error::entry(path, "leaves the root by `..`"));
    }
    if components.iter().any(|name| name.len() > limits::NAME) {
        return Err(Error::entry(path, format!("has a name of more than {} bytes in it", limits::NAME)));
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
        assert_eq!(components(b"\xff/\n").unwrap(), [b"\xff".as_slice(), b"\n"]);
    }

    #[test]
    fn a_path_that_leaves_the_root_is_refused() {
        refused(b"", "no name");
        refused(b"/etc/passwd", "absolute");
        refused(b"//etc", "absolute");
        for path in ["..", "../etc", "a/..", "a/../b", "./..", "/.."] {
            let message = components(path.as_bytes()).unwrap_err().to_string();
            assert!(message.contains("`..`") || message.contains("absolute"), "{message}");
        }
        refused(b"a\0b", "NUL");
        refused(&[b'a'; 256], "255");
        refused(&b"a/".repeat(2048), "4095");
        check(&[b'a'; 255], &[&"a".repeat(255)]);
    }
}
