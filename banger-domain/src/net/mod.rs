//! The network of guests, as values: the addresses, who has which, and the content of the kernel's
//! packet filter. `docs/network.md` describes how it fits together.
//!
//! Every guest has a TAP of its own and is routed: there is no bridge, so guests share no link on which
//! one could listen to another or answer in its name.

pub mod element;
pub mod nic;
pub mod port;
pub mod prefix;
pub mod ruleset;
pub mod subnet;

/// The link that holds the host's address among the guests.
pub const LINK: &str = "banger0";
/// The other end of [`LINK`], where the kernel has no dummy links and a pair of virtual Ethernet links
/// stands in.
pub const LINK_PEER: &str = "banger0-peer";
/// What marks a link as ours, in its alias.
pub const LINK_ALIAS: &str = "banger";
/// The table in the kernel's packet filter, of the family `inet`.
pub const TABLE: &str = "banger";
/// The protocol number of our routes: nobody's in `/etc/iproute2/rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 98;
