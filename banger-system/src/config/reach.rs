//! The part of the configuration about reaching registries: the proxy and the mirrors.

use banger_image::oci::reach::{Mirror, Proxy};
use serde::Deserialize;

use super::{Config, Error};

const MAX_MIRRORS: usize = 16;
/// A valid location of a mirror.
const ANY: &str = "https://mirror.example";

/// A mirror of a registry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorSection {
    /// The registry, such as `docker.io`.
    pub registry: String,
    /// The mirror's address, such as `https://mirror.example`.
    pub location: String,
    /// Whether the registry itself is never asked.
    #[serde(default)]
    pub only: bool,
}

impl Config {
    /// Returns the proxy. The error does not show its address, which may have a password.
    pub fn proxy(&self) -> Result<Option<Proxy>, Error> {
        let Some(url) = &self.proxy else { return Ok(None) };
        if Proxy::parse(url, &[]).is_none() {
            return Err(hidden("proxy", "an address such as http://proxy.example:3128"));
        }
        let wrong = || Error::Value { key: "no_proxy", value: self.no_proxy.join(", ") };
        Proxy::parse(url, &self.no_proxy).map(Some).ok_or_else(wrong)
    }

    /// Returns the mirrors of registries, in the order in which they are asked.
    pub fn mirrors(&self) -> Result<Vec<Mirror>, Error> {
        if self.mirror.len() > MAX_MIRRORS {
            return Err(hidden("mirror", &format!("a list of at most {MAX_MIRRORS} mirrors")));
        }
        self.mirror.iter().map(MirrorSection::parse).collect()
    }
}

impl MirrorSection {
    fn parse(&self) -> Result<Mirror, Error> {
        if let Some(mirror) = Mirror::parse(&self.registry, &self.location, self.only) {
            return Ok(mirror);
        }
        Err(match Mirror::parse(&self.registry, ANY, false) {
            Some(_) => {
                hidden("mirror.location", "an address without a password such as https://mirror.example")
            }
            None => Error::Value { key: "mirror.registry", value: self.registry.clone() },
        })
    }
}

fn hidden(key: &'static str, expected: &str) -> Error {
    Error::Hidden { key, expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_proxy_and_mirrors_are_read_and_no_error_shows_a_password() {
        let read = |text: &str| Config::parse(text).unwrap();
        assert_eq!(read("").proxy().unwrap(), None);
        let config = read(
            "proxy = \"http://user:secret@proxy.example:3128\"\nno_proxy = [\"corp.example\", \"10.0.0.0/8\"]\n\
             [[mirror]]\nregistry = \"docker.io\"\nlocation = \"http://10.0.0.7:5000\"\nonly = true",
        );
        let proxy = config.proxy().unwrap().unwrap();
        assert_eq!(proxy.to_string(), "proxy.example:3128");
        assert!(proxy.except().ends_with(",corp.example,10.0.0.0/8"), "{}", proxy.except());
        let [mirror] = &config.mirrors().unwrap()[..] else { panic!() };
        assert_eq!((mirror.registry.as_str(), mirror.only), ("docker.io", true));
        for (text, expect) in [
            ("proxy = \"socks5://user:secret@host\"", "configuration key proxy is not an address"),
            ("proxy = \"http://host\"\nno_proxy = [\"a,b\"]", "configuration key no_proxy is \"a,b\""),
            ("[[mirror]]\nregistry = \"x\"\nlocation = \"https://a\"", "key mirror.registry is \"x\""),
            (
                "[[mirror]]\nregistry = \"ghcr.io\"\nlocation = \"https://user:secret@a\"",
                "configuration key mirror.location is not an address",
            ),
        ] {
            let config = read(text);
            let error = config.proxy().map(drop).and_then(|()| config.mirrors().map(drop)).unwrap_err();
            assert!(error.to_string().contains(expect) && !error.to_string().contains("secret"), "{error}");
        }
        for text in
            ["proxy = [\"http://user:secret@host\"]", "proxy = http://user:secret@host", "x = \"u:secret@h\""]
        {
            let error = Config::parse(text).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(Config::parse("vmm = 1").unwrap_err().to_string().contains("vmm = 1"));
    }
}
