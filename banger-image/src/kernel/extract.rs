//! Extracts the ELF kernel from a distribution's `vmlinuz`.
//!
//! VMMs boot an ELF `vmlinux` directly; distributions ship it compressed in a `bzImage`. A plain ELF file passes
//! unchanged.

use banger_proto::size::Bytes;

use super::{
    bzimage,
    decompress::{self, Compression},
    elf::{self, Elf, Kind},
    release::{self, Release},
};

/// Distribution kernels have 40–80 MiB; this is four times the largest known debug build.
pub const MAX_VMLINUX: Bytes = Bytes::mib(512);

/// A kernel that a VMM can boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The ELF file.
    pub vmlinux: Vec<u8>,
    /// What is known about it.
    pub facts: Facts,
}

/// What a kernel image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What `uname -r` will print in the guest.
    pub release: Release,
    /// The processor that it is built for.
    pub architecture: Architecture,
    /// How it was compressed; `None` for a plain ELF file.
    pub compression: Option<Compression>,
    /// Whether it has an entry in 32-bit mode by the PVH protocol. QEMU needs that to boot an ELF kernel; Firecracker
    /// falls back to the 64-bit entry.
    pub pvh: bool,
}

/// A processor architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// 64-bit x86, `x86_64`.
    X86_64,
}

