//! The user's proxies, for programs in a sandbox. Their addresses may contain passwords, so nothing here prints them.

use std::{collections::BTreeMap, env, net::IpAddr};

use crate::error::{Error, Result};

/// The variables with a proxy, in lower case. Programs read them in either case, some only in one.
const NAMES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"];
const NO_PROXY: &str = "no_proxy";
/// What a program in a sandbox reaches without a proxy: the sandbox itself, and the owner's other sandboxes.
const EXCEPTIONS: [&str; 4] = ["localhost", "127.0.0.1", "::1", ".vm"];
/// Default ports by scheme. A proxy without a scheme is one for HTTP.
const PORTS: [(&str, u16); 5] =
    [("http", 80), ("https", 443), ("socks", 1080), ("socks4", 1080), ("socks5", 1080)];

/// The address of a proxy.
#[derive(Clone, PartialEq, Eq)]
struct Proxy {
    /// What is before the host: the scheme and the credentials.
    before: String,
    host: String,
    port: u16,
    /// What is after the port.
    after: String,
}

/// The proxies that the user has set.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Proxies {
    by_name: BTreeMap<&'static str, Proxy>,
    no_proxy: String,
}

impl Proxies {
    /// Reads those of the caller.
    pub fn of_caller() -> Result<Self> {
        Self::of(|name| env::var(name).ok())
    }

    /// Reads them from an environment. The lower case counts first.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let read = |name: &str| {
            let set = |name: &str| variable(name).filter(|text| !text.is_empty());
            set(name).or_else(|| set(&name.to_ascii_uppercase()))
        };
        let mut proxies = Self { no_proxy: read(NO_PROXY).unwrap_or_default(), ..Self::default() };
        for name in NAMES {
            let Some(text) = read(name) else { continue };
            let unusable = || {
                let message = format!("cannot use the variable {name}: it is not an address of a proxy");
                Error::Refused(message).with_hint("write it like http://proxy.example.org:3128.")
            };
            proxies.by_name.insert(name, Proxy::parse(&text).ok_or_else(unusable)?);
        }
        Ok(proxies)
    }

    /// Returns whether none is set.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Returns the hosts and ports of the proxies that programs in a sandbox cannot reach themselves.
    pub fn unreachable(&self, nat: bool) -> Vec<(String, u16)> {
        let unreachable = self.by_name.values().filter(|proxy| !nat || proxy.is_on_loopback());
        let mut places: Vec<_> = unreachable.map(|proxy| (proxy.host.clone(), proxy.port)).collect();
        places.sort();
        places.dedup();
        places
    }

    /// Returns the variables for programs in the sandbox with this name. `relays` has the ports of its loopback that
    /// lead to proxies.
    pub fn variables(
        &self,
        sandbox: &str,
        relays: &BTreeMap<(String, u16), u16>,
    ) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        let mut set = |name: &str, value: String| {
            variables.insert(name.to_ascii_uppercase(), value.clone());
            variables.insert(name.to_owned(), value);
        };
        for (name, proxy) in &self.by_name {
            let relay = relays.get(&(proxy.host.clone(), proxy.port));
            set(name, relay.map_or_else(|| proxy.text(), |port| proxy.at_loopback(*port)));
        }
        if !self.is_empty() {
            set(NO_PROXY, exceptions(&self.no_proxy, sandbox));
        }
        variables
    }
}

impl Proxy {
    /// Parses a URL, whose scheme may be missing.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (authority, _) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, rest.strip_prefix(':'))
            }
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = match port.filter(|port| !port.is_empty()) {
            Some(port) => port.parse().ok()?,
            None => {
                let family = scheme.trim_end_matches(['h', 'a']);
                PORTS.into_iter().find(|(known, _)| *known == scheme || *known == family)?.1
            }
        };
        let start = text.len() - rest.len() + authority.len() - place.len();
        if host.is_empty() || port == 0 || text.contains(['\0', '\n']) {
            return None;
        }
        Some(Self {
            before: text[..start].to_owned(),
            host: host.to_owned(),
            port,
            after: text[start + place.len()..].to_owned(),
        })
    }

    fn is_on_loopback(&self) -> bool {
        let host = self.host.trim_end_matches('.').to_ascii_lowercase();
        let is_name = host == "localhost" || host.ends_with(".localhost");
        is_name
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
    }

    fn text(&self) -> String {
        let Self { before, host, port, after } = self;
        let brackets = if host.contains(':') { ("[", "]") } else { ("", "") };
        format!("{before}{}{host}{}:{port}{after}", brackets.0, brackets.1)
    }

    fn at_loopback(&self, port: u16) -> String {
        format!("{}127.0.0.1:{port}{}", self.before, self.after)
    }
}

