//! The guest protocol, spoken between the host and the agent in a guest.
//!
//! A stream begins with a greeting of fixed length ([`hello`]), in which the host presents a token that only it and
//! the agent of this boot know. Then the host sends one [`Request`], and both sides exchange [`Frame`]s until the
//! request is served. A stream serves one request.
//!
//! An agent that has not been configured since its kernel started says so in its greeting, whatever the token. It takes
//! one [`BootConfig`] over the control channel, and knows the token from then on.
//!
//! Neither side trusts the other: every length is bounded before anything is allocated for it.

pub mod config;
pub mod facts;
pub mod frame;
pub mod hello;
pub mod listing;
pub mod message;
pub mod mount;
pub mod rejuvenation;
pub mod terminfo;

pub use config::{BootConfig, GuestConfig};
pub use frame::{Decoder, Frame};
pub use message::{Exec, Failure, FailureKind, GuestInfo, Request, Terminal};
pub use rejuvenation::Rejuvenation;

/// The version of this protocol. Agent and service come from one package, but a guest that was started before an
/// upgrade still has the old agent. A version is served as long as guests with it may run.
pub const VERSION: u16 = 1;
/// The newest additions to that version that an agent serves, which it reports in its half of a greeting. 1 has none; 2
/// has freezing, rejuvenation and sessions; 3 has mounts.
pub const REVISION: u16 = 3;
/// The first revision with [`Request::Freeze`], [`Request::Thaw`] and [`Frame::Rejuvenate`].
pub const FREEZE_REVISION: u16 = 2;

/// The prefix of the names of the agent's channels, which end in a number from 0.
pub const CHANNEL_PREFIX: &str = "dev.banger.";

/// The vsock port for commands. Only the host may connect; each connection is a stream.
pub const VSOCK_PORT: u32 = 1024;
/// The port for the service's own requests. Each port has its own limits, so that streams of one kind leave room for
/// others. Agents of guests that were started before an upgrade may only listen on [`VSOCK_PORT`].
pub const VSOCK_SERVICE_PORT: u32 = 1025;
/// The port for requests that are answered at once.
pub const VSOCK_QUESTION_PORT: u32 = 1026;
/// The port for forwarded connections.
pub const VSOCK_CONNECTION_PORT: u32 = 1027;

/// Kernel command line option for VMMs that have no power switch and exit when the guest resets.
pub const OFF_BY_RESET: &str = "banger.off=reset";

/// Text that the agent writes to the kernel log before it powers off by a reset, so that the host can tell it from a
/// reboot.
pub const POWER_OFF_MARK: &str = "powering off by a reset";

/// Bytes of standard input that the host may send before the agent reports that they were read. The agent buffers
/// them, so that a signal never waits behind input that the command does not read.
pub const STDIN_WINDOW: u32 = 256 << 10;
