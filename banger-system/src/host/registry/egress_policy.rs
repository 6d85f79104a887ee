//! Decides where the service may send HTTP requests. It runs as root on the host: a registry that redirects it to a
//! service of the host, or to a cloud's metadata service, would abuse that. No request goes to guests, whose rules
//! let root of the host in.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use std::sync::{Arc, OnceLock};

use banger_domain::net::subnet::Subnet;
use banger_image::oci::reference::RegistryHost;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// What is refused to users, and what an administrator can do about it.
const LOCAL_REFUSED: &str = "a port of this host that is published for a sandbox or is not in \
                             registry.local_ports of /etc/banger/config.toml";

/// How an address may be requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// It belongs to the server that the user chose.
    Own,
    /// Somebody else named it: it must not be on or near the host.
    Away,
}

/// A server that a user or an administrator chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    /// The base of its addresses.
    pub(super) url: Url,
    /// Whether its name is one of the host itself.
    pub(super) is_loopback: bool,
    /// Who chose it.
    pub(super) named_by: NamedBy,
}

/// Who chose a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamedBy {
    /// Any user of the host.
    User,
    /// The administrator, in the configuration.
    Administrator,
}

/// Which ports of the host itself are allowed for any user. The service is root: a local service that trusts some
/// users, or everybody on the host, would treat the request as root's.
#[derive(Clone)]
pub struct LocalPorts(Arc<dyn Fn(u16) -> bool + Send + Sync>);

impl LocalPorts {
    /// Allows the ports for which `allowed` returns true at the time of the request.
    pub fn where_port(allowed: impl Fn(u16) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(allowed))
    }

    /// Returns whether this address of the host is allowed. Other addresses than the usual ones belong to services
    /// that got them for a reason.
    fn allow(&self, address: IpAddr, port: u16) -> bool {
        (address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST) && (self.0)(port)
    }
}

impl fmt::Debug for LocalPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalPorts(…)")
    }
}

/// The addresses of guests, once they are known. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Guests(Arc<OnceLock<Subnet>>);

impl Guests {
    /// Sets the subnet, which is the same for as long as the service runs.
    pub(super) fn are_in(&self, subnet: Subnet) {
        let _ = self.0.set(subnet);
    }

    fn have(&self, address: IpAddr) -> bool {
        self.0.get().is_some_and(|subnet| {
            subnet.contains(to_v4(address)) || inner_v4(address).is_some_and(|v4| subnet.contains(v4.into()))
        })
    }
}

/// Returns the server of a registry: with http on the host itself, with https elsewhere.
pub(super) fn base(registry: &RegistryHost) -> Option<Destination> {
    let (is_loopback, https_port) = (registry.is_loopback(), registry.port() == Some(443));
    let scheme = if is_loopback && !https_port { "http" } else { "https" };
    let url = Url::parse(&format!("{scheme}://{}/v2/", registry.api())).ok()?;
    Some(Destination { url, is_loopback, named_by: NamedBy::User })
}

/// Decides whether and how an address that a user or a server named may be requested.
pub(super) fn route(
    url: &Url,
    from: &Destination,
    guests: &Guests,
    local: &LocalPorts,
) -> Result<Route, &'static str> {
    if !matches!(url.scheme(), "https" | "http") {
        return Err("an address that is not http or https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address with a password in it");
    }
    let host = url.host().ok_or("an address without a host")?;
    let literal = match host {
        url::Host::Domain(name) => is_localhost(name).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        url::Host::Ipv4(address) => Some(IpAddr::V4(address)),
        url::Host::Ipv6(address) => Some(IpAddr::V6(address)),
    };
    if literal.is_some_and(|address| guests.have(address)) {
        return Err("a guest of this host");
    }
    let is_own = from.url.origin() == url.origin();
    let on_host = literal.is_some_and(|address| to_v4(address).is_loopback());
    if on_host && from.is_loopback {
        let port = url.port_or_known_default().unwrap_or_default();
        let allowed = literal.is_some_and(|address| local.allow(to_v4(address), port));
        return match from.named_by {
            NamedBy::Administrator => Ok(Route::Own),
            NamedBy::User if allowed => Ok(Route::Own),
            NamedBy::User => Err(LOCAL_REFUSED),
        };
    }
    if is_own && !literal.is_some_and(is_near) {
        return Ok(Route::Own);
    }
    if url.scheme() == "http" {
        return Err("an address without encryption");
    }
    if literal.is_some_and(is_near) {
        return Err("an address of the host itself or of its link");
    }
    Ok(Route::Away)
}

