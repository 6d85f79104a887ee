//! The resolvers of the host, as listed in resolv.conf(5). They answer the questions of guests with NAT about other
//! names. systemd-resolved's stub is one of them.

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use banger_domain::dns::PORT;

/// The usual file.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long the content is used before the file is checked again, which costs a system call.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// As many as glibc uses.
const MAX_SERVERS: usize = 3;
/// More than any real file has.
const MAX_FILE: u64 = 64 << 10;

/// The resolvers of the host, read again when the file changes.
pub(super) struct Upstreams {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    looked: Option<Instant>,
    changed: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Upstreams {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::default() }
    }

    /// Returns the resolvers without these addresses, which are our own, so that no question goes in a circle.
    pub(super) fn servers(&self, own: &[IpAddr]) -> Vec<SocketAddr> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.is_none_or(|at| at.elapsed() >= LOOK_AGAIN) {
            known.look(&self.path);
        }
        known.servers.iter().filter(|server| !own.contains(&server.ip())).copied().collect()
    }
}

impl Known {
    fn look(&mut self, path: &Path) {
        self.looked = Some(Instant::now());
        let read = || -> io::Result<_> {
            let file = File::open(path)?;
            let changed = file.metadata()?.modified()?;
            let mut text = String::new();
            if self.changed != Some(changed) {
                file.take(MAX_FILE).read_to_string(&mut text)?;
            }
            Ok((changed, text))
        };
        match read() {
            Ok((changed, _)) if self.changed == Some(changed) => {}
            Ok((changed, text)) => {
                self.changed = Some(changed);
                self.servers = servers_in(&text, index_of);
                tracing::debug!(servers = ?self.servers, "read the resolvers of the host");
            }
            Err(error) => {
                // It may be in the middle of a replacement. The old content is used until there is a new one.
                tracing::debug!(%error, "cannot read the resolvers of the host");
            }
        }
    }
}

/// Returns the servers in a resolv.conf.
fn servers_in(text: &str, index: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => server(address, &index),
            _ => None,
        }
    });
    named.take(MAX_SERVERS).collect()
}

/// Parses an address, which may name its link: `fe80::1%eth0`.
fn server(text: &str, index: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => Some(SocketAddr::new(text.parse().ok()?, PORT)),
        Some((address, link)) => {
            let address: Ipv6Addr = address.parse().ok()?;
            Some(SocketAddrV6::new(address, PORT, 0, index(link)?).into())
        }
    }
}

fn index_of(link: &str) -> Option<u32> {
    super::link_index(link).ok().flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        servers_in(text, |link| (link == "eth0").then_some(7)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_servers_of_a_resolv_conf_are_read() {
        assert_eq!(
            servers("# x\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"),
            ["127.0.0.53:53"]
        );
        assert_eq!(
            servers("nameserver fe80::1%eth0\n nameserver\t192.0.2.1 \nnameserver 2001:db8::1"),
            ["[fe80::1%7]:53", "192.0.2.1:53", "[2001:db8::1]:53"]
        );
        assert_eq!(
            servers("nameserver\nnameserver example.org\nnameserver fe80::1%eth9\n; nameserver ::1"),
            [""; 0]
        );
        assert_eq!(servers(&"nameserver 192.0.2.1\n".repeat(9)).len(), MAX_SERVERS);
    }

    #[test]
    fn we_never_ask_ourselves_and_changes_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 172.30.0.1\nnameserver 192.0.2.1\n").unwrap();
        let upstreams = Upstreams::new(path.clone());
        let own = ["172.30.0.1".parse().unwrap()];
        assert_eq!(upstreams.servers(&own), ["192.0.2.1:53".parse().unwrap()]);

        let next = directory.path().join("next");
        std::fs::write(&next, "nameserver 192.0.2.2\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        File::options().write(true).open(&next).unwrap().set_modified(later).unwrap();
        std::fs::rename(&next, &path).unwrap();
        upstreams.known.lock().unwrap().looked = None;
        assert_eq!(upstreams.servers(&own), ["192.0.2.2:53".parse().unwrap()]);

        std::fs::remove_file(&path).unwrap();
        upstreams.known.lock().unwrap().looked = None;
        assert_eq!(upstreams.servers(&own), ["192.0.2.2:53".parse().unwrap()], "it is being replaced");
    }
}
