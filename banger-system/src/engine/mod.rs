//! The engine: one task per machine, provisioning under a lease, jobs, recovery. It knows the host only
//! through the ports.

pub mod error;
pub mod request;
pub mod view;
