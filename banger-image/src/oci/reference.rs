//! References to images of registries: `alpine`, `ghcr.io/org/tool:1.2`, `localhost:5000/a/b@sha256:…`.
//!
//! The grammar and the defaults are Docker's (<https://github.com/distribution/reference>), so that references mean
//! the same here.

use core::net::{IpAddr, Ipv6Addr};
use std::{fmt, str::FromStr};

use banger_domain::{digest::Digest, name::Name};

/// The registry of references that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The former name of Docker's registry.
const OLD_DEFAULT_REGISTRY: &str = "index.docker.io";
/// The host that serves the protocol for Docker's registry.
const DEFAULT_REGISTRY_API: &str = "registry-1.docker.io";
/// The parent of single-part names in Docker's registry.
const DEFAULT_PARENT: &str = "library";
const DEFAULT_TAG: &str = "latest";

const MAX_REFERENCE: usize = 512;
const MAX_HOST: usize = 253;
/// The limit of the repository with its registry, as in Docker.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
/// The longest name of an image on this host.
const MAX_LOCAL_NAME: usize = 63;

/// The host of a registry, and its port if given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryHost(String);

/// A reference to a registry's image. It names a tag, a digest, or both; the digest takes precedence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    registry: RegistryHost,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is not a reference to an image: {why}", super::printable(.text))]
pub struct NotAReference {
    text: String,
    why: &'static str,
}

impl RegistryHost {
    /// Returns host and port as in a reference.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns host and port of the server that speaks the protocol.
    pub fn api(&self) -> &str {
        if self.0 == DEFAULT_REGISTRY { DEFAULT_REGISTRY_API } else { &self.0 }
    }

    /// Returns the host alone, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        let (host, _) = split_port(self.api());
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns the port, if given.
    pub fn port(&self) -> Option<u16> {
        split_port(self.api()).1.and_then(|port| port.parse().ok())
    }

    /// Returns whether it names the host itself: `localhost` or a loopback address. What a name resolves to does not
    /// count, since others decide that.
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ImageRef {
    /// Returns the registry.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// Returns the repository in the registry, such as `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns what to ask the registry for: the digest, or else the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// Returns the digest that the document must have.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns the default name of the image: the last part of the repository, with the tag unless that says nothing.
    /// `alpine`, `debian-bookworm-slim`.
    pub fn local_name(&self) -> Option<Name> {
        let last = self.repository.rsplit('/').next().unwrap_or_default();
        let tag = self.tag.as_deref().filter(|tag| *tag != DEFAULT_TAG);
        let text = tag.map_or_else(|| last.to_owned(), |tag| format!("{last}-{tag}"));
        let mut name = String::new();
        for c in text.to_ascii_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' => name.push(c),
                _ if name.ends_with('-') || name.is_empty() => {}
                _ => name.push('-'),
            }
        }
        name.truncate(MAX_LOCAL_NAME);
        let name = name.trim_end_matches('-');
        // A name of hexadecimal digits alone would be taken for an id.
        name.parse()
            .or_else(|_| format!("image-{}", &name[..name.len().min(MAX_LOCAL_NAME - 6)]).parse())
            .ok()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageRef {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        let wrong = |why| NotAReference { text: text.to_owned(), why };
        // As podman and skopeo write it.
        let text = text.strip_prefix("docker://").unwrap_or(text);
        if text.contains("://") {
            return Err(wrong(
                "a reference begins with the registry, such as ghcr.io, and not with a scheme",
            ));
        }
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > MAX_REFERENCE {
            return Err(wrong("it is too long"));
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => {
                let digest = digest.parse();
                (
                    name,
                    Some(digest.map_err(|_| wrong("`sha256:` and 64 hexadecimal digits must follow the @"))?),
                )
            }
        };
        // A colon after the last slash belongs to a tag, an earlier one to a port.
        let (name, tag) = match name.rsplit_once(':') {
            Some((before, tag)) if !tag.contains('/') => (before, Some(tag)),
            _ => (name, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(wrong)?;
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, name),
        };
        check_host(registry).map_err(wrong)?;
        let registry = registry.to_ascii_lowercase();
        // In lower case it would name another user's repository in Docker's registry.
        if !is_host(&registry) {
            return Err(wrong(
                "a registry is `localhost` or has a dot or a port, and everything else is lower case",
            ));
        }
        let registry = if registry == OLD_DEFAULT_REGISTRY { DEFAULT_REGISTRY.to_owned() } else { registry };
        check_path(path).map_err(wrong)?;
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            if path.len() == 64 && path.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong("64 hexadecimal digits would be taken for a digest"));
            }
            format!("{DEFAULT_PARENT}/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(wrong("its name is too long"));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self { registry: RegistryHost(registry), repository, tag, digest })
    }
}

