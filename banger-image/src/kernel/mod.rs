//! From what a distribution ships (`vmlinuz`, `/lib/modules/<release>`) to what a guest boots: an ELF
//! `vmlinux` or an arm64 `Image`, and an initramfs. Bytes in, bytes out; every input is taken for hostile, so each step is
//! bounded and none panics.
//!
//! - [`extract`]: the kernel out of a `vmlinuz`, and the facts about it.
//! - [`drivers`]: what a kernel without modules must have built in.
//! - [`tree`]: a tar of a modules tree, read by name.
//! - [`modules`]: the modules that a guest needs, in load order.
//! - [`depmod`]: the tables by which `modprobe` finds all the others.
//! - [`initramfs`]: the three archives of the boot contract.

mod arm64_image;
mod bzimage;
pub mod cpio;
pub mod decompress;
pub mod depmod;
pub mod drivers;
mod elf;
pub mod extract;
pub mod initramfs;
pub mod module_file;
pub mod modules;
pub mod release;
pub mod tree;
mod trie;
mod zboot;
