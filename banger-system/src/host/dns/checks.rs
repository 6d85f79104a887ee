//! What names need from the host, as `banger doctor` shows it.

use std::net::SocketAddr;

use banger_domain::dns::table::Table;

use super::resolved::ResolvedState;
use crate::ports::{Check, Status};

/// Returns all checks.
pub(super) fn all(
    names: Option<&Table>,
    failures: &[(SocketAddr, String)],
    resolved: &ResolvedState,
) -> Vec<Check> {
    let Some(names) = names else {
        let message =
            "names of sandboxes are not served yet: the network for guests is not set up".to_owned();
        return vec![check("names", Status::Warn, message, "`journalctl -u banger-system` shows why")];
    };
    vec![server(names, failures), resolver(names, resolved)]
}

fn server(names: &Table, failures: &[(SocketAddr, String)]) -> Check {
    let (gateway, _) = names.subnet().gateway();
    // A host without IPv6 does not have that address; every host has the other one.
    match failures.iter().find(|(at, _)| at.is_ipv4()) {
        Some((at, why)) => check(
            "names",
            Status::Fail,
            format!("cannot serve the names of sandboxes at {at}: {why}"),
            "if another DNS server has port 53 on all addresses, bind it to the addresses that it needs \
             (dnsmasq: bind-interfaces, unbound: interface:, named: listen-on)",
        ),
        None => check(
            "names",
            Status::Pass,
            format!("names of sandboxes served at {gateway}: {}", names.len()),
            "",
        ),
    }
}

fn resolver(names: &Table, resolved: &ResolvedState) -> Check {
    let (gateway, _) = names.subnet().gateway();
    let recipe = format!(
        "make the host's resolver query {gateway} for the domain vm (dnsmasq: `server=/vm/{gateway}`, unbound: a \
         stub-zone; see docs/network.md); sandboxes resolve each other's names without it"
    );
    let message = match resolved {
        ResolvedState::Configured { .. } => {
            let message = "systemd-resolved asks banger for names under vm".to_owned();
            return check("resolver", Status::Pass, message, "");
        }
        ResolvedState::Absent => {
            "systemd-resolved does not run, so this host cannot resolve NAME.vm".to_owned()
        }
        ResolvedState::Unknown => "systemd-resolved is not yet configured for names under vm".to_owned(),
        ResolvedState::Failed(why) => format!("cannot configure systemd-resolved for names under vm: {why}"),
    };
    check("resolver", Status::Warn, message, &recipe)
}

fn check(name: &'static str, status: Status, message: String, hint: &str) -> Check {
    Check { name, status, message, hint: hint.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(failures: &[(&str, &str)], resolved: &ResolvedState) -> Vec<(&'static str, Status)> {
        let names = Table::of("172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap(), Vec::new());
        let failures: Vec<_> =
            failures.iter().map(|(at, why)| (at.parse().unwrap(), (*why).to_owned())).collect();
        all(Some(&names), &failures, resolved).into_iter().map(|check| (check.name, check.status)).collect()
    }

    #[test]
    fn missing_parts_are_reported_with_a_hint() {
        let told = ResolvedState::Configured { link: 3 };
        assert_eq!(found(&[], &told), [("names", Status::Pass), ("resolver", Status::Pass)]);
        assert_eq!(found(&[("[fd12:3456:789a::1]:53", "no")], &told)[0].1, Status::Pass);
        assert_eq!(found(&[("172.30.0.1:53", "in use")], &told)[0].1, Status::Fail);
        assert_eq!(found(&[], &ResolvedState::Absent)[1].1, Status::Warn);
        assert_eq!(all(None, &[], &ResolvedState::Unknown)[0].status, Status::Warn);
    }
}
