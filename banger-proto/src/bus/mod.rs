//! What `banger-system` and its clients say to each other on the system bus: names, error names, the
//! structures of list replies, option keys, and client proxies.
//!
//! The XML of the interfaces stands in `dbus/interfaces/` and is compared with the service by a test.

pub mod error;
pub mod names;
pub mod option;
#[cfg(feature = "bus")]
pub mod proxy;
#[cfg(feature = "bus")]
pub mod record;

pub use error::ErrorName;
