//! What banger decides, as values: ids and names, the states of a sandbox, its resources and their names on the host,
//! networks, the table of names, limits.
//!
//! It has no async, no files, no clock, no network and no bus: what can be decided before the host is touched is
//! decided here, and tested without a host. The engine of the service uses it; so does [banger-image], which knows
//! images by the same ids, names and digests. It reads nothing that a stranger packed or compressed: that is
//! banger-image's part.
//!
//! [banger-image]: ../banger_image/index.html

#![forbid(unsafe_code)]

pub mod architecture;
pub mod clock;
pub mod digest;
pub mod dns;
pub mod egress;
pub mod fair_queue;
pub mod guest_end;
pub mod id;
pub mod idle;
pub mod launch_spec;
pub mod lifecycle;
pub mod limits;
pub mod name;
pub mod net;
pub mod resource;
pub mod restart;
pub mod ssh;
pub mod stream;
pub mod timezone;
pub mod vm;
pub mod vmm;
