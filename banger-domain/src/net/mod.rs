//! The network of guests as values: addresses, who has which, and the content of the packet filter. `docs/network.md`
//! describes how the parts fit together.
//!
//! Every guest has a TAP of its own and is routed. There is no bridge, so guests share no link on which one could
//! listen to another or impersonate it.

pub mod element;
pub mod nic;
pub mod port;
pub mod prefix;
pub mod ruleset;
pub mod subnet;

/// The link that holds the host's address among the guests.
pub const LINK: &str = "banger0";
/// The other end of [`LINK`] on kernels without dummy links, where a pair of virtual Ethernet links is used instead.
pub const LINK_PEER: &str = "banger0-peer";
/// The alias of links that belong to banger.
pub const LINK_ALIAS: &str = "banger";
/// The table in the kernel's packet filter, of the family `inet`.
pub const TABLE: &str = "banger";
/// The protocol number of our routes. No entry of `/etc/iproute2/rt_protos` has it.
pub const ROUTE_PROTOCOL: u8 = 98;
