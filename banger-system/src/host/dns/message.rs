//! Messages of DNS (RFC 1035 and 6891): questions read, answers written. The crate hickory-server does both;
//! what it would spend too much on is turned away before.

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

/// The longest question that is looked at. The longest one of a name and a few options is half of it.
pub(super) const MAX_QUESTION: usize = 1024;
/// What we send in one datagram at most: it passes every link in one piece (DNS flag day 2020).
const MAX_DATAGRAM: u16 = 1232;
/// What every client takes in one datagram.
const MIN_DATAGRAM: u16 = 512;
const HEADER: usize = 12;
const FLAG_RESPONSE: u8 = 0x80;
/// Options of a question: those of RFC 6891, and a signature.
const MAX_ADDITIONALS: u16 = 2;
/// Seconds; nobody copies the zone, so they mean nothing.
const REFRESH: i32 = 3600;

/// A question that can be understood.
pub(super) struct Question {
    request: Request,
}

/// What came.
pub(super) enum Heard {
    /// A question.
    Question(Box<Question>),
    /// Something that gets this answer at once.
    Wrong(Vec<u8>),
    /// Nothing to answer.
    Noise,
}

/// Reads what came. An answer to what is wrong is never longer than that was.
pub(super) fn read(bytes: &[u8], from: SocketAddr, protocol: Protocol) -> Heard {
    if bytes.len() < HEADER || bytes[2] & FLAG_RESPONSE != 0 {
        return Heard::Noise;
    }
    let count = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let id = count(0);
    let wrong = |op_code, code| {
        let message = Message::error_msg(id, op_code, code).to_vec();
        message.map_or(Heard::Noise, Heard::Wrong)
    };
    let op_code = OpCode::from_u8(bytes[2] >> 3 & 15);
    if op_code != OpCode::Query {
        return wrong(op_code, ResponseCode::NotImp);
    }
    // The decoder takes memory for as many as are announced.
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > MAX_ADDITIONALS {
        return wrong(op_code, ResponseCode::FormErr);
    }
    match Request::from_bytes(bytes.to_vec(), from, protocol) {
        Ok(request) if request.queries.len() == 1 => Heard::Question(Box::new(Question { request })),
        _ => wrong(op_code, ResponseCode::FormErr),
    }
}

impl Question {
    /// The labels of the name, in lower case.
    pub(super) fn labels(&self) -> Vec<&[u8]> {
        self.request.queries.queries().iter().flat_map(|query| (**query.name()).iter()).collect()
    }

    /// The kind of records; none when it asks for something that is no record, or for another world's.
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
            // Whole zones are for nobody.
            RecordType::AXFR | RecordType::IXFR => return None,
            _ => Kind::Other,
        })
    }

    /// Whether it uses an unknown version of the extensions.
    pub(super) fn is_from_the_future(&self) -> bool {
        self.request.version() > 0
    }

    /// Whether the answer goes into a datagram.
    pub(super) fn is_datagram(&self) -> bool {
        self.request.protocol() == Protocol::Udp
    }

    /// How long the answer may be.
    pub(super) fn room(&self) -> u16 {
        match self.is_datagram() {
            true => self.request.max_payload().clamp(MIN_DATAGRAM, MAX_DATAGRAM),
            false => u16::MAX,
        }
    }

    /// The number that the answer must have.
    pub(super) fn id(&self) -> u16 {
        self.request.metadata.id
    }

    /// An answer of this code and nothing else.
    pub(super) fn bare(&self, code: ResponseCode) -> Option<Vec<u8>> {
        let mut metadata = Metadata::response_from_request(&self.request.metadata);
        metadata.response_code = code;
        self.write(metadata, &[], &[]).ok()
    }

    /// The answer that does not fit: the client asks again over a connection.
    pub(super) fn truncated(&self) -> Option<Vec<u8>> {
        let mut metadata = Metadata::response_from_request(&self.request.metadata);
        metadata.truncation = true;
        metadata.recursion_available = true;
        self.write(metadata, &[], &[]).ok()
    }

    /// What our zones say.
    pub(super) fn own(&self, subnet: Subnet, answer: &Answer) -> Option<Vec<u8>> {
        let mut metadata = Metadata::response_from_request(&self.request.metadata);
        metadata.authoritative = true;
        let (mut records, mut authority) = (Vec::new(), Vec::new());
        match answer {
            Answer::Records(all) => {
                let name = &self.request.queries.queries().first()?.original().name;
                for data in all {
                    records.push(Record::from_rdata(name.clone(), TTL, content(subnet, data).ok()?));
                }
            }
            Answer::NoData(zone) => authority.push(start_of(subnet, *zone).ok()?),
            Answer::NoName(zone) => {
                metadata.response_code = ResponseCode::NXDomain;
                authority.push(start_of(subnet, *zone).ok()?);
            }
            Answer::NotOurs => return self.bare(ResponseCode::Refused),
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
        // Who does not know the extensions must not see one.
        let edns = self.request.edns.as_ref().map(|_| &edns);
        let response = MessageResponseBuilder::new(&self.request.queries, edns);
        let mut bytes = Vec::with_capacity(usize::from(MIN_DATAGRAM));
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(self.room());
        response.build(metadata, records, [], authority, []).destructive_emit(&mut encoder)?;
        Ok(bytes)
    }

    /// The same question in our own words, with a number that nobody can guess: what else the guest put into
    /// its message stays here.
    pub(super) fn retold(&self) -> Option<Vec<u8>> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.request.metadata.checking_disabled;
        message.add_query(self.request.queries.queries().first()?.original().clone());
        if let Some(theirs) = &self.request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(self.room().min(MAX_DATAGRAM)).set_dnssec_ok(theirs.flags().dnssec_ok);
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }
}