/// Returns whether the first part of a name is a host and not a part of a name in Docker's registry.
fn is_host(part: &str) -> bool {
    part.contains(['.', ':', '[']) || part == "localhost" || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    }
}

fn check_host(text: &str) -> Result<(), &'static str> {
    let (host, port) = split_port(text);
    if let Some(port) = port {
        let digits = (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || !port.parse::<u16>().is_ok_and(|port| port != 0) {
            return Err("its port is not a number from 1 to 65535");
        }
    }
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').ok_or("its address has no closing bracket")?;
        return address
            .parse::<Ipv6Addr>()
            .map(drop)
            .map_err(|_| "the text in brackets is not an IPv6 address");
    }
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        edge(label.bytes().next()) && edge(label.bytes().last()) && label.bytes().all(inner)
    };
    if host.len() > MAX_HOST || !host.split('.').all(label) {
        return Err("its host is not a host name");
    }
    Ok(())
}

/// Checks parts of letters and digits that are separated by `.`, `_`, `__` or hyphens.
fn check_path(path: &str) -> Result<(), &'static str> {
    let component = |part: &str| {
        let mut separator = String::new();
        let mut after_word = false;
        for c in part.chars() {
            match c {
                'a'..='z' | '0'..='9' => {
                    let joins = match separator.as_str() {
                        "" => true,
                        "." | "_" | "__" => after_word,
                        hyphens => after_word && hyphens.bytes().all(|b| b == b'-'),
                    };
                    if !joins {
                        return false;
                    }
                    (after_word, separator) = (true, String::new());
                }
                '.' | '_' | '-' => separator.push(c),
                _ => return false,
            }
        }
        after_word && separator.is_empty()
    };
    if path.split('/').all(component) {
        Ok(())
    } else {
        Err("its parts may only have a-z and 0-9, with single dots, underscores or hyphens between them")
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let fits = tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if fits {
        Ok(())
    } else {
        Err("its tag may only have up to 128 letters, digits, dots, underscores and hyphens")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(text: &str, expect: &str) {
        assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), expect);
        assert_eq!(expect.parse::<ImageRef>().unwrap().to_string(), expect, "{expect} is not its own name");
    }

    #[test]
    fn references_have_dockers_defaults() {
        check("alpine", "docker.io/library/alpine:latest");
        check("alpine:3.20", "docker.io/library/alpine:3.20");
        check("docker.io/alpine", "docker.io/library/alpine:latest");
        check("docker.io/library/alpine:3.20", "docker.io/library/alpine:3.20");
        check("index.docker.io/org/tool", "docker.io/org/tool:latest");
        check("org/tool", "docker.io/org/tool:latest");
        check("ghcr.io/org/tool:v1_2-x", "ghcr.io/org/tool:v1_2-x");
        check("localhost/tool", "localhost/tool:latest");
        check("localhost:5000/a/b", "localhost:5000/a/b:latest");
        check("host:5000/a", "host:5000/a:latest");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        check("GHCR.io/a/b", "ghcr.io/a/b:latest");
        check("LocalHost/a", "localhost/a:latest");
        check("a__b/c-d.e---f", "docker.io/a__b/c-d.e---f:latest");
        check("docker://alpine:3", "docker.io/library/alpine:3");
        check("docker://ghcr.io/org/tool", "ghcr.io/org/tool:latest");
        let scheme = "http://ghcr.io/org/tool".parse::<ImageRef>().unwrap_err().to_string();
        assert!(scheme.contains("not with a scheme"), "{scheme}");
        check(&format!("host:5000/a/b@{DIGEST}"), &format!("host:5000/a/b@{DIGEST}"));
        check(&format!("alpine:3@{DIGEST}"), &format!("docker.io/library/alpine:3@{DIGEST}"));
    }

    #[test]
    fn an_invalid_reference_is_refused() {
        let long = format!("a/{}", "x".repeat(300));
        let digits = "0".repeat(64);
        for text in [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "/a",
            "a/",
            "a//b",
            "A",
            "a/B",
            "a b",
            "a\n",
            "a..b",
            "a_-b",
            "-a",
            "a-",
            "a:-tag",
            "a:tag!",
            "a@sha256:00",
            "a@md5:00",
            "http://a/b",
            "https://a.b/c",
            "a/../b",
            "../a",
            "host:0/a",
            "host:65536/a",
            "host:x/a",
            "host:/a",
            "[::1/a",
            "[::g]/a",
            "[127.0.0.1]/a",
            "user@host/a",
            ".host/a",
            "ho..st/a",
            "-h.x/a",
            "é/a",
            "a?b",
            "a#b",
            "a%2e",
            "a:1:2",
            "Host/a",
            &long,
            &digits,
        ] {
            assert!(text.parse::<ImageRef>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_digest_decides_over_a_tag() {
        let both: ImageRef = format!("alpine:3@{DIGEST}").parse().unwrap();
        assert_eq!(both.wanted(), DIGEST);
        assert_eq!("alpine:3".parse::<ImageRef>().unwrap().wanted(), "3");
    }

    #[test]
    fn the_host_is_recognised_by_its_names() {
        let registry = |text: &str| text.parse::<ImageRef>().unwrap().registry().clone();
        assert_eq!(registry("alpine").api(), "registry-1.docker.io");
        for (text, host, port, loopback) in [
            ("localhost:5000/a", "localhost", Some(5000), true),
            ("127.9.9.9/a", "127.9.9.9", None, true),
            ("[::1]:80/a", "::1", Some(80), true),
            ("[::2]/a", "::2", None, false),
            ("127.0.0.1.example.org/a", "127.0.0.1.example.org", None, false),
            ("localhost.example.org:1/a", "localhost.example.org", Some(1), false),
            ("10.0.0.1:5000/a", "10.0.0.1", Some(5000), false),
        ] {
            let registry = registry(text);
            assert_eq!(
                (registry.host(), registry.port(), registry.is_loopback()),
                (host, port, loopback),
                "{text}"
            );
        }
    }

    #[test]
    fn an_image_is_named_after_its_reference() {
        let check = |text: &str, expect: &str| {
            assert_eq!(text.parse::<ImageRef>().unwrap().local_name().unwrap().as_str(), expect);
        };
        check("alpine", "alpine");
        check("alpine:3.20", "alpine-3-20");
        check("ghcr.io/org/Tool:x".to_lowercase().as_str(), "tool-x");
        check("a/b_c.d:V1__2", "b-c-d-v1-2");
        check("x/deadbeef", "image-deadbeef");
        check(&format!("x/{}", "y".repeat(100)), &"y".repeat(63));
        check(&format!("alpine@{DIGEST}"), "alpine");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_read_has_one_name(text in "[a-zA-Z0-9.:/@_\\[\\]-]{0,80}|.{0,40}") {
            if let Ok(reference) = text.parse::<ImageRef>() {
                let canonical = reference.to_string();
                prop_assert_eq!(canonical.parse::<ImageRef>().unwrap(), reference.clone());
                prop_assert!(canonical.bytes().all(|b| b.is_ascii_graphic()));
                let _ = (reference.local_name(), reference.registry().host().len(), reference.registry().port());
            }
        }
    }
}
