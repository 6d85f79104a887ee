//! Hosts that are reached over ssh.
//!
//! The user's own ssh logs in there and runs `banger remote-proxy` ([`serve`]), so the user at the remote end is the
//! caller of the service, and polkit decides there. One connection of ssh ([`ssh`]) carries any number of channels:
//!
//! ```text
//!                    ┌── channel: the bus ───────── banger remote-proxy ── system bus ──┐
//! banger ── ssh ═════╪══ channel: OpenAgent … ═════ banger remote-proxy ════════════════╪═ banger-system
//!                    └── channel: ImportImage … ─── banger remote-proxy ────────────────┘
//! ```
//!
//! All calls go over the first channel, except those that pass descriptors ([`passing`]), which no connection of ssh can
//! carry. Each of these has a channel of its own: the remote end makes the call, and what a descriptor refers to flows
//! through the channel ([`wire`]). A stream that the service opens becomes the channel itself; a file that the service
//! reads is sent first; a file that it fills is sent back. So the rest of this program has descriptors, as with the local
//! service.
//!
//! What a remote host says of its objects is checked ([`trust`]), because it becomes arguments and names of files here.
//!
//! [`choice`] says which host is used, and [`contexts`] keeps names for hosts.

pub mod choice;
pub mod client;
pub mod contexts;
pub mod error;
pub mod passing;
pub mod serve;
pub mod server;
mod ssh;
pub mod trust;
mod wire;

pub use choice::chosen;