/// Whether `reply` is an answer to what we asked: same number, same question.
pub(super) fn answers(reply: &[u8], asked: &[u8]) -> bool {
    let question = HEADER..question_end(asked).unwrap_or(usize::MAX);
    let (Some(ours), Some(theirs)) = (asked.get(question.clone()), reply.get(question)) else { return false };
    reply[..2] == asked[..2]
        && reply[2] & FLAG_RESPONSE != 0
        && reply[4..6] == [0, 1]
        && theirs.eq_ignore_ascii_case(ours)
}

/// Where the one question of a message that we wrote ends.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            // The root, then type and class.
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
        Data::Soa(zone) => start_of(subnet, *zone)?.data,
        Data::Ns => RData::NS(NS(absolute(DOMAIN)?)),
    })
}

/// The record that says who speaks for a zone, and how long a "no" may be kept.
fn start_of(subnet: Subnet, zone: Zone) -> Result<Record, ProtoError> {
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
            Heard::Question(question) => *question,
            _ => panic!("{name} is no question"),
        }
    }

    fn code(heard: Heard) -> Option<ResponseCode> {
        match heard {
            Heard::Wrong(bytes) => Some(Message::from_vec(&bytes).unwrap().metadata.response_code),
            Heard::Question(_) | Heard::Noise => None,
        }
    }

    #[test]
    fn the_case_of_a_name_does_not_matter_and_comes_back() {
        let question = question("WeB.Vm.", RecordType::A);
        assert_eq!(question.labels(), [b"web".as_slice(), b"vm"]);
        let subnet = "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap();
        let answer = Answer::Records(vec![Data::A("172.30.0.2".parse().unwrap())]);
        let reply = Message::from_vec(&question.own(subnet, &answer).unwrap()).unwrap();
        assert_eq!(reply.answers[0].name.to_ascii(), "WeB.Vm.");
        assert_eq!((reply.answers[0].ttl, reply.metadata.authoritative), (TTL, true));
        assert_eq!(reply.metadata.message_type, MessageType::Response);
    }

    #[test]
    fn what_is_no_single_question_is_turned_away_before_it_costs_anything() {
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
        assert!(matches!(read(&[0; 11], from(), Protocol::Udp), Heard::Noise));
    }

    #[test]
    fn only_the_answer_to_our_question_counts() {
        let asked = question("example.org.", RecordType::A).retold().unwrap();
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
    fn nothing_but_the_question_of_a_guest_goes_on() {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A));
        let mut edns = Edns::new();
        edns.set_max_payload(65000).set_dnssec_ok(true);
        edns.options_mut()
            .insert(hickory_server::proto::rr::rdata::opt::EdnsOption::Unknown(65001, vec![7; 40]));
        message.set_edns(edns);
        let Heard::Question(question) = read(&message.to_vec().unwrap(), from(), Protocol::Udp) else {
            panic!("it is a question");
        };
        let retold = Message::from_vec(&question.retold().unwrap()).unwrap();
        let edns = retold.edns.unwrap();
        assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (MAX_DATAGRAM, true));
        assert!(edns.options().as_ref().is_empty(), "an option of the guest's went on");
        assert_eq!(question.room(), MAX_DATAGRAM);
    }

    proptest! {
        #[test]
        fn garbage_is_never_answered_with_more(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Heard::Wrong(answer) = read(&bytes, from(), Protocol::Udp) {
                prop_assert!(answer.len() <= bytes.len());
            }
        }
    }
}
