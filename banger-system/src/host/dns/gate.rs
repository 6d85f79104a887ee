//! Answers for restricted guests: only about names that they may reach, without addresses inside the host's networks,
//! and only after the packet filter lets the addresses through.

use std::{net::IpAddr, sync::Arc};

use banger_domain::{
    dns::RESTRICTED_TTL,
    egress::{
        address::{Neighbours, is_internal},
        allow_list::AllowList,
        host_name::HostName,
    },
    id::VmId,
};
use hickory_server::proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};

use super::message::Question;
use crate::ports::network::{Granted, Network};

/// The most addresses of one answer.
const MAX_ADDRESSES: usize = 64;
/// The longest chain of aliases that is followed.
const MAX_ALIASES: usize = 16;

/// What the answer to a restricted guest has to pass.
pub(super) struct Gate {
    pub(super) vm: VmId,
    pub(super) name: HostName,
    pub(super) allowed: Arc<AllowList>,
    pub(super) network: Arc<dyn Network>,
}

impl Gate {
    /// Turns a server's reply into the reply for the guest.
    pub(super) async fn pass(&self, question: &Question, reply: &[u8]) -> Option<Vec<u8>> {
        let Ok(mut message) = Message::from_vec(reply) else {
            return question.with_code(ResponseCode::ServFail);
        };
        if message.metadata.truncation {
            return question.truncated();
        }
        let addresses = clean(&mut message, &self.allowed, &self.network.neighbours());
        match self.network.grant(self.vm, &self.name, &addresses).await {
            Ok(Granted::All) => {}
            Ok(Granted::Nothing) => return question.with_code(ResponseCode::ServFail),
            Err(error) => {
                tracing::warn!(vm = %self.vm, %error, "cannot let a guest reach an allowed name");
                return question.with_code(ResponseCode::ServFail);
            }
        }
        message.metadata.id = question.id();
        let cleaned = message.to_vec().ok()?;
        match cleaned.len() > usize::from(question.max_length()) {
            true => question.truncated(),
            false => Some(cleaned),
        }
    }
}

/// Removes what a restricted guest must not get from an answer, and returns the addresses that are left. An internal one
/// among them, or one of a neighbour, is allowed by itself, and the network does not open it for the name.
fn clean(message: &mut Message, allowed: &AllowList, neighbours: &Neighbours) -> Vec<IpAddr> {
    let is_inside = |address| is_internal(address) || neighbours.have(address);
    let names = aliases(message);
    let mut addresses = Vec::new();
    message.answers.retain(|record| match address_of(record) {
        None => true,
        Some(address) => {
            let is_kept = names.contains(&record.name.to_lowercase())
                && (!is_inside(address) || allowed.names_address(address))
                && addresses.len() < MAX_ADDRESSES;
            if is_kept {
                addresses.push(address);
            }
            is_kept
        }
    });
    // A hint of another name server, and addresses that nobody asked for.
    message.authorities.retain(|record| record.record_type() == RecordType::SOA);
    message.additionals.clear();
    for record in message.answers.iter_mut().chain(&mut message.authorities) {
        record.ttl = record.ttl.min(RESTRICTED_TTL);
    }
    addresses
}

/// Returns the name of the question and its aliases, in lower case.
fn aliases(message: &Message) -> Vec<Name> {
    let mut names: Vec<Name> =
        message.queries.first().map(|query| query.name().to_lowercase()).into_iter().collect();
    for _ in 0..MAX_ALIASES {
        let next = message.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if names.last() == Some(&record.name.to_lowercase()) => {
                Some(target.0.to_lowercase())
            }
            _ => None,
        });
        match next {
            Some(next) if !names.contains(&next) => names.push(next),
            _ => break,
        }
    }
    names
}

fn address_of(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_domain::egress::{Egress, preset::Presets};
    use hickory_server::proto::{
        op::Query,
        rr::rdata::{A, AAAA, CNAME, TXT},
    };

    use super::*;

    fn record(name: &str, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(name).unwrap(), 86_400, data)
    }

    fn address(name: &str, address: &str) -> Record {
        record(
            name,
            match address.parse().unwrap() {
                IpAddr::V4(v4) => RData::A(A(v4)),
                IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
            },
        )
    }

    fn alias(name: &str, target: &str) -> Record {
        record(name, RData::CNAME(CNAME(Name::from_ascii(target).unwrap())))
    }

    fn check(allowed: &[&str], answers: Vec<Record>, expect: &[&str], left: usize) {
        let allowed = AllowList::of(&Egress::parse(allowed).unwrap(), &Presets::default());
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::A));
        message.answers = answers;
        message.additionals = vec![address("ns.example.", "198.51.100.1")];
        message.authorities = vec![record("example.", RData::TXT(TXT::new(vec!["x".to_owned()])))];
        let neighbours = Neighbours::of([("2001:db8:1::".parse().unwrap(), 64)]);
        let found: Vec<String> =
            clean(&mut message, &allowed, &neighbours).iter().map(ToString::to_string).collect();
        assert_eq!((found, message.answers.len()), (expect.iter().map(ToString::to_string).collect(), left));
        assert!(message.additionals.is_empty() && message.authorities.is_empty());
        assert!(message.answers.iter().all(|record| record.ttl == RESTRICTED_TTL));
    }

    #[test]
    fn an_answer_has_only_addresses_of_its_name_on_the_internet() {
        let host = &["a.example"][..];
        check(host, vec![address("A.Example.", "203.0.113.2")], &["203.0.113.2"], 1);
        check(host, vec![address("b.example.", "203.0.113.2")], &[], 0);
        let aliases = || {
            vec![
                alias("a.example.", "Cdn.example."),
                alias("cdn.example.", "x.example."),
                address("x.example.", "203.0.113.3"),
                address("b.example.", "203.0.113.4"),
            ]
        };
        check(host, aliases(), &["203.0.113.3"], 3);
        check(host, vec![alias("a.example.", "b.example."), alias("b.example.", "a.example.")], &[], 2);
        for internal in [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.30.0.1",
            "224.0.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "2001:db8:1::5",
        ] {
            check(
                host,
                vec![address("a.example.", internal), address("a.example.", "203.0.113.2")],
                &["203.0.113.2"],
                1,
            );
        }
        check(&["a.example", "10.0.0.0/8:80"], vec![address("a.example.", "10.0.0.1")], &["10.0.0.1"], 1);
        let named = &["a.example", "2001:db8:1::/64"];
        check(named, vec![address("a.example.", "2001:db8:1::5")], &["2001:db8:1::5"], 1);
        let many = (0..200).map(|n| address("a.example.", &format!("203.0.113.{n}"))).collect::<Vec<_>>();
        let expect: Vec<String> = (0..MAX_ADDRESSES).map(|n| format!("203.0.113.{n}")).collect();
        check(host, many, &expect.iter().map(String::as_str).collect::<Vec<_>>(), MAX_ADDRESSES);
    }
}