/// Adds what a sandbox reaches itself to the user's exceptions.
fn exceptions(users: &str, sandbox: &str) -> String {
    let mut all: Vec<&str> = users.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    for entry in EXCEPTIONS.into_iter().chain([sandbox]) {
        if !all.contains(&entry) {
            all.push(entry);
        }
    }
    all.join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(set: &[(&str, &str)]) -> Result<Proxies> {
        let set: BTreeMap<_, _> = set.iter().copied().collect();
        Proxies::of(|name| set.get(name).map(|text| (*text).to_owned()))
    }

    #[test]
    fn an_address_has_many_forms() {
        for (text, host, port, elsewhere) in [
            ("http://proxy:3128", "proxy", 3128, "http://127.0.0.1:9"),
            ("http://proxy:3128/", "proxy", 3128, "http://127.0.0.1:9/"),
            ("proxy:3128", "proxy", 3128, "127.0.0.1:9"),
            ("proxy", "proxy", 80, "127.0.0.1:9"),
            ("https://proxy", "proxy", 443, "https://127.0.0.1:9"),
            ("http://ann:p%40ss@proxy:8080", "proxy", 8080, "http://ann:p%40ss@127.0.0.1:9"),
            ("http://ann:p@ss:w@proxy:8080", "proxy", 8080, "http://ann:p@ss:w@127.0.0.1:9"),
            ("socks5h://[::1]:1080", "::1", 1080, "socks5h://127.0.0.1:9"),
            ("socks5h://localhost", "localhost", 1080, "socks5h://127.0.0.1:9"),
            ("socks4a://localhost", "localhost", 1080, "socks4a://127.0.0.1:9"),
        ] {
            let proxy = Proxy::parse(text).unwrap();
            assert_eq!((proxy.host.as_str(), proxy.port), (host, port), "{text}");
            assert_eq!(proxy.at_loopback(9), elsewhere);
            assert_eq!(Proxy::parse(&proxy.text()).map(|again| again.text()), Some(proxy.text()));
        }
        for text in [
            "",
            "http://",
            "http://:3128",
            "http://x:port",
            "http://x:0",
            "gopher://x",
            "http://[::1",
            "x\ny",
        ] {
            assert!(Proxy::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_wrong_address_is_refused_without_being_printed() {
        let error = of(&[("HTTP_PROXY", "http://ann:secret@x:port")]).err().unwrap().text(None);
        assert_eq!(
            error,
            "error: cannot use the variable http_proxy: it is not an address of a proxy.\n\
             hint: write it like http://proxy.example.org:3128.\n"
        );
    }

    #[test]
    fn only_what_a_sandbox_cannot_reach_is_relayed() {
        let set = [
            ("http_proxy", "http://localhost:3128"),
            ("https_proxy", "http://127.9.9.9:3128"),
            ("ALL_PROXY", "socks5://proxy.example.org"),
            ("ftp_proxy", "http://localhost:3128"),
        ];
        let proxies = of(&set).unwrap();
        let place = |host: &str, port| (host.to_owned(), port);
        let loopback = vec![place("127.9.9.9", 3128), place("localhost", 3128)];
        assert_eq!(proxies.unreachable(true), loopback);
        // Without NAT, not even the others can be reached.
        assert_eq!(proxies.unreachable(false), [loopback, vec![place("proxy.example.org", 1080)]].concat());
        assert!(of(&[]).unwrap().unreachable(false).is_empty());
    }

    #[test]
    fn both_cases_of_a_variable_are_set() {
        let proxies = of(&[
            ("http_proxy", "http://a:b@localhost:3128"),
            ("HTTP_PROXY", "http://other:1"),
            ("HTTPS_PROXY", "http://proxy:1"),
            ("no_proxy", "10.0.0.0/8, localhost"),
        ]);
        let relays = BTreeMap::from([(("localhost".to_owned(), 3128), 3129)]);
        let variables = proxies.unwrap().variables("web", &relays);
        let lines: String = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        assert_eq!(
            lines,
            "HTTPS_PROXY=http://proxy:1\nHTTP_PROXY=http://a:b@127.0.0.1:3129\n\
             NO_PROXY=10.0.0.0/8,localhost,127.0.0.1,::1,.vm,web\nhttp_proxy=http://a:b@127.0.0.1:3129\n\
             https_proxy=http://proxy:1\nno_proxy=10.0.0.0/8,localhost,127.0.0.1,::1,.vm,web\n"
        );
        assert!(of(&[("no_proxy", "x")]).unwrap().variables("web", &relays).is_empty());
    }
}
