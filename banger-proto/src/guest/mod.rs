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

/// The vsock port on which the agent listens for commands, for the host alone. A connection is a stream.
pub const VSOCK_PORT: u32 = 1024;
/// The port for what the service itself has to say. Each port has bounds of its own, so that the streams of one kind
/// leave room for the others. Agents of guests that were started before an upgrade may only listen on [`VSOCK_PORT`].
pub const VSOCK_SERVICE_PORT: u32 = 1025;
/// The port for questions that are answered at once.
pub const VSOCK_QUESTION_PORT: u32 = 1026;
/// The port for connections that are carried.
pub const VSOCK_CONNECTION_PORT: u32 = 1027;

/// A word of the kernel's command line: the monitor ends when the machine is reset, and has no power switch.
pub const OFF_BY_RESET: &str = "banger.off=reset";

/// What the agent writes to the kernel's log before it resets a machine in order to power it off: the host then knows
/// that from a reboot.
pub const POWER_OFF_MARK: &str = "powering off by a reset";

/// Standard input that the host may send before the agent has said that it was read. Within it the agent
/// buffers, so that a signal never stands behind input that the command does not read.
pub const STDIN_WINDOW: u32 = 256 << 10;
