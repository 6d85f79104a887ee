//! The root service of banger: it owns the sandboxes, images and kernels of every user, and serves
//! `dev.banger.Manager1` on the system bus.
//!
//! Layers, from the inside: [`domain`] decides, [`ports`] say what is needed of a host, the engine
//! orchestrates, adapters act, the bus edge authorises and translates.

pub mod app;
pub mod bus;
pub mod config;
pub mod domain;
pub mod engine;
pub mod host;
pub mod importer;
pub mod ports;
pub mod shim;
pub mod sim;
