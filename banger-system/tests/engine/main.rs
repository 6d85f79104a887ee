//! The engine on a host in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod boot_config;
mod catalog;
mod commit;
mod disks;
mod engine_lab;
#[path = "../entries/mod.rs"]
mod entries;
mod fork;
mod fork_running;
mod history;
mod host_kernel;
mod idle;
mod journal;
mod killpoints;
mod machines;
mod metrics;
mod network;
mod panics;
mod pause;
mod pull;
mod queue;
mod reboot;
mod recovery;
mod repair;
mod restart;
mod sharing;
mod snapshot;
mod steps;
mod streams;
mod suspend;
mod tags;
mod templates;
mod wake;
