//! Names of guests: which name each has, and who may see it. `docs/network.md` describes how the parts fit together.

pub mod label;
pub mod limits;
pub mod question;
pub mod reverse;
pub mod table;

/// The domain of all guests. It is not a top-level domain of the internet.
pub const DOMAIN: &str = "vm";
/// How long an answer may be cached, in seconds: a sandbox that is gone is soon forgotten.
pub const TTL: u32 = 5;
/// How long an answer for a restricted guest may be cached, in seconds: the packet filter forgets its addresses later.
pub const RESTRICTED_TTL: u32 = 60;
/// How long a negative answer may be cached, in seconds: somebody may be waiting for the sandbox to start.
pub const NEGATIVE_TTL: u32 = 1;
/// The port of DNS.
pub const PORT: u16 = 53;
