//! The ports on Linux: the only place for system calls, files and other programs.
//!
//! | folder | what it holds |
//! |---|---|
//! | [`process`] | supervisors of VMMs, import workers, the shim, systemd's units and descriptors, logs |
//! | [`vmm`] | QEMU, Firecracker, and the choice between them |
//! | [`guest`] | the guest protocol, the clocks of guests, open streams |
//! | [`storage`] | disks, device mapper, the files of images and kernels |
//! | [`network`] | interfaces, packet filter, published ports |
//! | [`dns`] | names of guests |
//! | [`registry`] | image registries and the cache of what they send |
//! | [`store`] | the database |
//!
//! Beside them are small adapters of one file each, and [`blocking`], by which all of them leave the async threads.

pub mod authority;
mod blocking;
pub mod catalogs;
pub mod clock;
pub mod dns;
pub mod guest;
pub mod host_boot;
pub mod lock;
mod memory;
pub mod network;
pub mod privileges;
pub mod process;
pub mod programs;
pub mod registry;
pub mod storage;
pub mod store;
pub mod users;
pub mod vmm;