/// Returns whether a name is the host's own, whatever it resolves to.
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// Returns whether an address is the host itself, or is known only to the host and its link.
fn is_near(address: IpAddr) -> bool {
    match to_v4(address) {
        IpAddr::V4(v4) => {
            let this_network = v4.octets()[0] == 0;
            this_network || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast() || v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || inner_v4(address).is_some_and(|v4| is_near(v4.into()))
        }
    }
}

/// Unwraps an IPv4 address that is written as an IPv6 one.
fn to_v4(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Returns the IPv4 address in the deprecated form `::a.b.c.d` (RFC 4291, section 2.5.5.1) or in that of NAT64 (RFC
/// 6052).
fn inner_v4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let segments = address.segments();
    let embeds = segments[..6] == [0; 6] || segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    let [.., a, b, c, d] = address.octets();
    embeds.then(|| Ipv4Addr::new(a, b, c, d))
}

/// Resolves names, and hides the addresses that a route may not use.
pub(super) struct Resolver {
    pub(super) route: Route,
    pub(super) guests: Guests,
    /// The name of the proxy. The administrator chose it, so it may be on or near the host.
    pub(super) proxy: Option<String>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (route, guests) = (self.route, self.guests.clone());
        let is_proxy = self.proxy.as_deref() == Some(name.as_str());
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let asked = match is_proxy {
                true => found,
                false => check_addresses(name.as_str(), found, route, &guests)?,
            };
            Ok(Box::new(asked.into_iter()) as Addrs)
        })
    }
}

