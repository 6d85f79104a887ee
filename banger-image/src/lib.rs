//! Reads hostile input: archives, kernels, and the documents of registries and catalogs. Writes file systems.
//!
//! Every byte that this crate reads may come from an attacker. A user can register any file as an image, a registry
//! can send anything, and a kernel can be crafted to break its parser. So each reader has limits, no reader panics,
//! and unknown input is refused with a reason. The fuzz targets in `fuzz/` test each of them.
//!
//! ```text
//!                 banger-system (root)                          banger-import (a user of its own, locked down)
//!
//!   registry ───► oci       a reference, manifests ──┐
//!   catalog ────► catalog   signed indexes           ├─ order ─► importer ─► rootfs   tar, the tree of all layers
//!   user ───────► (a descriptor, which is not read) ─┘   files     │            │
//!                                                                  │            ▼
//!   image store ◄──────────── an ext4 file system ◄────────────────┴──────── mkext4
//!
//!   copy of a kernel ─► kernel   an ELF kernel, the modules of the initramfs
//! ```
//!
//! The content of images is unpacked by the program `banger-import` alone ([`importer`]), which runs as a user of its
//! own, with no network and no right to open a file, and which [`banger_jail`] confines. The service itself parses
//! only small documents ([`oci`], [`catalog`]) and its own copies of kernels ([`kernel`]), all of limited size.
//!
//! | module | reads | writes |
//! |---|---|---|
//! | [`rootfs`] | tar archives and layers | a tree of names, tar headers |
//! | [`archive`] | images that other programs saved in files | |
//! | [`oci`] | references, manifests, configurations, credentials | OCI layouts |
//! | [`catalog`] | signed indexes, and the locations in them | |
//! | [`installed`] | the names of installed kernels, directories of modules | tar archives |
//! | [`kernel`] | `vmlinuz`, ELF, modules | initramfs archives, the tables of depmod |
//! | [`ext4`], [`ext4_writer`] | the superblock | empty file systems |
//! | [`qcow2`], [`qcow2_reader`] | overlays that a VMM has written | empty overlays |
//! | [`record`] | | what the service keeps of each image and kernel |
//!
//! It may not have a runtime, a bus, a database or a client of the network, directly or by way of another crate: to
//! review the worker is to read this crate, what it uses of [`banger_domain`] and [`banger_jail`], and the decoders
//! in `Cargo.toml`. `banger-system/tests/architecture.rs` checks that.

#![forbid(unsafe_code)]

pub mod archive;
pub mod catalog;
pub mod ext4;
pub mod ext4_writer;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod holes;
pub mod importer;
#[cfg(test)]
mod inputs;
pub mod installed;
pub mod kernel;
pub mod oci;
pub mod packing;
pub mod qcow2;
pub mod qcow2_reader;
pub mod record;
pub mod rootfs;
mod unusable;
