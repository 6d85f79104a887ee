//! The client of the agent in a sandbox. The service hands out a stream to the agent, and is not involved in what goes
//! over it.
//!
//! [`attach`] runs a command with the caller's terminal. [`relay`] passes the bytes of connections. [`agent`] has all
//! other requests, such as file transfers.

pub mod agent;
pub mod attach;
pub mod files;
pub mod relay;
pub mod terminfo;
