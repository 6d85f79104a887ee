//! The contracts between the parts of banger. This crate does no I/O.
//!
//! - [`bus`]: what `banger-system` and its clients say to each other on D-Bus.
//! - [`bundle`]: what an image in a file says of itself.
//! - [`guest`]: what the host and the agent inside a guest say to each other.
//! - [`size`]: the one parser and printer of sizes.

pub mod bundle;
pub mod bus;
pub mod guest;
pub mod size;
