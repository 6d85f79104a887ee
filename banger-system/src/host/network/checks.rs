//! What the network needs from the host, as `banger doctor` shows it.

use std::path::Path;

use banger_domain::net::{element::Ipv6, nic::TAP_PREFIX, ruleset::Bounds};

use super::{
    filter::{Filter, ForeignDrop},
    forwarding, tap,
};
use crate::ports::{Check, Status};

/// Returns the checks of interfaces.
pub(super) fn of_interfaces() -> Vec<Check> {
    vec![tun()]
}

/// Returns the check of published ports. They need nothing more than interfaces do, so it shows how many there are.
pub(super) fn of_ports(count: usize) -> Check {
    check("ports", Status::Pass, format!("published ports of this host: {count}"), "")
}

/// Returns the checks of NAT. Blocks.
pub(super) fn of_nat(filter: &Filter) -> Vec<Check> {
    let mut checks = vec![ipv6()];
    checks.extend(filter.is_prepared().then(|| connections(filter.bounds())));
    match filter.foreign_drops() {
        Ok(drops) => checks.extend(firewall(&drops)),
        Err(error) => checks.push(check(
            "packet filter",
            Status::Fail,
            format!("cannot read the kernel's packet filter: {error}"),
            "use a kernel with nf_tables, and load the module nf_tables",
        )),
    }
    checks
}

fn tun() -> Check {
    match Path::new(tap::DEVICE).exists() {
        true => check("tap", Status::Pass, format!("{} exists", tap::DEVICE), ""),
        false => check("tap", Status::Fail, format!("{} is missing", tap::DEVICE), "run `modprobe tun`"),
    }
}

fn ipv6() -> Check {
    let (message, hint) = match forwarding::ipv6() {
        Ipv6::Forwarded => return check("ipv6", Status::Pass, "guests have IPv6".to_owned(), ""),
        Ipv6::Local => (
            "guests reach only this host over IPv6: it does not forward IPv6, and its kernel cannot \
             turn that on for single links",
            "to give guests IPv6, set net.ipv6.conf.all.forwarding=1, and accept_ra=2 on the link to your router",
        ),
        Ipv6::Absent => ("guests have no IPv6, because this host has none", ""),
    };
    check("ipv6", Status::Pass, message.to_owned(), hint)
}

fn connections(bounds: Option<Bounds>) -> Check {
    match bounds {
        Some(Bounds { guest, owner }) => {
            let message =
                format!("limits: {guest} connections for a guest, {owner} for all guests of a user");
            check("connections", Status::Pass, message, "")
        }
        None => check(
            "connections",
            Status::Warn,
            "the kernel cannot limit connections: one guest can fill the connection table of the whole host"
                .to_owned(),
            "use a kernel with the module nft_connlimit, and restart banger-system",
        ),
    }
}

/// Warns of chains that drop packets of guests: accepting a packet is not final, since another program's chain may
/// still drop it.
fn firewall(drops: &[ForeignDrop]) -> Vec<Check> {
    let mut checks: Vec<Check> = drops
        .iter()
        .map(|ForeignDrop { chain, hook }| {
            let (what, hint) = match (*hook, chain.as_str()) {
                ("input", _) => (
                    "guests may be unable to reach DNS on this host",
                    format!("allow UDP and TCP port 53 from the links {TAP_PREFIX}*"),
                ),
                (_, chain) if chain.contains("firewalld") => (
                    "guests may be unable to reach networks beyond this host",
                    format!("run `firewall-cmd --permanent --zone=trusted --add-interface={TAP_PREFIX}+` and reload"),
                ),
                // Docker sets the policy of this chain, and leaves DOCKER-USER to administrators.
                (_, "ip filter FORWARD" | "ip6 filter FORWARD") => (
                    "guests may be unable to reach networks beyond this host",
                    format!(
                        "if Docker made it, run `iptables -I DOCKER-USER -i {TAP_PREFIX}+ -j ACCEPT` and \
                         `iptables -I DOCKER-USER -o {TAP_PREFIX}+ -j ACCEPT`; else accept them in FORWARD"
                    ),
                ),
                _ => (
                    "guests may be unable to reach networks beyond this host",
                    format!("accept traffic from and to the links {TAP_PREFIX}* in that chain"),
                ),
            };
            let message = format!("the chain `{chain}` drops traffic by default: {what}");
            Check { name: "firewall", status: Status::Warn, message, hint }
        })
        .collect();
    if checks.is_empty() {
        let message = "no other firewall drops traffic of guests".to_owned();
        checks.push(check("firewall", Status::Pass, message, ""));
    }
    checks
}

fn check(name: &'static str, status: Status, message: String, hint: &str) -> Check {
    Check { name, status, message, hint: hint.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(chain: &str, hook: &'static str) -> String {
        let drops = [ForeignDrop { chain: chain.to_owned(), hook }];
        firewall(&drops).remove(0).hint
    }

    #[test]
    fn a_firewall_that_drops_is_reported_with_a_hint() {
        assert!(hint("ip filter FORWARD", "forward").contains("DOCKER-USER"));
        assert!(hint("inet firewalld filter_FORWARD", "forward").contains("firewall-cmd"));
        assert!(hint("inet filter forward", "forward").contains("in that chain"));
        assert!(hint("inet filter input", "input").contains("53"));
        assert_eq!(firewall(&[]).first().map(|check| check.status), Some(Status::Pass));
    }
}
