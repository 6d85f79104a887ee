//! The guest protocol: what the host and the agent inside a guest say to each other.
//!
//! A stream begins with a greeting of fixed length ([`hello`]) in which the host shows a token that only
//! it and this boot's agent know. Then the host sends one [`Request`] and the two exchange [`Frame`]s until
//! the request is served. A stream serves one request.
//!
//! Neither side trusts the other: every length is bounded before anything is allocated for it.

pub mod config;
pub mod facts;
pub mod frame;
pub mod hello;
pub mod listing;
pub mod message;

pub use config::GuestConfig;
pub use frame::{Decoder, Frame};
pub use message::{Exec, Failure, FailureKind, GuestInfo, Request, Terminal};

/// The version of this protocol. Agent and service are of one package, and yet a guest that was started
/// before an upgrade has the agent of then: a version is served as long as guests of it may be up.
pub const VERSION: u16 = 1;

/// The prefix of the names of the agent's channels, which end in a number from 0.
pub const CHANNEL_PREFIX: &str = "dev.banger.";

/// The vsock port on which the agent listens, for the host alone. A connection is a stream.
pub const VSOCK_PORT: u32 = 1024;

/// A word of the kernel's command line: the monitor ends when the machine is reset, and has no power switch.
pub const OFF_BY_RESET: &str = "banger.off=reset";

/// What the agent writes to the kernel's log before it resets a machine in order to power it off: the host then knows
/// that from a reboot.
pub const POWER_OFF_MARK: &str = "powering off by a reset";

/// Standard input that the host may send before the agent has said that it was read. Within it the agent
/// buffers, so that a signal never stands behind input that the command does not read.
pub const STDIN_WINDOW: u32 = 256 << 10;
