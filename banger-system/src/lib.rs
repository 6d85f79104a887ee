//! The root service of banger: it owns the sandboxes, images and kernels of every user, and serves
//! `dev.banger.Manager1` on the system bus.
//!
//! Layers, from the inside: [`banger_domain`] decides, [`banger_image`] reads untrusted content, [`ports`] declare
//! what the engine needs from a host, the engine orchestrates, adapters act, the D-Bus API authorises and
//! translates.

pub mod app;
pub mod bus;
pub mod config;
pub mod engine;
pub mod host;
pub mod log;
pub mod ports;
pub mod sim;
pub mod tasks;
