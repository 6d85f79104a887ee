//! Locations of catalogs and their files: below a directory of the host, or on a web server.

use core::net::IpAddr;
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use url::{Host, Url};

use super::{Unusable, printable};

const MAX_LENGTH: usize = 2048;
/// The suffix of a signature file, as `minisign` writes it.
const SIGNATURE: &str = ".minisig";

/// A location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file of the host, by absolute path.
    File(PathBuf),
    /// A web server: https, or http on the host itself.
    Web(Url),
}

impl Location {
    /// Returns the location of this file's signature.
    pub fn signature(&self) -> Self {
        match self {
            Self::File(path) => {
                let mut path = path.clone().into_os_string();
                path.push(SIGNATURE);
                Self::File(path.into())
            }
            Self::Web(url) => {
                let mut url = url.clone();
                url.set_path(&format!("{}{SIGNATURE}", url.path()));
                Self::Web(url)
            }
        }
    }

    /// Returns the location of a file that the index at this location names.
    pub fn join(&self, file: &Joined) -> Self {
        match (self, file) {
            (_, Joined::Absolute(url)) => Self::Web(url.clone()),
            (Self::File(path), Joined::Beside(below)) => {
                Self::File(path.parent().unwrap_or(Path::new("/")).join(below))
            }
            (Self::Web(index), Joined::Beside(below)) => {
                let mut url = index.clone();
                let directory = index.path().rsplit_once('/').map_or("", |(directory, _)| directory);
                url.set_path(&format!("{directory}/{below}"));
                Self::Web(url)
            }
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Web(url) => url.fmt(f),
        }
    }
}

impl FromStr for Location {
    type Err = Unusable;

    /// Parses an absolute path, a `file://` address, or a web address.
    fn from_str(text: &str) -> Result<Self, Unusable> {
        let path = match text.strip_prefix("file://") {
            Some(path) => Some(path),
            None => text.starts_with('/').then_some(text),
        };
        match path {
            Some(path) if path.starts_with('/') && !path.chars().any(char::is_control) => {
                Ok(Self::File(path.into()))
            }
            Some(_) => Err(Unusable::new(format!("{} is not an absolute path", printable(text)))),
            None => web(text).map(Self::Web),
        }
    }
}

/// The location of a file, as written in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// Relative to the index, in its directory or below.
    Beside(String),
    /// On another server.
    Absolute(Url),
}

impl FromStr for Joined {
    type Err = Unusable;

    fn from_str(text: &str) -> Result<Self, Unusable> {
        if text.contains("://") {
            return web(text).map(Self::Absolute);
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '~' | '-' | '/');
        let part = |part: &str| !matches!(part, "" | "." | "..");
        match text.len() <= MAX_LENGTH && text.chars().all(plain) && text.split('/').all(part) {
            true => Ok(Self::Beside(text.to_owned())),
            false => Err(Unusable::new(format!("{} is not a path relative to the index", printable(text)))),
        }
    }
}

/// Parses a web address, which must use encryption or be on the host itself.
fn web(text: &str) -> Result<Url, Unusable> {
    let wrong = |why: &str| Unusable::new(format!("{} {why}", printable(text)));
    if text.len() > MAX_LENGTH {
        return Err(wrong("is too long"));
    }
    let url = Url::parse(text).map_err(|_| wrong("is neither an absolute path nor a web address"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("has a password in it"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has a query or a fragment"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_this_host(&url) => Ok(url),
        "http" => Err(wrong("is not encrypted; http is accepted only for this host")),
        _ => Err(wrong("is neither an absolute path nor a web address")),
    }
}

/// Returns whether an address names the host itself. What a name resolves to does not count, since others decide
/// that.
pub fn is_this_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn location(text: &str) -> Result<Location, String> {
        text.parse().map_err(|error: Unusable| error.to_string())
    }

    #[test]
    fn catalogs_are_files_of_the_host_or_encrypted() {
        for (text, expect) in [
            ("/srv/catalog/index.json", "/srv/catalog/index.json"),
            ("file:///srv/index.json", "/srv/index.json"),
            ("https://example.org/a/index.json", "https://example.org/a/index.json"),
            ("http://localhost:8000/index.json", "http://localhost:8000/index.json"),
            ("http://127.0.0.1/index.json", "http://127.0.0.1/index.json"),
            ("http://[::1]:80/index.json", "http://[::1]/index.json"),
        ] {
            assert_eq!(location(text).unwrap().to_string(), expect);
        }
        for text in [
            "",
            "index.json",
            "file://host/index.json",
            "http://example.org/index.json",
            "http://localhost.example.org/index.json",
            "ftp://example.org/index.json",
            "https://user:secret@example.org/index.json",
            "https://example.org/index.json?token=1",
            "https://example.org/index.json#x",
            "/srv/a\nb",
        ] {
            assert!(location(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_signature_stands_beside_its_index() {
        for (text, expect) in [
            ("/srv/index.json", "/srv/index.json.minisig"),
            ("https://example.org/a/index.json", "https://example.org/a/index.json.minisig"),
        ] {
            assert_eq!(location(text).unwrap().signature().to_string(), expect);
        }
    }

    #[test]
    fn files_are_beside_the_index_or_have_an_address_of_their_own() {
        let check = |index: &str, file: &str, expect: Option<&str>| {
            let joined = file.parse().map(|file| location(index).unwrap().join(&file).to_string());
            assert_eq!(joined.ok().as_deref(), expect, "{file} at {index}");
        };
        check("/srv/c/index.json", "a/b.tar.zst", Some("/srv/c/a/b.tar.zst"));
        check("https://e.org/c/index.json", "a/b~1.tar", Some("https://e.org/c/a/b~1.tar"));
        check("https://e.org/index.json", "b.tar", Some("https://e.org/b.tar"));
        check("/srv/index.json", "https://e.org/b", Some("https://e.org/b"));
        for file in [
            "",
            "/etc/shadow",
            "../x",
            "a/../../x",
            "a//b",
            "./a",
            "a?b",
            "a%2e%2e/b",
            "a b",
            "file:///etc/shadow",
            "http://e.org/b",
            "data:x",
        ] {
            check("/srv/c/index.json", file, None);
        }
    }
}
