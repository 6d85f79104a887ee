//! The traits through which the engine uses a host. `host` implements them on Linux, `sim` in memory.
//!
//! Rules that hold for all of them:
//!
//! - A method that creates something has a counterpart that removes it. Removing what is already gone is success, so
//!   that every removal may be repeated.
//! - A method that failed half-way leaves nothing that its counterpart cannot remove. The caller always calls it then.
//! - `found` lists what exists on the host, from this or an earlier run of the service. Recovery compares it with the
//!   ledger.
//! - Sizes are `Bytes`, times are `Duration`. A method without a `timeout` argument bounds its own waits, unless it
//!   says that it waits without limit.
//! - Each port has its own `Error`, with the failures that its callers can tell apart. What any call to the host can
//!   fail with is [`HostError`]; what can be wrong with a file, and nothing else, is [`FileError`].

pub mod authority;
pub mod captures;
pub mod catalogs;
mod check;
pub mod clock;
pub mod disks;
mod file_error;
pub mod guest_link;
pub mod host_boot;
pub mod host_error;
pub mod image_files;
pub mod kernel_files;
pub mod logs;
pub mod machines;
pub mod names;
pub mod network;
mod progress;
pub mod registry;
pub mod store;
pub mod streams;
pub mod supervisor;
pub mod templates;
pub mod users;
pub mod vmm;
pub mod wake;

use std::sync::Arc;

use self::{
    authority::Authority, captures::Captures, catalogs::Catalogs, clock::Clock, disks::Disks,
    guest_link::GuestLink, host_boot::HostBoot, image_files::ImageFiles, kernel_files::KernelFiles,
    logs::Logs, machines::Machines, names::Names, network::Network, registry::Registry, store::Store,
    streams::Streams, supervisor::Supervisor, templates::Templates, users::Users, vmm::Vmm,
};
pub use self::{
    check::{Check, Status},
    file_error::FileError,
    host_error::{FromHost, HostError},
    progress::{NoProgress, Progress},
};

/// All ports of a host.
#[derive(Clone)]
#[allow(missing_docs, reason = "each is named after its trait")]
pub struct Ports {
    pub authority: Arc<dyn Authority>,
    pub captures: Arc<dyn Captures>,
    pub catalogs: Arc<dyn Catalogs>,
    pub clock: Arc<dyn Clock>,
    pub disks: Arc<dyn Disks>,
    pub guest: Arc<dyn GuestLink>,
    pub host_boot: Arc<dyn HostBoot>,
    pub image_files: Arc<dyn ImageFiles>,
    pub kernel_files: Arc<dyn KernelFiles>,
    pub logs: Arc<dyn Logs>,
    pub machines: Arc<dyn Machines>,
    pub names: Arc<dyn Names>,
    pub network: Arc<dyn Network>,
    pub registry: Arc<dyn Registry>,
    pub store: Arc<dyn Store>,
    pub streams: Arc<dyn Streams>,
    pub supervisor: Arc<dyn Supervisor>,
    pub templates: Arc<dyn Templates>,
    pub users: Arc<dyn Users>,
    pub vmm: Arc<dyn Vmm>,
}
