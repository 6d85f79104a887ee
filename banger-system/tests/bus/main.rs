//! The D-Bus API on a real bus.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod authority;
mod calls;
mod crowd;
mod egress;
mod floods;
mod fork;
mod lifetime;
mod log_control;
mod matrix;
mod notify;
#[path = "../private_bus/mod.rs"]
mod private_bus;
mod pull;
mod restart;
mod signals;
#[path = "../skip/mod.rs"]
mod skip;
