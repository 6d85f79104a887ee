//! A policy without presets, as the name server and the packet filter use it.

use core::net::IpAddr;
use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{
    EVERYTHING, Egress,
    address::{Neighbours, is_internal},
    entry::{Entry, Ports},
    grants::Grant,
    host_name::{HostName, Pattern},
    preset::Presets,
};

/// The most rules of a list: those beyond it allow nothing. A guest's look-up goes through all of them.
const MAX_RULES: usize = 2048;
/// The most networks of a policy. The packet filter compares each packet with all networks of all guests.
pub const MAX_NETS: usize = 64;
/// The most destinations that one answer opens.
pub const MAX_OF_ANSWER: usize = 64;

/// What a guest may reach beyond the host if it may not reach everything. An empty list allows nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AllowList {
    hosts: Vec<(Pattern, Ports)>,
    /// None of them is within another one.
    nets: Vec<(IpNet, Ports)>,
}

impl AllowList {
    /// Returns the list of a policy.
    pub fn of(policy: &Egress, presets: &Presets) -> Self {
        let mut entries = presets.expand(policy);
        entries.sort();
        entries.dedup();
        let mut list = Self::default();
        for entry in entries.into_iter().take(MAX_RULES) {
            match entry {
                Entry::Host(pattern, ports) => list.hosts.push((pattern, ports)),
                Entry::Net(net, ports) => list.nets.push((net, ports)),
                Entry::Preset(_) => {}
            }
        }
        list.without_inner_nets()
    }

    /// Returns the list without networks that are within another one.
    fn without_inner_nets(mut self) -> Self {
        let all = self.nets.clone();
        let covers = |(wide, ports): &(IpNet, Ports), (net, other): &(IpNet, Ports)| {
            wide.contains(net) && ports.cover(*other)
        };
        self.nets.retain(|net| !all.iter().any(|wide| wide != net && covers(wide, net)));
        self
    }

    /// Returns what this list and another one both allow.
    fn within(&self, ceiling: &Self) -> Self {
        let narrower = |one: &IpNet, other: &IpNet| match (one.contains(other), other.contains(one)) {
            (true, _) => Some(*other),
            (_, true) => Some(*one),
            _ => None,
        };
        let hosts = common(&self.hosts, &ceiling.hosts, Pattern::meet);
        let nets = common(&self.nets, &ceiling.nets, narrower);
        Self { hosts, nets }.without_inner_nets()
    }

    /// Returns whether it allows nothing.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.nets.is_empty()
    }

    /// Returns the networks.
    pub fn nets(&self) -> &[(IpNet, Ports)] {
        &self.nets
    }

    /// Returns the allowed ports of a name; none if the name is not allowed.
    pub fn ports_of(&self, name: &HostName) -> Vec<Ports> {
        let allowed = self.hosts.iter().filter(|(pattern, _)| pattern.allows(name)).map(|(_, ports)| *ports);
        let mut ports: Vec<Ports> = allowed.collect();
        if ports.contains(&Ports::Any) {
            return vec![Ports::Any];
        }
        ports.sort();
        ports.dedup();
        ports
    }

    /// Returns the destinations that an answer about a name opens. Internal addresses and those of neighbours are never
    /// among them, even if the policy names them: the name would open all of their ports.
    pub fn grants(&self, name: &HostName, addresses: &[IpAddr], neighbours: &Neighbours) -> Vec<Grant> {
        let ports = self.ports_of(name);
        let public =
            addresses.iter().filter(|address| !is_internal(**address) && !neighbours.have(**address));
        let grants = public.flat_map(|&address| ports.iter().map(move |&ports| Grant { address, ports }));
        grants.take(MAX_OF_ANSWER).collect()
    }

    /// Returns whether an address is allowed by itself, with any port.
    pub fn names_address(&self, address: IpAddr) -> bool {
        self.nets.iter().any(|(net, _)| net.contains(&address))
    }

    /// Returns the first rule of `other` that allows more than this list.
    fn first_beyond(&self, other: &Self) -> Option<String> {
        let host = other.hosts.iter().find(|(pattern, ports)| {
            !self.hosts.iter().any(|(mine, allowed)| mine.covers(pattern) && allowed.cover(*ports))
        });
        let net = other.nets.iter().find(|(net, ports)| {
            !self.nets.iter().any(|(mine, allowed)| mine.contains(net) && allowed.cover(*ports))
        });
        let host = host.map(|(pattern, ports)| Entry::Host(pattern.clone(), *ports));
        let net = net.map(|(net, ports)| Entry::Net(*net, *ports));
        host.or(net).map(|entry| entry.to_string())
    }
}

