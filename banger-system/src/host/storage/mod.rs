//! Files and block devices: the disks of sandboxes, the files of images and kernels.
//!
//! A file appears whole or not at all ([`partial`]), and so does a directory ([`staging`]). A system disk is a
//! snapshot of its image by device mapper ([`mapper`]), or a file ([`disks`]).

pub mod captures;
pub mod disks;
mod host_kernel;
pub mod image_files;
pub mod kernel_files;
mod layers;
pub mod mapper;
pub(in crate::host) mod partial;
pub(in crate::host) mod sparse;
mod staging;
pub mod templates;
mod write_behind;
