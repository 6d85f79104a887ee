//! The rules of the packet filter, which are the same however many guests there are.

use super::{TABLE, nic::TAP_PREFIX, subnet::Subnet};

/// The rules in the language of nft(8), but for the definitions of what they leave open.
const RULES: &str = include_str!("ruleset.nft");
/// What a rule has that only a kernel with nft_connlimit takes.
const COUNTS: &str = "ct count";
/// What Linux keeps of connections when it has the memory, for a kernel that does not say.
const DEFAULT_TABLE: u32 = 65_536;

/// How many connections guests may have open. The kernel keeps all of the host's in one table, and forgets some
/// only after five days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of one guest.
    pub guest: u32,
    /// Of all guests of one owner.
    pub owner: u32,
}

impl Bounds {
    /// Returns the bounds for a host whose table has this many places (`net.netfilter.nf_conntrack_max`). A guest gets
    /// what a busy development machine needs, and an owner an eighth of the table, so that neither fills it.
    pub fn of_table(places: Option<u32>) -> Self {
        let places = places.unwrap_or(DEFAULT_TABLE);
        Self { guest: (places / 32).clamp(256, 8192), owner: (places / 8).max(256) }
    }
}

/// The whole table in the language of nft(8). Applying it replaces the rules, and keeps the elements of
/// guests that are there. Without bounds nothing is counted.
pub fn ruleset(subnet: Subnet, bounds: Option<Bounds>) -> String {
    let (gateway4, gateway6) = subnet.gateway();
    let (subnet4, subnet6) = (subnet.v4(), subnet.v6());
    let definitions = format!(
        "define taps = \"{TAP_PREFIX}*\"\n\
         define gateway4 = {gateway4}\n\
         define gateway6 = {gateway6}\n\
         define subnet4 = {subnet4}\n\
         define subnet6 = {subnet6}/64\n\n"
    );
    // nft takes no definition where a number of connections is expected.
    let rules = match bounds {
        Some(Bounds { guest, owner }) => RULES
            .replace("$guest_connections", &guest.to_string())
            .replace("$owner_connections", &owner.to_string()),
        None => RULES.split_inclusive('\n').filter(|line| !line.contains(COUNTS)).collect(),
    };
    definitions + &rules
}

/// Deletes the table, before [`ruleset`]: for a table that another version made and that cannot
/// be changed into ours. The elements of all guests are lost.
pub fn begin_anew() -> String {
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
             define subnet6 = fd12:3456:789a::/64"
        );
        assert!(rules.contains("ct count over 5 }") && rules.contains("ct count over 6 }"), "{rules}");
        for line in definitions.lines() {
            let name = line.split(' ').nth(1).unwrap();
            assert!(rules.contains(&format!("${name}")), "{name}");
        }
        assert!(!rules.contains(TAP_PREFIX));

        let uncounted = ruleset(subnet, None);
        let missing = RULES.lines().filter(|line| !uncounted.contains(line)).count();
        assert_eq!((missing, uncounted.contains("_connections")), (2, false), "{uncounted}");
    }

    #[test]
    fn no_guest_and_no_owner_can_fill_the_table_of_a_host() {
        let check = |places, guest, owner| {
            assert_eq!(Bounds::of_table(places), Bounds { guest, owner }, "{places:?}");
        };
        check(Some(262_144), 8192, 32_768);
        check(Some(65_536), 2048, 8192);
        check(None, 2048, 8192);
        check(Some(4096), 256, 512);
        check(Some(4_000_000), 8192, 500_000);
    }
}
