//! The ports on Linux: the only home of system calls, of files and of other people's programs.

mod blocking;
pub mod clock;
pub mod disks;
mod ext4_writer;
mod fd;
pub mod image_files;
pub mod kernel_files;
mod partial;
mod pulse;
mod sparse;
mod staging;
pub mod store;
