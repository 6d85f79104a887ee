//! One adapter at a time on the real kernel.
#![allow(clippy::unwrap_used, missing_docs)]

mod arm64;
mod catalogs;
mod clock;
mod disks;
mod dns;
mod egress;
mod firecracker;
mod fork_running;
mod images;
mod import;
mod import_as_tar;
mod layers;
mod mapper;
mod net_lab;
mod network;
#[path = "../private_bus/mod.rs"]
mod private_bus;
mod proxy;
mod publisher;
mod real_host;
mod real_killpoints;
mod records;
mod registry;
mod registry_lab;
mod ruleset;
mod scratch;
#[path = "../skip/mod.rs"]
mod skip;
mod soak;
mod stalled;
mod store;
mod supervisor;
mod suspend;
mod tars;
mod template;
