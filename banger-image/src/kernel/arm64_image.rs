//! Checks the header of an arm64 `Image`.
//!
//! Source: the kernel's `Documentation/arch/arm64/booting.rst`, "Call the kernel image". Offsets are from the start of the
//! file.

use banger_proto::size::Bytes;

/// Distribution kernels need 30 to 100 MiB of memory before they have unpacked anything.
const MAX_IN_MEMORY: Bytes = Bytes::mib(512);

/// Why VMMs cannot boot an `Image`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Kernels before 3.17 do not say how much memory they need.
    #[error("it is older than Linux 3.17")]
    TooOld,
    /// The flags say that it runs with the other byte order.
    #[error("it is big-endian")]
    BigEndian,
    /// It wants more memory than any kernel.
    #[error("it needs {0} of memory; at most {MAX_IN_MEMORY} are supported")]
    TooLarge(Bytes),
    /// A section of the PE header, which it has for EFI, is not in the file.
    #[error("the file ends before its sections")]
    CutOff,
}

/// The size of the header.
pub(super) const HEADER: usize = 64;

/// Returns whether the bytes begin like an `Image`.
pub(super) fn is(image: &[u8]) -> bool {
    image.get(0x38..0x3c) == Some(b"ARM\x64")
}

/// Checks the rest of the header.
pub(super) fn check(image: &[u8]) -> Result<(), Error> {
    const BIG_ENDIAN: u64 = 1;
    let word = |at| field(image, at).map_or(0, u64::from_le_bytes);
    // Code, data, and memory that begins as zeros.
    let (size, flags) = (word(0x10), word(0x18));
    if size == 0 {
        return Err(Error::TooOld);
    }
    if flags & BIG_ENDIAN != 0 {
        return Err(Error::BigEndian);
    }
    if size > MAX_IN_MEMORY.0 {
        return Err(Error::TooLarge(Bytes(size)));
    }
    // A kernel without `CONFIG_EFI` has no PE header. A signature may follow the sections.
    let pe = field(image, 0x3c).map_or(0, u32::from_le_bytes) as usize;
    let is_whole = pe == 0 || has_sections(image, pe).unwrap_or(false);
    if is_whole { Ok(()) } else { Err(Error::CutOff) }
}

/// Returns whether all sections of the PE header at this offset are in the file (PE Format, "Section Table"). `None` if the
/// header itself is not.
fn has_sections(image: &[u8], pe: usize) -> Option<bool> {
    const SECTION: usize = 40;
    let header = image.get(pe..)?;
    let count = u16::from_le_bytes(field(header, 6)?);
    let optional = usize::from(u16::from_le_bytes(field(header, 20)?));
    let sections = header.get(24 + optional..)?.get(..usize::from(count) * SECTION)?;
    let is_in_file = |section: &[u8]| {
        let size = u64::from(u32::from_le_bytes(field(section, 16)?));
        let offset = u64::from(u32::from_le_bytes(field(section, 20)?));
        Some(offset + size <= image.len() as u64)
    };
    Some(
        header.starts_with(b"PE\0\0")
            && sections.chunks_exact(SECTION).all(|section| is_in_file(section) == Some(true)),
    )
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Option<[u8; N]> {
    image.get(offset..)?.first_chunk().copied()
}
