//! Extracts the kernel that VMMs boot from a distribution's `vmlinuz`.
//!
//! On x86-64 VMMs boot an ELF `vmlinux`; distributions ship it compressed in a `bzImage`. On arm64 they boot an `Image`;
//! distributions ship it as it is, compressed with gzip, or in an EFI zboot image. A plain ELF file or `Image` passes
//! unchanged.

use banger_domain::architecture::{Architecture, KernelFormat};
use banger_proto::size::Bytes;

use super::{
    arm64_image, bzimage,
    decompress::{self, Compression},
    elf::{self, Elf, Kind},
    release::{self, Release},
    zboot,
};

/// Distribution kernels have 40–80 MiB; this is four times the largest known debug build.
pub const MAX_VMLINUX: Bytes = Bytes::mib(512);

/// A kernel that a VMM can boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The ELF file, or on arm64 the `Image`.
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
    /// How it was compressed; `None` for a plain ELF file or `Image`.
    pub compression: Option<Compression>,
    /// Whether it has an entry in 32-bit mode by the PVH protocol. QEMU needs that to boot an ELF kernel; Firecracker
    /// falls back to the 64-bit entry. Always `false` on arm64, which has no such entry.
    pub pvh: bool,
}

/// Why no kernel can be extracted from a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// In none of the formats of kernels.
    #[error(
        "this is not a Linux kernel image; a vmlinuz, an ELF vmlinux (x86-64) or an Image (arm64) is needed"
    )]
    NotAKernel,
    /// A kernel for another processor.
    #[error("this kernel is built for another processor; an {0} kernel is needed")]
    WrongArchitecture(Architecture),
    /// The setup header of the `bzImage` cannot be used.
    #[error("cannot find the compressed kernel in the image")]
    BzImage(#[source] bzimage::Error),
    /// The header of the EFI zboot image cannot be used.
    #[error("cannot find the compressed kernel in the EFI zboot image")]
    Zboot(#[source] zboot::Error),
    /// The `Image` is not one that VMMs can boot.
    #[error("the kernel is not a bootable Image")]
    Image(#[source] arm64_image::Error),
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
    /// The kernel is larger than [`MAX_VMLINUX`].
    #[error("the kernel is larger than {MAX_VMLINUX}")]
    TooLarge,
    /// No version was found in the kernel.
    #[error("the kernel has no release string")]
    NoRelease,
    /// The version in the kernel is not one that we can use.
    #[error("the kernel's release is not valid")]
    BadRelease(#[source] release::Error),
}

/// Extracts the kernel from the bytes of a `vmlinuz` or `vmlinux`, if it is for this architecture.
pub fn extract(image: Vec<u8>, architecture: Architecture) -> Result<Kernel, Error> {
    match architecture.differences().kernel {
        KernelFormat::Elf => extract_elf(image, architecture),
        KernelFormat::Image => extract_image(image, architecture),
    }
}

/// Extracts an ELF file from a `bzImage`, or takes it as it is.
fn extract_elf(image: Vec<u8>, architecture: Architecture) -> Result<Kernel, Error> {
    if let Some(bzimage) = bzimage::parse(&image).map_err(Error::BzImage)? {
        let release = String::from_utf8_lossy(bzimage.release).parse().map_err(Error::BadRelease)?;
        let (vmlinux, compression) = unpack(bzimage.payload)?;
        let pvh = check(&vmlinux, architecture)?;
        return Ok(Kernel { vmlinux, facts: Facts { release, architecture, compression, pvh } });
    }
    if !image.starts_with(b"\x7fELF") {
        let is_known =
            arm64_image::is(&image) || zboot::is(&image) || has_image(&image).is_ok_and(|found| found);
        return Err(if is_known { Error::WrongArchitecture(architecture) } else { Error::NotAKernel });
    }
    if image.len() as u64 > MAX_VMLINUX.0 {
        return Err(Error::TooLarge);
    }
    let pvh = check(&image, architecture)?;
    let release = banner_release(&image)?;
    Ok(Kernel { vmlinux: image, facts: Facts { release, architecture, compression: None, pvh } })
}

/// Extracts an `Image` from an EFI zboot image or a gzip file, or takes it as it is.
fn extract_image(image: Vec<u8>, architecture: Architecture) -> Result<Kernel, Error> {
    let (vmlinux, compression) = if let Some(zboot) = zboot::parse(&image).map_err(Error::Zboot)? {
        if zboot.machine != zboot::MACHINE_ARM64 {
            return Err(Error::WrongArchitecture(architecture));
        }
        unpack(zboot.payload)?
    } else if Compression::of(&image) == Some(Compression::Gzip) {
        // What distributions install as `vmlinuz` for boot loaders that unpack it. Whatever else it is, it is not unpacked.
        if !has_image(&image)? {
            return Err(Error::NotAKernel);
        }
        (Compression::Gzip.unpack(&image, MAX_VMLINUX).map_err(Error::Unpack)?, Some(Compression::Gzip))
    } else {
        (image, None)
    };
    if !arm64_image::is(&vmlinux) {
        let is_x86 = bzimage::parse(&vmlinux).is_ok_and(|bzimage| bzimage.is_some());
        let is_other = |elf: Elf<'_>| !is_for(&elf, architecture);
        let is_elf = Elf::parse(&vmlinux, Kind::Executable).is_ok_and(is_other);
        return Err(if is_x86 || is_elf {
            Error::WrongArchitecture(architecture)
        } else {
            Error::NotAKernel
        });
    }
    if vmlinux.len() as u64 > MAX_VMLINUX.0 {
        return Err(Error::TooLarge);
    }
    arm64_image::check(&vmlinux).map_err(Error::Image)?;
    let release = banner_release(&vmlinux)?;
    Ok(Kernel { vmlinux, facts: Facts { release, architecture, compression, pvh: false } })
}

/// Returns whether this is a gzip file of an arm64 `Image`, by the header.
fn has_image(file: &[u8]) -> Result<bool, Error> {
    if Compression::of(file) != Some(Compression::Gzip) {
        return Ok(false);
    }
    let header = decompress::beginning_of_gzip(file, arm64_image::HEADER).map_err(Error::Unpack)?;
    Ok(arm64_image::is(&header))
}

/// Decompresses a payload and checks the size that the kernel's build appended.
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
fn check(vmlinux: &[u8], architecture: Architecture) -> Result<bool, Error> {
    /// `XEN_ELFNOTE_PHYS32_ENTRY` in Xen's `public/elfnote.h`.
    const PHYS32_ENTRY: u32 = 18;
    let wrong = || Error::WrongArchitecture(architecture);
    let elf = Elf::parse(vmlinux, Kind::Executable).map_err(|error| match error {
        elf::Error::WrongArchitecture => wrong(),
        error => Error::Elf(error),
    })?;
    if !is_for(&elf, architecture) {
        return Err(wrong());
    }
    if !elf.has_loadable_segment() {
        return Err(Error::NothingToLoad);
    }
    Ok(elf.note(b"Xen\0", PHYS32_ENTRY).is_some_and(|entry| matches!(entry.len(), 4 | 8)))
}

fn is_for(elf: &Elf<'_>, architecture: Architecture) -> bool {
    elf.architecture() == Some(architecture)
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

    use banger_proto::causes::with_causes;

    use super::*;
    use crate::fixtures::kernel::{RELEASE, arm64_image, bzimage, pack, payload, vmlinux, zboot};

    const X86: Architecture = Architecture::X86_64;
    const ARM: Architecture = Architecture::Aarch64;
    const NO_KERNEL: &str =
        "this is not a Linux kernel image; a vmlinuz, an ELF vmlinux (x86-64) or an Image (arm64) is needed";
    const ARM64_NEEDED: &str = "this kernel is built for another processor; an arm64 kernel is needed";

    fn check_refused(image: Vec<u8>, text: &str) {
        let error = extract(image, X86).unwrap_err();
        assert_eq!(error.to_string(), text);
    }

    fn check_refused_on_arm(image: Vec<u8>, text: &str) {
        let error = extract(image, ARM).unwrap_err();
        assert_eq!(with_causes(&error), text);
    }

    #[test]
    fn a_kernel_comes_out_of_each_supported_compression() {
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4] {
            let kernel = extract(bzimage(&payload(compression, &vmlinux())), X86).unwrap();
            assert_eq!(kernel.vmlinux, vmlinux(), "{compression}");
            assert_eq!(kernel.facts.release.as_str(), RELEASE);
            assert_eq!(kernel.facts.compression, Some(compression));
            assert!(kernel.facts.pvh);
        }
    }

    #[test]
    fn an_elf_kernel_passes_with_the_release_of_its_banner() {
        let kernel = extract(vmlinux(), X86).unwrap();
        assert_eq!(kernel.vmlinux, vmlinux());
        assert_eq!(kernel.facts.release.as_str(), RELEASE);
        assert_eq!(kernel.facts.compression, None);
    }

    #[test]
    fn a_kernel_without_a_pvh_note_says_so() {
        let mut image = vmlinux();
        let note = image.windows(4).position(|word| word == b"Xen\0").unwrap();
        image[note] = b'x';
        assert!(!extract(image, X86).unwrap().facts.pvh);
    }

    #[test]
    fn an_invalid_kernel_is_refused_with_the_reason() {
        check_refused(Vec::new(), NO_KERNEL);
        check_refused(b"#!/bin/sh\n".to_vec(), NO_KERNEL);
        check_refused(vec![0; 1 << 20], NO_KERNEL);
        let mut arm = vmlinux();
        arm[18] = 183;
        let other = "this kernel is built for another processor; an x86-64 kernel is needed";
        check_refused(arm.clone(), other);
        check_refused(arm64_image(), other);
        check_refused(pack(Compression::Gzip, &arm64_image()), other);
        check_refused(pack(Compression::Gzip, b"text"), NO_KERNEL);
        check_refused(zboot(0xaa64, &payload(Compression::Gzip, &arm64_image())), other);
        check_refused(bzimage(&payload(Compression::Gzip, &arm)), other);
        check_refused(bzimage(b"????"), "the kernel in the image is compressed in an unknown format");
        check_refused(bzimage(&payload(Compression::Gzip, b"text")), "the kernel is not a bootable ELF file");
        check_refused(bzimage(b"BZh91AY&SY"), "cannot unpack the kernel");
    }

    #[test]
    fn an_arm64_image_comes_out_of_what_distributions_install() {
        let check = |vmlinuz: Vec<u8>, compression: Option<Compression>| {
            let kernel = extract(vmlinuz, ARM).unwrap();
            assert_eq!(kernel.vmlinux, arm64_image(), "{compression:?}");
            let release = RELEASE.parse().unwrap();
            assert_eq!(kernel.facts, Facts { release, architecture: ARM, compression, pvh: false });
        };
        check(arm64_image(), None);
        check(pack(Compression::Gzip, &arm64_image()), Some(Compression::Gzip));
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4] {
            check(zboot(0xaa64, &payload(compression, &arm64_image())), Some(compression));
        }
    }

    #[test]
    fn a_kernel_of_another_architecture_is_refused_on_arm64() {
        check_refused_on_arm(vmlinux(), ARM64_NEEDED);
        check_refused_on_arm(bzimage(&payload(Compression::Gzip, &vmlinux())), ARM64_NEEDED);
        // RISC-V and LoongArch have this format, too.
        check_refused_on_arm(zboot(0x5064, &payload(Compression::Gzip, &arm64_image())), ARM64_NEEDED);
        check_refused_on_arm(zboot(0xaa64, &payload(Compression::Gzip, &vmlinux())), ARM64_NEEDED);
    }

    #[test]
    fn an_invalid_arm64_kernel_is_refused_with_the_reason() {
        check_refused_on_arm(Vec::new(), NO_KERNEL);
        check_refused_on_arm(pack(Compression::Gzip, b"text"), NO_KERNEL);
        // Its end is not looked at.
        let mut long = pack(Compression::Gzip, &[0; 1 << 20]);
        long.truncate(long.len() - 8);
        check_refused_on_arm(long, NO_KERNEL);
        // VMMs get an Image, so not even an ELF file for the right processor will do.
        let mut elf = vmlinux();
        elf[18] = 183;
        check_refused_on_arm(elf, NO_KERNEL);
        check_refused_on_arm(
            b"\x1f\x8b\x08".to_vec(),
            "cannot unpack the kernel: the gzip data are damaged: unexpected end of file",
        );
        let changed = |at: usize, bytes: &[u8]| {
            let mut image = arm64_image();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            image
        };
        let image = |why: &str| format!("the kernel is not a bootable Image: {why}");
        check_refused_on_arm(changed(0x10, &[0; 8]), &image("it is older than Linux 3.17"));
        check_refused_on_arm(changed(0x18, &[0xb]), &image("it is big-endian"));
        check_refused_on_arm(
            changed(0x14, &[1]),
            &image("it needs 4 GiB of memory; at most 512 MiB are supported"),
        );
        let cut_off = image("the file ends before its sections");
        check_refused_on_arm(changed(0x3c, &[0xff; 4]), &cut_off);
        check_refused_on_arm(changed(0x40, b"XX"), &cut_off);
        check_refused_on_arm(arm64_image()[..2000].to_vec(), &cut_off);
        let no_release = changed(0xc0, &[b'x'; 60]);
        check_refused_on_arm(no_release, "the kernel has no release string");
        let zimg = |why: &str| format!("cannot find the compressed kernel in the EFI zboot image: {why}");
        check_refused_on_arm(b"MZ\0\0zimg".to_vec(), &zimg("the file ends before its header"));
        let mut no_pe = zboot(0xaa64, b"????");
        no_pe[0x40] = b'x';
        check_refused_on_arm(no_pe, &zimg("it has no PE header"));
        let unknown = "the kernel in the image is compressed in an unknown format";
        check_refused_on_arm(zboot(0xaa64, b"????????"), unknown);
    }

    #[test]
    fn a_kernel_without_efi_has_no_sections_to_miss() {
        let mut image = arm64_image();
        image[0x3c..0x40].fill(0);
        assert!(extract(image, ARM).is_ok());
    }

    #[test]
    fn an_arm64_kernel_cut_off_anywhere_is_refused() {
        let zstd = zboot(0xaa64, &payload(Compression::Zstd, &arm64_image()));
        for (whole, padding) in [(arm64_image(), 0), (zstd, 16)] {
            for length in 0..whole.len() - padding {
                assert!(extract(whole[..length].to_vec(), ARM).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn a_payload_that_lies_about_its_size_is_refused() {
        let mut lying = payload(Compression::Zstd, &vmlinux());
        let end = lying.len();
        lying[end - 4..].copy_from_slice(&7u32.to_le_bytes());
        assert!(matches!(extract(bzimage(&lying), X86), Err(Error::SizeMismatch { announced: 7, .. })));
    }

    #[test]
    fn headers_that_point_outside_the_file_are_refused() {
        let whole = bzimage(&payload(Compression::Gzip, &vmlinux()));
        for (at, value) in [(0x248, [0xff; 4]), (0x24c, [0xff; 4]), (0x1f1, [0xff, 0, 0, 0])] {
            let mut image = whole.clone();
            image[at..at + 4].copy_from_slice(&value);
            assert!(matches!(
                extract(image, X86),
                Err(Error::BzImage(bzimage::Error::CutOff(_)) | Error::UnknownCompression)
            ));
        }
    }

    #[test]
    fn an_image_cut_off_anywhere_is_refused() {
        for whole in [bzimage(&payload(Compression::Gzip, &vmlinux())), vmlinux()] {
            // The last bytes are padding in both.
            for length in 0..whole.len() - 40 {
                assert!(extract(whole[..length].to_vec(), X86).is_err(), "{length}");
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
            let _ = extract(image, X86);
        }

        #[test]
        fn no_change_of_an_arm64_header_makes_it_panic(
            flips in proptest::collection::vec((0..0x110usize, any::<u8>()), 1..6), plain in any::<bool>(),
        ) {
            let packed = || zboot(0xaa64, &payload(Compression::Lz4, &arm64_image()));
            let mut image = if plain { arm64_image() } else { packed() };
            for (at, value) in flips {
                image[at] = value;
            }
            let _ = extract(image, ARM);
        }

        #[test]
        fn no_change_of_the_elf_header_inside_makes_it_panic(
            flips in proptest::collection::vec((0..176usize, any::<u8>()), 1..6),
        ) {
            let mut inner = vmlinux();
            for (at, value) in flips {
                inner[at] = value;
            }
            let _ = extract(bzimage(&payload(Compression::Lz4, &inner)), X86);
        }
    }
}
