//! The names of guests, as values: the name of each, and who may see it. `docs/network.md` describes how
//! it fits together.

pub mod label;
pub mod question;
pub mod reverse;
pub mod table;

/// The domain of all guests. It is no top-level domain of the internet's.
pub const DOMAIN: &str = "vm";
/// How long an answer may be kept, in seconds: a machine that has gone is soon forgotten.
pub const TTL: u32 = 5;
/// How long it may be kept that there is no such name: somebody may be waiting for the machine to start.
pub const NEGATIVE_TTL: u32 = 1;
/// The port of DNS.
pub const PORT: u16 = 53;
