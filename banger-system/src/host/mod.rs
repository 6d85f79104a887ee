//! The ports on Linux: the only home of system calls, of files and of other people's programs.

pub mod authority;
mod blocking;
pub mod clock;
pub mod disks;
mod ext4_writer;
mod fd;
pub mod guest_link;
pub mod image_files;
pub mod kernel_files;
pub mod logs;
pub mod mapper;
mod partial;
mod pulse;
pub mod qemu;
pub mod ring;
mod shim;
mod sparse;
mod staging;
pub mod store;
pub mod supervisor_process;
pub mod supervisor_systemd;
pub mod users;
