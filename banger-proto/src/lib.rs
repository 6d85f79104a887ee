//! The contracts between the parts of banger. This crate does no I/O.
//!
//! - [`bus`]: the D-Bus API of `banger-system`.
//! - [`bundle`]: annotations of an image in a file.
//! - [`causes`]: an error with its causes, as it is sent and shown.
//! - [`count`]: counts that agree with their noun, for messages.
//! - [`guest`]: the protocol between the host and the agent in a guest.
//! - [`size`]: parsing and printing of sizes.

pub mod bundle;
pub mod bus;
pub mod causes;
pub mod count;
pub mod guest;
pub mod size;
