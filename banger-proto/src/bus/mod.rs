//! The D-Bus API of `banger-system`: names, error names, the structures of list replies, option keys, and client
//! proxies.
//!
//! The XML of the interfaces is in `dbus/interfaces/`; a test compares it with the service.

pub mod error;
pub mod names;
pub mod option;
#[cfg(feature = "bus")]
pub mod proxy;
#[cfg(feature = "bus")]
pub mod record;

pub use error::ErrorName;
