//! Messages of DNS (RFC 1035 and 6891): parses questions and writes answers, both with hickory-server. Messages that
//! it would spend too much on are rejected before.

use std::net::SocketAddr;

use banger_domain::{
    dns::{
        DOMAIN, NEGATIVE_TTL, TTL,
        question::{Answer, Data, Kind, Zone},
        reverse,
    },
    net::subnet::Subnet,
};
use hickory_server::{
    net::xfer::Protocol,
    proto::{
        ProtoError,
        op::{Edns, Message, Metadata, OpCode, ResponseCode},
        rr::{
            DNSClass, Name, RData, Record, RecordType,
            rdata::{A, AAAA, NS, PTR, SOA},
        },
        serialize::binary::BinEncoder,
    },
    server::Request,
    zone_handler::MessageResponseBuilder,
};

/// The longest datagram that we send: it passes every link in one piece (DNS flag day 2020).
const MAX_DATAGRAM: u16 = 1232;
/// The longest datagram that every client accepts.
const MIN_DATAGRAM: u16 = 512;
const HEADER: usize = 12;
const FLAG_RESPONSE: u8 = 0x80;
/// Additional records of a question: those of RFC 6891, and a signature.
const MAX_ADDITIONALS: u16 = 2;
/// In seconds. Nobody copies the zone, so the value means nothing.
const REFRESH: i32 = 3600;

/// A valid question.
pub(super) struct Question {
    request: Request,
}

/// A received message.
pub(super) enum Received {
    /// A question.
    Question(Box<Question>),
    /// An error that is answered at once.
    Wrong(Vec<u8>),
    /// Nothing that deserves an answer.
    Noise,
}

/// Parses a message. The answer to an invalid one is never longer than the message.
pub(super) fn read(bytes: &[u8], from: SocketAddr, protocol: Protocol) -> Received {
    if bytes.len() < HEADER || bytes[2] & FLAG_RESPONSE != 0 {
        return Received::Noise;
    }
    let count = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let id = count(0);
    let wrong = |op_code, code| {
        let message = Message::error_msg(id, op_code, code).to_vec();
        message.map_or(Received::Noise, Received::Wrong)
    };
    let op_code = OpCode::from_u8(bytes[2] >> 3 & 15);
    if op_code != OpCode::Query {
        return wrong(op_code, ResponseCode::NotImp);
    }
    // The decoder allocates memory for as many records as are announced.
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > MAX_ADDITIONALS {
        return wrong(op_code, ResponseCode::FormErr);
    }
    match Request::from_bytes(bytes.to_vec(), from, protocol) {
        Ok(request) if request.queries.len() == 1 => Received::Question(Box::new(Question { request })),
        _ => wrong(op_code, ResponseCode::FormErr),
    }
}

impl Question {
    /// Returns the labels of the name, in lower case.
    pub(super) fn labels(&self) -> Vec<&[u8]> {
        self.request.queries.queries().iter().flat_map(|query| (**query.name()).iter()).collect()
    }

    /// Returns the type of record. `None` if it is not a record type or another class.
    pub(super) fn kind(&self) -> Option<Kind> {
        let query = self.request.queries.queries().first()?;
        if query.query_class() != DNSClass::IN {
            return None;
        }
        Some(match query.query_type() {
            RecordType::A => Kind::A,
            RecordType::AAAA => Kind::Aaaa,
            RecordType::PTR => Kind::Ptr,
            RecordType::SOA => Kind::Soa,
            RecordType::NS => Kind::Ns,
            RecordType::ANY => Kind::Any,
            // Zone transfers are refused.
            RecordType::AXFR | RecordType::IXFR => return None,
            _ => Kind::Other,
        })
    }

    /// Returns whether it asks for records of services, which may have addresses as hints (RFC 9460).
    pub(super) fn is_about_services(&self) -> bool {
        let query = self.request.queries.queries().first();
        query.is_some_and(|query| matches!(query.query_type(), RecordType::HTTPS | RecordType::SVCB))
    }

    /// Returns whether it uses an unknown version of EDNS.
    pub(super) fn has_unknown_version(&self) -> bool {
        self.request.version() > 0
    }

    /// Returns whether the answer goes into a datagram.
    pub(super) fn is_datagram(&self) -> bool {
        self.request.protocol() == Protocol::Udp
    }

    /// Returns how long the answer may be.
    pub(super) fn max_length(&self) -> u16 {
        match self.is_datagram() {
            true => self.request.max_payload().clamp(MIN_DATAGRAM, MAX_DATAGRAM),
            false => u16::MAX,
        }
    }

    /// Returns the id that the answer must have.
    pub(super) fn id(&self) -> u16 {
        self.request.metadata.id
    }

