//! The first process of a VMM's unit. It is given the VMM's arguments and files over a socket, its
//! standard input; it starts the VMM with exactly these, and copies the VMM's output into logs of
//! fixed size. It lives as long as the VMM and can do nothing else.

pub mod filter;
pub mod message;
pub mod proof;
mod run;
pub mod walls;

pub use run::run;
