//! The rules of the packet filter, which are the same however many guests there are.

use super::{TABLE, nic::TAP_PREFIX, subnet::Subnet};

/// The rules in the language of nft(8), but for the definitions of what they leave open.
const RULES: &str = include_str!("ruleset.nft");

/// The whole table in the language of nft(8). Applying it replaces the rules, and keeps the elements of
/// guests that are there.
pub fn ruleset(subnet: Subnet) -> String {
    let (gateway4, gateway6) = subnet.gateway();
    let (subnet4, subnet6) = (subnet.v4(), subnet.v6());
    format!(
        "define taps = \"{TAP_PREFIX}*\"\n\
         define gateway4 = {gateway4}\n\
         define gateway6 = {gateway6}\n\
         define subnet4 = {subnet4}\n\
         define subnet6 = {subnet6}/64\n\n\
         {RULES}"
    )
}

/// What begins the table anew, before [`ruleset`]: for a table that another version made and that cannot
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
        let text = ruleset("10.213.0.0/16 fd12:3456:789a::/64".parse().unwrap());
        let (definitions, rules) = text.split_once("\n\n").unwrap();
        assert_eq!(
            definitions,
            "define taps = \"bgr-*\"\n\
             define gateway4 = 10.213.0.1\n\
             define gateway6 = fd12:3456:789a::1\n\
             define subnet4 = 10.213.0.0/16\n\
             define subnet6 = fd12:3456:789a::/64"
        );
        assert_eq!(rules, RULES);
        for open in ["$taps", "$gateway4", "$gateway6", "$subnet4", "$subnet6"] {
            assert!(rules.contains(open), "{open}");
        }
        assert!(!rules.contains(TAP_PREFIX));
    }
}
