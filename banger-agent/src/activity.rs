//! Reports whether anybody uses the guest, so that the host can suspend one that idles.

use std::{
    fs,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use banger_proto::guest::{Request, facts::Use};

use crate::{detached, ports, stats};

/// The state of a socket that has a peer, `TCP_ESTABLISHED`.
const ESTABLISHED: &str = "01";

/// The requests of clients that are being served.
static SERVED: AtomicU32 = AtomicU32::new(0);

/// A request that is being served.
pub struct Served(());

impl Served {
    /// Counts a request, unless it is a question or the service itself makes it without a user.
    pub fn begin(request: &Request) -> Option<Self> {
        let is_of_service = matches!(
            request,
            Request::Clock | Request::SetTime { .. } | Request::Use | Request::Freeze | Request::Thaw
        );
        (!is_of_service && !request.is_question()).then(|| {
            SERVED.fetch_add(1, Ordering::Relaxed);
            Self(())
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        SERVED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the current use.
pub fn now() -> Use {
    let commands = detached::facts().iter().filter(|command| command.running).count();
    Use {
        streams: SERVED.load(Ordering::Relaxed),
        commands: commands as u32,
        connections: connections(),
        cpu_usec: stats::busy_usec(),
    }
}

/// Returns the number of established connections with other machines, from the kernel's tables (proc_pid_net(5)).
fn connections() -> u32 {
    let tables =
        ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().skip(1)).filter(|line| leads_out(line)).count() as u32
}

/// Returns whether a row is that of a connection with another machine.
fn leads_out(row: &str) -> bool {
    let fields: Vec<&str> = row.split_whitespace().collect();
    let peer = fields.get(2).and_then(|text| ports::address(text)).map(|(peer, _)| match peer {
        IpAddr::V6(peer) => peer.to_canonical(),
        peer => peer,
    });
    fields.get(3) == Some(&ESTABLISHED) && peer.is_some_and(|peer| !peer.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_with_other_machines_count() {
        for (row, expect) in [
            ("0: 0100000A:0016 0200000A:C350 01 0:0 0:0 0 0 0 7 1", true),
            // It has ended, listens, or is one of the guest with itself.
            ("0: 0100000A:0016 0200000A:C350 06 0:0 0:0 0 0 0 7 1", false),
            ("0: 00000000:0016 00000000:0000 0A 0:0 0:0 0 0 0 7 1", false),
            ("0: 0100007F:0016 0100007F:C350 01 0:0 0:0 0 0 0 7 1", false),
            (
                "0: 0000000000000000FFFF00000100007F:0016 0000000000000000FFFF00000100007F:C350 01 0:0 0:0 0 0 0 7 1",
                false,
            ),
            ("garbage", false),
        ] {
            assert_eq!(leads_out(row), expect, "{row}");
        }
    }

    #[test]
    fn requests_of_users_count_while_they_are_served() {
        let one = Served::begin(&Request::List { directory: "/".to_owned() });
        assert!(one.is_some());
        for request in [Request::Clock, Request::Use, Request::Info, Request::Stats] {
            assert!(Served::begin(&request).is_none(), "{request:?}");
        }
        assert!(now().streams >= 1);
    }
}