/// Returns what two lists of rules both allow.
fn common<T: Ord>(
    one: &[(T, Ports)],
    other: &[(T, Ports)],
    meet: impl Fn(&T, &T) -> Option<T>,
) -> Vec<(T, Ports)> {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one, other)));
    let met = pairs.filter_map(|((to, ports), (other, allowed))| {
        let ports = ports.meet(*allowed)?;
        Some((meet(to, other)?, ports))
    });
    met.collect::<BTreeSet<_>>().into_iter().take(MAX_RULES).collect()
}

/// Returns what a policy allows under a ceiling, which may have become lower since the policy was set. `None` if it
/// allows everything.
pub fn under(policy: &Egress, ceiling: &Egress, presets: &Presets) -> Option<AllowList> {
    let list = |policy| AllowList::of(policy, presets);
    let mut allowed = match (policy, ceiling) {
        (Egress::Everything, Egress::Everything) => return None,
        (Egress::Everything, limit) | (limit, Egress::Everything) => list(limit),
        _ => list(policy).within(&list(ceiling)),
    };
    allowed.nets.truncate(MAX_NETS);
    Some(allowed)
}

/// Returns what a policy allows beyond a ceiling: an entry, or `all`. `None` if it stays within it.
pub fn beyond(policy: &Egress, ceiling: &Egress, presets: &Presets) -> Option<String> {
    match (policy, ceiling) {
        (Egress::Nothing, _) | (_, Egress::Everything) => None,
        (Egress::Everything, _) => Some(EVERYTHING.to_owned()),
        (Egress::Only(_), _) => AllowList::of(ceiling, presets).first_beyond(&AllowList::of(policy, presets)),
    }
}

