//! What goes to a running guest: the guest protocol ([`link`]), its clock, and the streams that clients have open.

mod boot_config;
mod capture;
mod clock;
pub mod link;
pub mod streams;
mod usage;
