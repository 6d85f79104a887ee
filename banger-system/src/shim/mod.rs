//! The first process of a machine's unit. It is given the monitor's arguments and files over a socket, its
//! standard input; it starts the monitor with exactly these, and copies what the monitor says into logs of
//! fixed size. It lives as long as the monitor and has no other power.

pub mod filter;
pub mod message;
pub mod proof;
mod run;
pub mod walls;

pub use run::run;
