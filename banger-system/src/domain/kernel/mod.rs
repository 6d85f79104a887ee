//! From what a distribution ships (`vmlinuz`, `/lib/modules/<release>`) to what a guest boots: an ELF
//! `vmlinux` and an initramfs. Bytes in, bytes out; every input is taken for hostile, so each step is
//! bounded and none panics.
//!
//! - [`extract`]: the ELF kernel out of a `vmlinuz`, and the facts about it.
//! - [`tree`]: a tar of a modules tree, read by name.
//! - [`modules`]: the modules that a guest needs, in load order.
//! - [`initramfs`]: the three archives of the boot contract.

mod bzimage;
pub mod cpio;
pub mod decompress;
mod elf;
pub mod extract;
pub mod initramfs;
pub mod modules;
pub mod release;
pub mod tree;

#[cfg(test)]
pub(crate) mod fixture;
