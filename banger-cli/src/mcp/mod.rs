//! A server of the Model Context Protocol on standard input and output, for coding agents.
//!
//! ```text
//!   agent ══ stdio ══ transport ── server ── tool ──┬── client   (the service, over D-Bus)
//!                     bounded      one task         └── guest    (the agent in a sandbox)
//!                                  for each call
//! ```
//!
//! The server has no rights of its own: it is a client of the service like any other command, and what it may do is
//! decided by the user that runs it. [`policy`] narrows that further, as the options of `banger mcp` say.
//!
//! A tool is one type in [`tool`]: its fields are the arguments, with their descriptions, and `run` does the work with
//! the same code as the command of that name. [`server`] parses the arguments, counts the calls, and passes a
//! cancellation on as the signal that would interrupt the command. Errors become results with a code, the causes and the
//! hint ([`failure`]).
//!
//! Everything that a client can ask for is bounded: calls at once and calls that wait ([`server`]), requests and replies
//! that it does not read ([`transport`]), output ([`capture`]), time, files ([`host_dir`]), and sandboxes ([`policy`]).
//! Sandboxes made with `ephemeral` belong to the server's connection to the bus: the service deletes them when the
//! server ends, even if it is killed.

mod capture;
pub mod egress_bound;
mod failure;
mod host_dir;
pub mod policy;
mod server;
mod tool;
mod transport;

pub use host_dir::HostDir;
pub use server::serve;