/// Returns the entries of a policy that a ceiling does not allow, or not in full. The policy may be older than the ceiling.
pub fn cut(policy: &Egress, ceiling: &Egress, presets: &Presets) -> Vec<String> {
    match (policy, ceiling) {
        (Egress::Nothing, _) | (_, Egress::Everything) => Vec::new(),
        (Egress::Everything, _) => vec![EVERYTHING.to_owned()],
        (Egress::Only(entries), _) => {
            let ceiling = AllowList::of(ceiling, presets);
            let is_beyond = |entry: &&Entry| {
                let alone = AllowList::of(&Egress::of(vec![(*entry).clone()]), presets);
                ceiling.first_beyond(&alone).is_some()
            };
            entries.iter().filter(is_beyond).map(Entry::to_string).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{name::Name, net::port::Protocol};

    fn policy(words: &str) -> Egress {
        Egress::parse(&words.split_whitespace().collect::<Vec<_>>()).unwrap()
    }

    fn presets() -> Presets {
        let mut presets = Presets::default();
        let mut add = |name: &str, words: &str| {
            presets.add(name.parse().unwrap(), words.split(' ').map(|word| word.parse().unwrap()).collect());
        };
        add("git", "github.com *.github.com:443");
        add("both", "git example.org:443 both");
        presets
    }

    fn list(words: &str) -> AllowList {
        AllowList::of(&policy(words), &presets())
    }

    #[test]
    fn presets_are_replaced_by_their_entries() {
        assert_eq!(list("both"), list("github.com *.github.com:443 example.org:443"));
        assert_eq!(presets().missing_in(&policy("git nope")).map(Name::as_str), Some("nope"));
        let mut presets = presets();
        presets.add("broken".parse().unwrap(), vec!["gone".parse().unwrap(), "both".parse().unwrap()]);
        let missing = |words: &str| {
            let policy = policy(words);
            presets.all_missing_in(&policy).into_iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(missing("git both a.example"), Vec::<String>::new());
        assert_eq!(missing("nope broken git"), ["gone", "nope"]);
        assert!(list("nope").is_empty(), "a preset that is gone allows nothing");
        assert!(list("all").is_empty() && list("none").is_empty());
    }

    #[test]
    fn a_name_has_the_ports_of_all_its_entries() {
        let list =
            list("a.example:80 *.example.com:443 *.example.com:22 a.example:80/udp b.example b.example:1");
        let check = |name: &str, expect: &[Ports]| {
            assert_eq!(list.ports_of(&name.parse().unwrap()), expect, "{name}");
        };
        let tcp = |port| Ports::One(Protocol::Tcp, port);
        check("a.example", &[tcp(80), Ports::One(Protocol::Udp, 80)]);
        check("x.example.com", &[tcp(22), tcp(443)]);
        check("b.example", &[Ports::Any]);
        check("example.com", &[]);
    }

    #[test]
    fn a_network_within_another_is_left_out() {
        let nets = |words: &str| list(words).nets().len();
        assert_eq!(nets("10.0.0.0/8 10.1.0.0/16 10.1.2.3 10.1.2.3:80"), 1);
        assert_eq!(nets("10.0.0.0/8:80 10.1.0.0/16 10.1.2.3:80"), 2);
        assert_eq!(nets("10.0.0.0/8:80 10.0.0.0/8:81 2001:db8::/32"), 3);
        assert!(list("10.0.0.0/8:80").names_address("10.2.3.4".parse().unwrap()));
        assert!(!list("10.0.0.0/8:80").names_address("11.2.3.4".parse().unwrap()));
    }

    #[test]
    fn an_answer_opens_a_bounded_number_of_addresses_on_the_internet() {
        let list = list("a.example b.example:80 10.0.0.5:22 64.0.0.0/8:22");
        let check = |name: &str, addresses: &[&str], expect: &[(&str, Ports)]| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let expect: Vec<Grant> = expect
                .iter()
                .map(|(address, ports)| Grant { address: address.parse().unwrap(), ports: *ports })
                .collect();
            let neighbours = Neighbours::of([("2001:db8:1::".parse().unwrap(), 64)]);
            assert_eq!(list.grants(&name.parse().unwrap(), &addresses, &neighbours), expect, "{name}");
        };
        let http = Ports::One(Protocol::Tcp, 80);
        check(
            "a.example",
            &["203.0.113.2", "64.1.2.3"],
            &[("203.0.113.2", Ports::Any), ("64.1.2.3", Ports::Any)],
        );
        check(
            "b.example",
            &["203.0.113.2", "2606:4700::1"],
            &[("203.0.113.2", http), ("2606:4700::1", http)],
        );
        check("c.example", &["203.0.113.2"], &[]);
        // The policy allows one port of this address. A name that has it must not open the others.
        check("a.example", &["10.0.0.5", "168.63.129.16", "64:ff9b::10.0.0.5", "2001:db8:1::5"], &[]);

        let ports: String = (1..200).map(|port| format!("a.example:{port} ")).collect();
        let many: Vec<IpAddr> = (0..200).map(|n| IpAddr::from([8, 8, 8, n])).collect();
        let none = Neighbours::default();
        assert_eq!(
            self::list(&ports).grants(&"a.example".parse().unwrap(), &many, &none).len(),
            MAX_OF_ANSWER
        );
    }

    #[test]
    fn a_policy_is_cut_at_a_ceiling() {
        let check = |words: &str, ceiling: &str, expect: Option<&str>| {
            let found = under(&policy(words), &policy(ceiling), &presets());
            assert_eq!(found, expect.map(list), "{words} under {ceiling}");
        };
        check("all", "all", None);
        check("all", "git 10.0.0.0/8", Some("git 10.0.0.0/8"));
        check("git 10.0.0.0/8", "all", Some("git 10.0.0.0/8"));
        check("git", "none", Some("none"));
        check("none", "git", Some("none"));
        check("git other.example", "both", Some("git"));
        check("*.github.com", "git", Some("*.github.com:443"));
        check("*.example.com", "a.example.com b.example.com:80", Some("a.example.com b.example.com:80"));
        check("a.example:80", "a.example:81", Some("none"));
        check("10.0.0.0/8", "10.1.0.0/16 10.2.0.0/16:80 11.0.0.0/8", Some("10.1.0.0/16 10.2.0.0/16:80"));
        let many: String = (0..200).map(|n| format!("10.0.0.{n} ")).collect();
        assert_eq!(under(&policy(&many), &policy("all"), &presets()).unwrap().nets().len(), MAX_NETS);
    }

    #[test]
    fn what_a_ceiling_cuts_is_known_by_entry() {
        let check = |words: &str, ceiling: &str, expect: &[&str]| {
            assert_eq!(cut(&policy(words), &policy(ceiling), &presets()), expect, "{words} under {ceiling}");
        };
        check("all", "all", &[]);
        check("all", "git", &["all"]);
        check("none", "none", &[]);
        check("git a.example", "all", &[]);
        check("both git a.example 10.0.0.0/8", "git 10.1.0.0/16", &["both", "a.example", "10.0.0.0/8"]);
        check("git github.com:443", "both", &[]);
        check("nope", "git", &[]);
    }

    #[test]
    fn a_ceiling_names_what_goes_beyond_it() {
        let check = |words: &str, ceiling: &str, expect: Option<&str>| {
            let found = beyond(&policy(words), &policy(ceiling), &presets());
            assert_eq!(found.as_deref(), expect, "{words} under {ceiling}");
        };
        check("all", "all", None);
        check("git 10.0.0.0/8", "all", None);
        check("none", "none", None);
        check("all", "git", Some("all"));
        check("git", "none", Some("github.com"));
        check("git", "both", None);
        check("github.com:443 api.github.com:443", "git", None);
        check("api.github.com", "git", Some("api.github.com"));
        check("*.github.com:22", "git", Some("*.github.com:22"));
        check("10.1.0.0/16:80", "10.0.0.0/8", None);
        check("10.0.0.0/8", "10.1.0.0/16", Some("10.0.0.0/8"));
        check("10.0.0.1", "10.0.0.1:80", Some("10.0.0.1"));
    }
}