/// Why no kernel can be extracted from a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a `bzImage` nor an ELF file.
    #[error("this is not a Linux kernel image; a vmlinuz (bzImage) or an ELF vmlinux is needed")]
    NotAKernel,
    /// A compressed EFI application, as `CONFIG_EFI_ZBOOT` makes them.
    #[error("EFI zboot kernel images are not supported")]
    EfiZboot,
    /// A kernel for another processor.
    #[error("this kernel is built for another processor; an x86-64 kernel is needed")]
    WrongArchitecture,
    /// The setup header of the `bzImage` cannot be used.
    #[error("cannot find the compressed kernel in the image")]
    BzImage(#[source] bzimage::Error),
    /// The payload has none of Linux' compression formats.
    #[error("the kernel in the image is compressed in an unknown format")]
    UnknownCompression,
    /// The payload cannot be unpacked.
    #[error("cannot unpack the kernel")]
    Unpack(#[source] decompress::Error),
    /// The size differs from the one that the kernel's build noted.
    #[error("the kernel unpacks to {found} bytes, but its image announces {announced}")]
    SizeMismatch {
        /// The size that the image announces.
        announced: u32,
        /// The size that it has.
        found: usize,
    },
    /// The payload is not a bootable ELF file.
    #[error("the kernel is not a bootable ELF file")]
    Elf(#[source] elf::Error),
    /// The ELF file has nothing to load into memory.
    #[error("the kernel has no loadable segment")]
    NothingToLoad,
    /// The ELF file is larger than [`MAX_VMLINUX`].
    #[error("the kernel is larger than {MAX_VMLINUX}")]
    TooLarge,
    /// No version was found in the kernel.
    #[error("the kernel has no release string")]
    NoRelease,
    /// The version in the kernel is not one that we can use.
    #[error("the kernel's release is not valid")]
    BadRelease(#[source] release::Error),
}

/// Extracts the ELF kernel from the bytes of a `vmlinuz` or `vmlinux`.
pub fn extract(image: Vec<u8>) -> Result<Kernel, Error> {
    if let Some(bzimage) = bzimage::parse(&image).map_err(Error::BzImage)? {
        let release = String::from_utf8_lossy(bzimage.release).parse().map_err(Error::BadRelease)?;
        let (vmlinux, compression) = unpack(bzimage.payload)?;
        let pvh = check(&vmlinux)?;
        let facts = Facts { release, architecture: Architecture::X86_64, compression, pvh };
        return Ok(Kernel { vmlinux, facts });
    }
    if !image.starts_with(b"\x7fELF") {
        return Err(match image.get(4..8) {
            Some(b"zimg") => Error::EfiZboot,
            _ if image.get(0x38..0x3c) == Some(b"ARM\x64") => Error::WrongArchitecture,
            _ => Error::NotAKernel,
        });
    }
    if image.len() as u64 > MAX_VMLINUX.0 {
        return Err(Error::TooLarge);
    }
    let pvh = check(&image)?;
    let release = banner_release(&image)?;
    let facts = Facts { release, architecture: Architecture::X86_64, compression: None, pvh };
    Ok(Kernel { vmlinux: image, facts })
}

/// Decompresses a `bzImage`'s payload and checks the size that the kernel's build appended.
fn unpack(payload: &[u8]) -> Result<(Vec<u8>, Option<Compression>), Error> {
    if payload.starts_with(b"\x7fELF") {
        return Ok((payload.to_vec(), None));
    }
    let compression = Compression::of(payload).ok_or(Error::UnknownCompression)?;
    let (stream, trailer) = payload.split_last_chunk().ok_or(Error::UnknownCompression)?;
    let announced = u32::from_le_bytes(*trailer);
    // Only in gzip the size is part of the format itself.
    let stream = if compression == Compression::Gzip { payload } else { stream };
    let vmlinux = compression.unpack(stream, MAX_VMLINUX).map_err(Error::Unpack)?;
    if vmlinux.len() != announced as usize {
        return Err(Error::SizeMismatch { announced, found: vmlinux.len() });
    }
    Ok((vmlinux, Some(compression)))
}

/// Checks that the ELF file can be booted; returns whether it has a PVH entry.
fn check(vmlinux: &[u8]) -> Result<bool, Error> {
    /// `XEN_ELFNOTE_PHYS32_ENTRY` in Xen's `public/elfnote.h`.
    const PHYS32_ENTRY: u32 = 18;
    let elf = Elf::parse(vmlinux, Kind::Executable).map_err(|error| match error {
        elf::Error::WrongArchitecture => Error::WrongArchitecture,
        error => Error::Elf(error),
    })?;
    if !elf.has_loadable_segment() {
        return Err(Error::NothingToLoad);
    }
    Ok(elf.note(b"Xen\0", PHYS32_ENTRY).is_some_and(|entry| matches!(entry.len(), 4 | 8)))
}

/// Returns the release in `linux_banner`, which every kernel has for `/proc/version`.
fn banner_release(vmlinux: &[u8]) -> Result<Release, Error> {
    const BANNER: &[u8] = b"Linux version ";
    let starts = vmlinux.iter().enumerate().filter(|(_, byte)| **byte == BANNER[0]).map(|(at, _)| at);
    let banners = starts.filter_map(|at| vmlinux.get(at..)?.strip_prefix(BANNER));
    let words = banners.filter_map(|rest| rest.split(|&byte| byte == b' ' || byte == 0).next());
    // The same words are also in format strings, without a release.
    words.filter_map(|word| str::from_utf8(word).ok()?.parse().ok()).next().ok_or(Error::NoRelease)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::kernel::{RELEASE, bzimage, payload, vmlinux};

    fn check_refused(image: Vec<u8>, text: &str) {
        let error = extract(image).unwrap_err();
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_kernel_comes_out_of_each_supported_compression() {
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4] {
            let kernel = extract(bzimage(&payload(compression, &vmlinux()))).unwrap();
            assert_eq!(kernel.vmlinux, vmlinux(), "{compression}");
            assert_eq!(kernel.facts.release.as_str(), RELEASE);
            assert_eq!(kernel.facts.compression, Some(compression));
            assert!(kernel.facts.pvh);
        }
    }

    #[test]
    fn an_elf_kernel_passes_with_the_release_of_its_banner() {
        let kernel = extract(vmlinux()).unwrap();
        assert_eq!(kernel.vmlinux, vmlinux());
        assert_eq!(kernel.facts.release.as_str(), RELEASE);
        assert_eq!(kernel.facts.compression, None);
    }

    #[test]
    fn a_kernel_without_a_pvh_note_says_so() {
        let mut image = vmlinux();
        let note = image.windows(4).position(|word| word == b"Xen\0").unwrap();
        image[note] = b'x';
        assert!(!extract(image).unwrap().facts.pvh);
    }

    #[test]
    fn an_invalid_kernel_is_refused_with_the_reason() {
        let no_kernel = "this is not a Linux kernel image; a vmlinuz (bzImage) or an ELF vmlinux is needed";
        check_refused(Vec::new(), no_kernel);
        check_refused(b"#!/bin/sh\n".to_vec(), no_kernel);
        check_refused(vec![0; 1 << 20], no_kernel);
        check_refused(b"MZ\0\0zimg\0\0\0\0".to_vec(), "EFI zboot kernel images are not supported");
        let mut arm = vmlinux();
        arm[18] = 183;
        let other = "this kernel is built for another processor; an x86-64 kernel is needed";
        check_refused(arm.clone(), other);
        check_refused(bzimage(&payload(Compression::Gzip, &arm)), other);
        check_refused(bzimage(b"????"), "the kernel in the image is compressed in an unknown format");
        check_refused(bzimage(&payload(Compression::Gzip, b"text")), "the kernel is not a bootable ELF file");
        check_refused(bzimage(b"BZh91AY&SY"), "cannot unpack the kernel");
    }

    #[test]
    fn a_payload_that_lies_about_its_size_is_refused() {
        let mut lying = payload(Compression::Zstd, &vmlinux());
        let end = lying.len();
        lying[end - 4..].copy_from_slice(&7u32.to_le_bytes());
        assert!(matches!(extract(bzimage(&lying)), Err(Error::SizeMismatch { announced: 7, .. })));
    }

    #[test]
    fn headers_that_point_outside_the_file_are_refused() {
        let whole = bzimage(&payload(Compression::Gzip, &vmlinux()));
        for (at, value) in [(0x248, [0xff; 4]), (0x24c, [0xff; 4]), (0x1f1, [0xff, 0, 0, 0])] {
            let mut image = whole.clone();
            image[at..at + 4].copy_from_slice(&value);
            assert!(matches!(
                extract(image),
                Err(Error::BzImage(bzimage::Error::CutOff(_)) | Error::UnknownCompression)
            ));
        }
    }

    #[test]
    fn an_image_cut_off_anywhere_is_refused() {
        for whole in [bzimage(&payload(Compression::Gzip, &vmlinux())), vmlinux()] {
            // The last bytes are padding in both.
            for length in 0..whole.len() - 40 {
                assert!(extract(whole[..length].to_vec()).is_err(), "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_change_of_a_header_makes_it_panic(
            flips in proptest::collection::vec((0..0x300usize, any::<u8>()), 1..6), plain in any::<bool>(),
        ) {
            let mut image = if plain { vmlinux() } else { bzimage(&payload(Compression::Lz4, &vmlinux())) };
            for (at, value) in flips {
                image[at] = value;
            }
            let _ = extract(image);
        }

        #[test]
        fn no_change_of_the_elf_header_inside_makes_it_panic(
            flips in proptest::collection::vec((0..176usize, any::<u8>()), 1..6),
        ) {
            let mut inner = vmlinux();
            for (at, value) in flips {
                inner[at] = value;
            }
            let _ = extract(bzimage(&payload(Compression::Lz4, &inner)));
        }
    }
}
