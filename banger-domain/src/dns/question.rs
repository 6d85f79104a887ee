//! What is asked, and what is answered.

use core::net::{Ipv4Addr, Ipv6Addr};

/// The kind of records that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// The name of an address.
    Ptr,
    /// What the zone is.
    Soa,
    /// Who serves the zone.
    Ns,
    /// Whatever there is.
    Any,
    /// Something that no name in the zone has.
    Other,
}

/// A zone that we speak for.
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
    /// banger serves the zone.
    Soa(Zone),
    /// We serve the zone.
    Ns,
}

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These records, one or more.
    Records(Vec<Data>),
    /// The name is there, and has no such records.
    NoData(Zone),
    /// There is no such name in this zone, or the asker may not know it.
    NoName(Zone),
    /// The name is in no zone that banger serves.
    NotOurs,
}