/// Returns those addresses of a name that a route may use. A name must not resolve to an address that would be refused
/// if it were written out.
pub(super) fn check_addresses(
    name: &str,
    found: Vec<SocketAddr>,
    route: Route,
    guests: &Guests,
) -> Result<Vec<SocketAddr>, &'static str> {
    let (of_guests, found): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| guests.have(address.ip()));
    let may_be_near = route == Route::Own && is_localhost(name);
    let asked: Vec<_> = found.into_iter().filter(|address| may_be_near || !is_near(address.ip())).collect();
    match asked.is_empty() {
        false => Ok(asked),
        true if of_guests.is_empty() => Err("it resolves to the host itself or to its link"),
        true => Err("it resolves to a guest of this host"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_image::oci::reference::ImageRef;

    use super::*;

    fn check(registry: &str, url: &str, expect: Option<Route>) {
        let reference: ImageRef = format!("{registry}/x").parse().unwrap();
        let guests = Guests::default();
        guests.are_in("172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap());
        let base = base(reference.registry()).unwrap();
        let local = LocalPorts::where_port(|port| [5000, 6000].contains(&port));
        let route = route(&Url::parse(url).unwrap(), &base, &guests, &local);
        assert_eq!(route.ok(), expect, "{registry} sends to {url}");
    }

    #[test]
    fn a_remote_registry_never_redirects_to_the_host() {
        for url in [
            "https://127.0.0.1/",
            "https://127.8.9.1:5000/",
            "https://localhost/",
            "https://LOCALHOST./",
            "https://a.localhost/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::127.0.0.1]/",
            "https://[64:ff9b::7f00:1]/",
            "https://0.0.0.0/",
            "https://0.1.2.3/",
            "https://169.254.169.254/latest",
            "https://[fe80::1]/",
            "https://[ff02::1]/",
            "https://[::]/",
            "https://224.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "http://example.org/",
            "http://127.0.0.1/",
            "ftp://example.org/",
            "file:///etc/shadow",
            "https://user@example.org/",
            "https://user:secret@example.org/",
            "data:text/plain,x",
        ] {
            check("ghcr.io", url, None);
        }
        check("ghcr.io", "https://ghcr.io/v2/", Some(Route::Own));
        check("ghcr.io", "https://ghcr.io:444/", Some(Route::Away));
        check("ghcr.io", "http://ghcr.io/", None);
        check("ghcr.io", "https://cdn.example.org/x?sig=1", Some(Route::Away));
        check("ghcr.io", "https://10.0.0.7/", Some(Route::Away));
        check("docker.io", "https://registry-1.docker.io/v2/", Some(Route::Own));
    }

    #[test]
    fn a_registry_on_the_host_reaches_allowed_ports_and_nothing_without_encryption() {
        for url in ["http://localhost:5000/v2/", "http://127.0.0.1:6000/", "https://[::1]:6000/"] {
            check("localhost:5000", url, Some(Route::Own));
        }
        for url in
            ["http://localhost:5432/", "https://127.0.0.1/", "https://[::1]:5001/", "http://127.0.1.1:5000/"]
        {
            check("localhost:5000", url, None);
        }
        check("localhost:5000", "https://cdn.example.org/", Some(Route::Away));
        check("localhost:5000", "http://cdn.example.org/", None);
        check("localhost:5000", "https://169.254.169.254/", None);
        check("localhost:5000", "http://169.254.169.254/", None);
    }

    #[test]
    fn a_user_reaches_only_allowed_ports_of_the_host() {
        for (registry, expect) in [
            ("localhost:5000", Some(Route::Own)),
            ("127.0.0.1:5000", Some(Route::Own)),
            ("[::1]:5000", Some(Route::Own)),
            ("localhost:5432", None),
            ("127.0.0.1:22", None),
            ("[::1]:8080", None),
            ("127.0.1.1:5000", None),
            ("localhost:443", None),
        ] {
            let scheme = if registry.ends_with(":443") { "https" } else { "http" };
            check(registry, &format!("{scheme}://{registry}/v2/"), expect);
        }
        for near in
            ["0.0.0.0:5000", "169.254.169.254:443", "[::]:5000", "[::ffff:127.0.0.1]:5000", "[fe80::1]:5"]
        {
            check(near, &format!("https://{near}/v2/"), None);
        }
        let index = Url::parse("http://localhost:8000/index.json").unwrap();
        let named_by = NamedBy::Administrator;
        let base = Destination { url: index.clone(), is_loopback: true, named_by };
        let nothing = LocalPorts::where_port(|_| false);
        assert_eq!(route(&index, &base, &Guests::default(), &nothing), Ok(Route::Own));
    }

    #[test]
    fn no_request_goes_to_a_guest() {
        for guest in [
            "172.30.0.2",
            "172.30.0.1:5000",
            "2887647234",
            "[fd12:3456:789a::2]:5000",
            "[::ffff:172.30.0.2]",
            "[::172.30.0.2]",
            "[64:ff9b::ac1e:2]",
        ] {
            for registry in ["ghcr.io", "localhost:5000"] {
                check(registry, &format!("https://{guest}/"), None);
                check(registry, &format!("http://{guest}/"), None);
            }
        }
        for registry in ["172.30.0.2:5000", "172.30.0.1:443", "[fd12:3456:789a::2]:5000", "[::ffff:ac1e:2]:5"]
        {
            check(registry, &format!("https://{registry}/v2/"), None);
        }
        check("172.29.0.2:5000", "https://172.29.0.2:5000/v2/", Some(Route::Own));
    }

    #[test]
    fn plain_http_is_for_the_host_itself() {
        let scheme = |registry: &str| {
            let reference: ImageRef = format!("{registry}/x").parse().unwrap();
            base(reference.registry()).unwrap().url.to_string()
        };
        assert_eq!(scheme("localhost:5000"), "http://localhost:5000/v2/");
        assert_eq!(scheme("[::1]:5000"), "http://[::1]:5000/v2/");
        assert_eq!(scheme("localhost:443"), "https://localhost/v2/");
        assert_eq!(scheme("10.0.0.1:5000"), "https://10.0.0.1:5000/v2/");
        assert_eq!(scheme("docker.io"), "https://registry-1.docker.io/v2/");
    }

    #[tokio::test]
    async fn names_of_the_host_or_of_a_guest_do_not_resolve() {
        let resolve = async |name: &str, route, guests: &Guests| {
            let name: Name = name.parse().unwrap();
            let resolver = Resolver { route, guests: guests.clone(), proxy: None };
            resolver.resolve(name).await.map(|found| found.count()).map_err(|error| error.to_string())
        };
        let guests = Guests::default();
        assert!(resolve("localhost", Route::Own, &guests).await.is_ok());
        assert!(
            resolve("localhost", Route::Away, &guests).await.unwrap_err().contains("resolves to the host")
        );
        for route in [Route::Own, Route::Away] {
            let error = resolve("127.0.0.1", route, &guests).await.unwrap_err();
            assert!(error.contains("resolves to the host"), "{error}");
        }
        guests.are_in("127.0.0.0/16 fd12:3456:789a::/64".parse().unwrap());
        for route in [Route::Own, Route::Away] {
            assert!(resolve("127.0.0.1", route, &guests).await.unwrap_err().contains("resolves to a guest"));
        }
    }
}
