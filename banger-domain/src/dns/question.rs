//! Questions of the name server, and their answers.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::id::VmId;

/// The type of a record that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// The name of an address.
    Ptr,
    /// The start of authority.
    Soa,
    /// The name server of the zone.
    Ns,
    /// All types.
    Any,
    /// A type that no name in our zones has.
    Other,
}

/// A zone that banger serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// The names of guests.
    Names,
    /// The IPv4 addresses of guests.
    Reverse4,
    /// The IPv6 addresses of guests.
    Reverse6,
}

/// One record's content. Its owner is the name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// The name of an address, without the last dot.
    Ptr(String),
    /// The start of authority of this zone.
    Soa(Zone),
    /// The name server, which is banger.
    Ns,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These records, at least one.
    Records(Vec<Data>),
    /// These addresses, once this suspended sandbox runs.
    Asleep(VmId, Vec<Data>),
    /// The name exists but has no such record.
    NoData(Zone),
    /// There is no such name in this zone, or the client may not know it.
    NoName(Zone),
    /// The name is in no zone that banger serves.
    NotOurs,
}