    /// Returns an answer with this code and nothing else.
    pub(super) fn with_code(&self, code: ResponseCode) -> Option<Vec<u8>> {
        let mut metadata = Metadata::response_from_request(&self.request.metadata);
        metadata.response_code = code;
        self.write(metadata, &[], &[]).ok()
    }

    /// Returns a truncated answer, after which the client asks again over a connection.
    pub(super) fn truncated(&self) -> Option<Vec<u8>> {
        let mut metadata = Metadata::response_from_request(&self.request.metadata);
        metadata.truncation = true;
        metadata.recursion_available = true;
        self.write(metadata, &[], &[]).ok()
    }

    /// Returns the answer from our own zones.
    pub(super) fn authoritative(&self, subnet: Subnet, answer: &Answer) -> Option<Vec<u8>> {
        let mut metadata = Metadata::response_from_request(&self.request.metadata);
        metadata.authoritative = true;
        let (mut records, mut authority) = (Vec::new(), Vec::new());
        match answer {
            Answer::Records(all) | Answer::Asleep(_, all) => {
                let name = &self.request.queries.queries().first()?.original().name;
                for data in all {
                    records.push(Record::from_rdata(name.clone(), TTL, content(subnet, data).ok()?));
                }
            }
            Answer::NoData(zone) => authority.push(soa(subnet, *zone).ok()?),
            Answer::NoName(zone) => {
                metadata.response_code = ResponseCode::NXDomain;
                authority.push(soa(subnet, *zone).ok()?);
            }
            Answer::NotOurs => return self.with_code(ResponseCode::Refused),
        }
        self.write(metadata, &records, &authority).ok()
    }

    fn write(
        &self,
        metadata: Metadata,
        records: &[Record],
        authority: &[Record],
    ) -> Result<Vec<u8>, ProtoError> {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM);
        // A client without EDNS must not get EDNS.
        let edns = self.request.edns.as_ref().map(|_| &edns);
        let response = MessageResponseBuilder::new(&self.request.queries, edns);
        let mut bytes = Vec::with_capacity(usize::from(MIN_DATAGRAM));
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(self.max_length());
        response.build(metadata, records, [], authority, []).destructive_emit(&mut encoder)?;
        Ok(bytes)
    }

    /// Returns the same question with a random id. Nothing else of the guest's message is forwarded.
    pub(super) fn upstream_query(&self) -> Option<Vec<u8>> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.request.metadata.checking_disabled;
        message.add_query(self.request.queries.queries().first()?.original().clone());
        if let Some(theirs) = &self.request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(self.max_length().min(MAX_DATAGRAM)).set_dnssec_ok(theirs.flags().dnssec_ok);
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }
}

/// Returns whether `reply` answers our question: same id, same question.
pub(super) fn answers(reply: &[u8], asked: &[u8]) -> bool {
    let question = HEADER..question_end(asked).unwrap_or(usize::MAX);
    let (Some(ours), Some(theirs)) = (asked.get(question.clone()), reply.get(question)) else { return false };
    reply[..2] == asked[..2]
        && reply[2] & FLAG_RESPONSE != 0
        && reply[4..6] == [0, 1]
        && theirs.eq_ignore_ascii_case(ours)
}

/// Returns where the only question of a message that we wrote ends.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            // The root label, then type and class.
            0 => return Some(at + 1 + 4),
            length => at += 1 + length,
        }
    }
}

