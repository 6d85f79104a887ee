//! How the service reaches registries and catalogs, as the administrator configures it: through a proxy, and by mirrors.

use std::fmt;

use url::Url;

use super::reference::{ImageRef, RegistryHost};

const MAX_LENGTH: usize = 2048;
/// The host itself is never asked through a proxy, which may be on another one.
const NEVER: [&str; 3] = ["localhost", "127.0.0.0/8", "::1"];

/// A proxy, which may have a password. Only [`Proxy::url`] reveals it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    url: Url,
    except: Vec<String>,
}

impl Proxy {
    /// Parses the address of a proxy, and the hosts and networks that are reached without it: names with everything
    /// below them, addresses, or networks such as `10.0.0.0/8`.
    pub fn parse(url: &str, except: &[String]) -> Option<Self> {
        let url = server(url)?;
        let is_plain = |entry: &String| {
            !entry.is_empty()
                && entry.len() <= MAX_LENGTH
                && !entry.contains([',', ' ', '@'])
                && entry.is_ascii()
        };
        except.iter().all(is_plain).then(|| Self { url, except: except.to_owned() })
    }

    /// Returns its address with the password.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Returns its host, as in the address.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Returns everything that is reached without it, separated by commas.
    pub fn except(&self) -> String {
        let configured = self.except.iter().map(String::as_str);
        NEVER.into_iter().chain(configured).collect::<Vec<_>>().join(",")
    }
}

impl fmt::Display for Proxy {
    /// Writes host and port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host(), self.url.port_or_known_default().unwrap_or_default())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// A server that is asked instead of a registry, or before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The registry.
    pub registry: RegistryHost,
    /// The base of the addresses of its API.
    pub base: Url,
    /// Whether the registry itself is never asked.
    pub only: bool,
}

impl Mirror {
    /// Parses a mirror of a registry: `https://mirror.example`, or with the prefix of the repositories on it, as in
    /// `https://mirror.example/docker`.
    pub fn parse(registry: &str, location: &str, only: bool) -> Option<Self> {
        let reference: ImageRef = format!("{registry}/any").parse().ok()?;
        if reference.registry().as_str() != registry {
            return None;
        }
        let mut base = server(location)?;
        if !base.username().is_empty() || base.password().is_some() {
            return None;
        }
        let prefix = base.path().trim_matches('/').to_owned();
        let path = if prefix.is_empty() { "/v2/".to_owned() } else { format!("/v2/{prefix}/") };
        base.set_path(&path);
        Some(Self { registry: reference.registry().clone(), base, only })
    }
}

/// Parses the address of a server that an administrator chose.
fn server(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok().filter(|_| text.len() <= MAX_LENGTH)?;
    let is_server = matches!(url.scheme(), "http" | "https") && url.has_host();
    (is_server && url.query().is_none() && url.fragment().is_none()).then_some(url)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_proxy_hides_its_password() {
        let proxy =
            Proxy::parse("http://user:secret@proxy.example:3128", &["corp.example".to_owned()]).unwrap();
        assert_eq!(proxy.to_string(), "proxy.example:3128");
        assert_eq!(format!("{proxy:?}"), "Proxy(proxy.example:3128)");
        assert_eq!(proxy.url().password(), Some("secret"));
        assert_eq!(proxy.except(), "localhost,127.0.0.0/8,::1,corp.example");
        assert_eq!(Proxy::parse("https://10.0.0.1", &[]).unwrap().to_string(), "10.0.0.1:443");
        for wrong in
            ["", "proxy.example:3128", "socks5://proxy.example", "http://", "http://a/?b", "file:///x"]
        {
            assert_eq!(Proxy::parse(wrong, &[]), None, "{wrong:?}");
        }
        for wrong in ["", "a,b", "a b", "user@host"] {
            assert_eq!(Proxy::parse("http://a", &[wrong.to_owned()]), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_mirror_has_the_api_at_its_root_and_its_prefix_below() {
        let check = |location: &str, expect: Option<&str>| {
            let base = Mirror::parse("docker.io", location, false).map(|mirror| mirror.base.to_string());
            assert_eq!(base.as_deref(), expect, "{location:?}");
        };
        check("https://mirror.example", Some("https://mirror.example/v2/"));
        check("https://mirror.example:5000/", Some("https://mirror.example:5000/v2/"));
        check("https://mirror.example/docker", Some("https://mirror.example/v2/docker/"));
        check("http://10.0.0.7:5000/a/b/", Some("http://10.0.0.7:5000/v2/a/b/"));
        check("https://user:secret@mirror.example", None);
        check("mirror.example", None);
        check("/srv/mirror", None);
        for wrong in ["not a registry", "ghcr", "ghcr.io/org", "https://ghcr.io", ""] {
            assert_eq!(Mirror::parse(wrong, "https://a", false), None, "{wrong:?}");
        }
        assert_eq!(Mirror::parse("ghcr.io:443", "https://a", true).unwrap().registry.as_str(), "ghcr.io:443");
    }
}
