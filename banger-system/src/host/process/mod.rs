//! Processes that the service starts and does not trust, as units of systemd or, without it, as plain processes.
//!
//! Those of sandboxes outlive the service: a supervisor starts a VMM by way of the shim and finds it again. Import workers
//! end with their work. What a VMM writes ends up in logs that clients follow.

mod changes;
pub mod descriptor_store;
pub mod logs;
pub mod machined;
mod shim;
pub mod supervisor_process;
pub mod supervisor_systemd;
mod units;
mod usage;
pub mod worker;
pub mod worker_process;
pub mod worker_systemd;
