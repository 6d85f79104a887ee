//! Egress policies under an administrator's ceiling: what both allow is allowed by each, for every name and address.
#![no_main]

use std::net::IpAddr;

use banger_domain::egress::{
    Egress,
    address::{Neighbours, is_internal},
    allow_list::{AllowList, MAX_NETS, MAX_OF_ANSWER, beyond, cut, under},
    entry::Entry,
    host_name::HostName,
    preset::Presets,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: { banger_fuzz::sow("egress") },
    |input: &[u8]| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let mut parts = text.split('\x01');
        let (policy, ceiling) = (policy(parts.next()), policy(parts.next()));
        let presets = Presets::default();
        let list = |policy: &Egress| match policy {
            Egress::Everything => None,
            limited => Some(AllowList::of(limited, &presets)),
        };
        let (mine, limit, both) = (list(&policy), list(&ceiling), under(&policy, &ceiling, &presets));
        let destinations = parts.next().unwrap_or_default();
        let names = destinations.split_whitespace().filter_map(|word| word.parse::<HostName>().ok());
        let addresses: Vec<IpAddr> = destinations.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        for name in names {
            let ports = |list: &Option<AllowList>| list.as_ref().map(|list| list.ports_of(&name));
            let (Some(allowed), mine, limit) = (ports(&both), ports(&mine), ports(&limit)) else { continue };
            for port in allowed {
                for each in [&mine, &limit].into_iter().flatten() {
                    assert!(each.iter().any(|ports| ports.cover(port)), "{name}: {port:?} is beyond {each:?}");
                }
            }
            let grants = both.as_ref().unwrap().grants(&name, &addresses, &Neighbours::default());
            assert!(grants.len() <= MAX_OF_ANSWER && grants.iter().all(|grant| !is_internal(grant.address)));
        }
        if let Some(both) = &both {
            assert!(both.nets().len() <= MAX_NETS);
            for address in addresses.iter().filter(|address| both.names_address(**address)) {
                for each in [&mine, &limit].into_iter().flatten() {
                    assert!(each.names_address(*address), "{address} is beyond a policy");
                }
            }
        }
        let excess = beyond(&policy, &ceiling, &presets);
        assert_eq!(excess.is_none(), cut(&policy, &ceiling, &presets).is_empty(), "{excess:?}");
    }
);

/// Returns the policy of these lines; `all` is everything.
fn policy(lines: Option<&str>) -> Egress {
    let lines = lines.unwrap_or_default();
    if lines.trim() == "all" {
        return Egress::Everything;
    }
    let entries = lines.split_whitespace().filter_map(|line| line.parse::<Entry>().ok());
    // A preset that nobody defined allows nothing.
    let entries: Vec<Entry> = entries.filter(|entry| !matches!(entry, Entry::Preset(_))).take(64).collect();
    if entries.is_empty() { Egress::Nothing } else { Egress::of(entries) }
}
