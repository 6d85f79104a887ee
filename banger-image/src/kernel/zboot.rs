//! Parses the header of an EFI zboot image, as far as needed to find the compressed kernel: an EFI application that
//! unpacks and starts the kernel in it, as `CONFIG_EFI_ZBOOT` makes them.
//!
//! Source: the kernel's `drivers/firmware/efi/libstub/zboot-header.S` and `Makefile.zboot`. Offsets are from the start of
//! the file.

/// `IMAGE_FILE_MACHINE_ARM64` in the PE header.
pub(super) const MACHINE_ARM64: u16 = 0xaa64;

/// The fields that we need.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Zboot<'a> {
    /// The processor in the PE header.
    pub machine: u16,
    /// The compressed kernel, with the trailing size that the kernel's build appends.
    pub payload: &'a [u8],
}

/// Why an EFI zboot image cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An offset in the header points outside the file.
    #[error("the file ends before its {0}")]
    CutOff(&'static str),
    /// There is no PE header where the first header says.
    #[error("it has no PE header")]
    NoPeHeader,
}

/// Returns whether the bytes begin like an EFI zboot image.
pub(super) fn is(image: &[u8]) -> bool {
    image.starts_with(b"MZ") && image.get(4..8) == Some(b"zimg")
}

/// Parses the header. Returns `None` if the bytes are not an EFI zboot image.
pub(super) fn parse(image: &[u8]) -> Result<Option<Zboot<'_>>, Error> {
    if !is(image) {
        return Ok(None);
    }
    let word = |at: usize| field(image, at).map(|bytes| u32::from_le_bytes(bytes) as usize);
    let header = || Error::CutOff("header");
    let (offset, length) = (word(8).ok_or_else(header)?, word(12).ok_or_else(header)?);
    let pe = image.get(word(0x3c).ok_or_else(header)?..).ok_or(Error::CutOff("PE header"))?;
    if !pe.starts_with(b"PE\0\0") {
        return Err(Error::NoPeHeader);
    }
    let machine = u16::from_le_bytes(field(pe, 4).ok_or(Error::CutOff("PE header"))?);
    let payload = image.get(offset..).ok_or(Error::CutOff("compressed kernel"))?;
    // Only for gzip does the length include the appended size.
    let trailer = if payload.starts_with(b"\x1f\x8b") { 0 } else { 4 };
    let end = length.checked_add(trailer).ok_or_else(header)?;
    let payload = payload.get(..end).ok_or(Error::CutOff("compressed kernel"))?;
    Ok(Some(Zboot { machine, payload }))
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Option<[u8; N]> {
    image.get(offset..)?.first_chunk().copied()
}