fn content(subnet: Subnet, data: &Data) -> Result<RData, ProtoError> {
    Ok(match data {
        Data::A(address) => RData::A(A(*address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
        Data::Ptr(name) => RData::PTR(PTR(absolute(name)?)),
        Data::Soa(zone) => soa(subnet, *zone)?.data,
        Data::Ns => RData::NS(NS(absolute(DOMAIN)?)),
    })
}

/// Returns the SOA record, which also says how long a negative answer may be cached.
fn soa(subnet: Subnet, zone: Zone) -> Result<Record, ProtoError> {
    let name = match zone {
        Zone::Names => DOMAIN.to_owned(),
        Zone::Reverse4 => reverse::zone4(subnet),
        Zone::Reverse6 => reverse::zone6(subnet),
    };
    let (server, mailbox) = (absolute(DOMAIN)?, absolute(&format!("nobody.{DOMAIN}"))?);
    let soa = SOA::new(server, mailbox, 1, REFRESH, REFRESH, REFRESH, NEGATIVE_TTL);
    Ok(Record::from_rdata(absolute(&name)?, TTL, RData::SOA(soa)))
}

fn absolute(name: &str) -> Result<Name, ProtoError> {
    Name::from_ascii(format!("{name}."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hickory_server::proto::op::{MessageType, Query};
    use proptest::prelude::*;

    use super::*;

    fn from() -> SocketAddr {
        "172.30.0.2:4000".parse().unwrap()
    }

    fn question(name: &str, kind: RecordType) -> Question {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        match read(&message.to_vec().unwrap(), from(), Protocol::Udp) {
            Received::Question(question) => *question,
            _ => panic!("{name} is no question"),
        }
    }

    fn code(heard: Received) -> Option<ResponseCode> {
        match heard {
            Received::Wrong(bytes) => Some(Message::from_vec(&bytes).unwrap().metadata.response_code),
            Received::Question(_) | Received::Noise => None,
        }
    }

    #[test]
    fn the_case_of_a_name_does_not_matter_and_comes_back() {
        let question = question("WeB.Vm.", RecordType::A);
        assert_eq!(question.labels(), [b"web".as_slice(), b"vm"]);
        let subnet = "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap();
        let answer = Answer::Records(vec![Data::A("172.30.0.2".parse().unwrap())]);
        let reply = Message::from_vec(&question.authoritative(subnet, &answer).unwrap()).unwrap();
        assert_eq!(reply.answers[0].name.to_ascii(), "WeB.Vm.");
        assert_eq!((reply.answers[0].ttl, reply.metadata.authoritative), (TTL, true));
        assert_eq!(reply.metadata.message_type, MessageType::Response);
    }

    #[test]
    fn a_message_without_a_single_question_is_rejected_cheaply() {
        let header = |flags: u8, counts: [u8; 8]| {
            let mut bytes = vec![1, 2, flags, 0];
            bytes.extend(counts);
            code(read(&bytes, from(), Protocol::Udp))
        };
        let form = Some(ResponseCode::FormErr);
        assert_eq!(header(0, [0xff, 0xff, 0, 0, 0, 0, 0, 0]), form);
        assert_eq!(header(0, [0, 0, 0, 0, 0, 0, 0, 0]), form);
        assert_eq!(header(0, [0, 1, 0, 0, 0, 0, 0, 0]), form, "the question is missing");
        assert_eq!(header(0, [0, 1, 0xff, 0xff, 0, 0, 0, 0]), form);
        assert_eq!(header(0, [0, 1, 0, 0, 0, 0, 0, 3]), form);
        assert_eq!(header(5 << 3, [0, 1, 0, 0, 0, 0, 0, 0]), Some(ResponseCode::NotImp), "an update");
        assert_eq!(header(0x80, [0, 1, 0, 0, 0, 0, 0, 0]), None, "an answer is not answered");
        assert!(matches!(read(&[0; 11], from(), Protocol::Udp), Received::Noise));
    }

    #[test]
    fn only_the_answer_to_our_question_counts() {
        let asked = question("example.org.", RecordType::A).upstream_query().unwrap();
        let mut reply = asked.clone();
        reply[2] |= FLAG_RESPONSE;
        assert!(answers(&reply, &asked));
        let wrong = |change: fn(&mut Vec<u8>)| {
            let mut wrong = reply.clone();
            change(&mut wrong);
            assert!(!answers(&wrong, &asked), "{wrong:?}");
        };
        wrong(|reply| reply[0] ^= 1);
        wrong(|reply| reply[2] ^= FLAG_RESPONSE);
        wrong(|reply| reply[5] = 0);
        wrong(|reply| reply[14] = b'!');
        wrong(|reply| reply.truncate(20));
        wrong(Vec::clear);
    }

    #[test]
    fn only_the_question_of_a_guest_is_forwarded() {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A));
        let mut edns = Edns::new();
        edns.set_max_payload(65000).set_dnssec_ok(true);
        edns.options_mut()
            .insert(hickory_server::proto::rr::rdata::opt::EdnsOption::Unknown(65001, vec![7; 40]));
        message.set_edns(edns);
        let Received::Question(question) = read(&message.to_vec().unwrap(), from(), Protocol::Udp) else {
            panic!("it is a question");
        };
        let upstream_query = Message::from_vec(&question.upstream_query().unwrap()).unwrap();
        let edns = upstream_query.edns.unwrap();
        assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (MAX_DATAGRAM, true));
        assert!(edns.options().as_ref().is_empty(), "an option of the guest's went on");
        assert_eq!(question.max_length(), MAX_DATAGRAM);
    }

    proptest! {
        #[test]
        fn garbage_is_never_answered_with_more(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Received::Wrong(answer) = read(&bytes, from(), Protocol::Udp) {
                prop_assert!(answer.len() <= bytes.len());
            }
        }
    }
}
