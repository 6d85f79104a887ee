//! The D-Bus API on a real bus.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod authority;
mod calls;
mod crowd;
mod egress;
#[path = "../entries/mod.rs"]
mod entries;
mod floods;
mod fork;
mod journal;
mod lifetime;
mod log_control;
mod matrix;
mod metrics;
mod notify;
#[path = "../private_bus/mod.rs"]
mod private_bus;
mod pull;
mod restart;
mod signals;
#[path = "../skip/mod.rs"]
mod skip;
