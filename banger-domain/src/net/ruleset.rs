//! The rules of the packet filter. They do not depend on the guests.

use super::{TABLE, nic::TAP_PREFIX, subnet::Subnet};
use crate::{
    dns::limits::{CONNECTIONS, CONNECTIONS_OF_HOST, MAX_QUESTION, QUESTIONS, QUESTIONS_OF_HOST, Rate},
    egress::grants::{MAX_GRANTS, OPEN},
};

/// The rules in the language of nft(8), without the definitions that differ from host to host.
const RULES: &str = include_str!("ruleset.nft");
/// What marks a rule that needs nft_connlimit.
const COUNTS: &str = "ct count";
/// The longest packet with a question: a header of IPv4 with all options, or of IPv6 with some extensions, and that
/// of UDP.
const LONGEST_QUESTION: usize = 60 + 8 + MAX_QUESTION;
/// Linux' default for the number of tracked connections, used if the kernel does not say.
const DEFAULT_TABLE: u32 = 65_536;

/// How many destinations of names fit into a set: those of as many guests as run on a large host. The kernel takes the
/// lower 16 bits for the size of the table that it makes at once, so a multiple of 65,536 takes no memory until it is used.
const GRANTS: usize = 512 * MAX_GRANTS;

/// How many connections guests may have open. The kernel tracks all of the host's connections in one table, and
/// forgets some only after five days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// For one guest.
    pub guest: u32,
    /// For all guests of one owner.
    pub owner: u32,
}

impl Bounds {
    /// Returns the bounds for a host that tracks this many connections (`net.netfilter.nf_conntrack_max`). A guest
    /// gets what a busy development machine needs, and an owner an eighth of the table, so that neither fills it.
    pub fn for_table(table: Option<u32>) -> Self {
        let table = table.unwrap_or(DEFAULT_TABLE);
        Self { guest: (table / 32).clamp(256, 8192), owner: (table / 8).max(256) }
    }
}

/// Returns the whole table in the language of nft(8). Applying it replaces the rules and keeps the elements of
/// guests. Without bounds, connections are not counted.
pub fn ruleset(subnet: Subnet, bounds: Option<Bounds>) -> String {
    let (gateway4, gateway6) = subnet.gateway();
    let (subnet4, subnet6) = (subnet.v4(), subnet.v6());
    let definitions = format!(
        "define taps = \"{TAP_PREFIX}*\"\n\
         define gateway4 = {gateway4}\n\
         define gateway6 = {gateway6}\n\
         define subnet4 = {subnet4}\n\
         define subnet6 = {subnet6}/64\n\
         define longest_question = {LONGEST_QUESTION}\n\n"
    );
    // nft does not accept a definition as a number of connections, or in a rate.
    let rules = RULES
        .replace("$guests_grants", &GRANTS.to_string())
        .replace("$grant", &format!("{}s", OPEN.as_secs()))
        .replace("$rate_of_questions_by_host", &in_words(QUESTIONS_OF_HOST))
        .replace("$rate_of_calls_by_host", &in_words(CONNECTIONS_OF_HOST))
        .replace("$rate_of_questions", &in_words(QUESTIONS))
        .replace("$rate_of_calls", &in_words(CONNECTIONS));
    let rules = match bounds {
        Some(Bounds { guest, owner }) => rules
            .replace("$guest_connections", &guest.to_string())
            .replace("$owner_connections", &owner.to_string()),
        None => rules.split_inclusive('\n').filter(|line| !line.contains(COUNTS)).collect(),
    };
    definitions + &rules
}

fn in_words(Rate { per_second, at_once }: Rate) -> String {
    format!("{per_second}/second burst {at_once} packets")
}

/// Returns a command that deletes the table, for use before [`ruleset`] if the table is of another version and cannot
/// be changed into ours. The elements of all guests are lost.
pub fn delete_table() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_rules_leave_open_what_belongs_to_a_host() {
        let subnet = "10.213.0.0/16 fd12:3456:789a::/64".parse().unwrap();
        let text = ruleset(subnet, Some(Bounds { guest: 5, owner: 6 }));
        let (definitions, rules) = text.split_once("\n\n").unwrap();
        assert_eq!(
            definitions,
            "define taps = \"bgr-*\"\n\
             define gateway4 = 10.213.0.1\n\
             define gateway6 = fd12:3456:789a::1\n\
             define subnet4 = 10.213.0.0/16\n\
             define subnet6 = fd12:3456:789a::/64\n\
             define longest_question = 1092"
        );
        assert!(rules.contains("ct count over 5 }") && rules.contains("ct count over 6 }"), "{rules}");
        for line in definitions.lines() {
            let name = line.split(' ').nth(1).unwrap();
            assert!(rules.contains(&format!("${name}")), "{name}");
        }
        assert!(!rules.contains(TAP_PREFIX));
        assert!(rules.contains("limit rate over 500/second burst 1000 packets } drop"), "{rules}");
        assert!(rules.contains("limit rate over 20/second burst 64 packets } reject"), "{rules}");

        assert!(rules.contains("size 262144; flags dynamic,timeout; timeout 300s;"), "{rules}");
        assert_eq!(GRANTS % 65_536, 0, "the kernel would make a large table at once");

        let uncounted = ruleset(subnet, None);
        let missing = rules.lines().filter(|line| !uncounted.contains(line)).count();
        assert_eq!((missing, uncounted.contains("_connections")), (2, false), "{uncounted}");
    }

    #[test]
    fn no_guest_and_no_owner_can_fill_the_table_of_a_host() {
        let check = |table, guest, owner| {
            assert_eq!(Bounds::for_table(table), Bounds { guest, owner }, "{table:?}");
        };
        check(Some(262_144), 8192, 32_768);
        check(Some(65_536), 2048, 8192);
        check(None, 2048, 8192);
        check(Some(4096), 256, 512);
        check(Some(4_000_000), 8192, 500_000);
    }
}
