//! Parses the setup header of the x86 boot protocol, as far as needed to find the compressed kernel.
//!
//! Source: the kernel's `Documentation/arch/x86/boot.rst`. Offsets are from the start of the file.

/// The fields of a `bzImage` that we need.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BzImage<'a> {
    /// The first word of the version string: the kernel's release, not yet checked.
    pub release: &'a [u8],
    /// The compressed kernel with the trailing size that the kernel's build appends.
    pub payload: &'a [u8],
}

/// Why an image with a setup header cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Protocols before 2.08 (Linux 2.6.26) do not say where the compressed kernel is.
    #[error("boot protocol {}.{:02} is too old; 2.08 or later is needed", .0 >> 8, .0 & 0xff)]
    TooOld(u16),
    /// An offset in the header points outside the file.
    #[error("the file ends before its {0}")]
    CutOff(&'static str),
}

/// Parses the header. Returns `None` if the bytes are not a `bzImage`.
pub(super) fn parse(image: &[u8]) -> Result<Option<BzImage<'_>>, Error> {
    if field(image, 0x1fe) != Some([0x55, 0xaa]) || field(image, 0x202) != Some(*b"HdrS") {
        return Ok(None);
    }
    let cut_off = || Error::CutOff("setup header");
    let protocol = u16::from_le_bytes(field(image, 0x206).ok_or_else(cut_off)?);
    if protocol < 0x0208 {
        return Err(Error::TooOld(protocol));
    }
    let version = u16::from_le_bytes(field(image, 0x20e).ok_or_else(cut_off)?);
    let offset = u32::from_le_bytes(field(image, 0x248).ok_or_else(cut_off)?);
    let length = u32::from_le_bytes(field(image, 0x24c).ok_or_else(cut_off)?);
    let [setup_sectors] = field(image, 0x1f1).ok_or_else(cut_off)?;

    // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4"; the boot
    // sector itself comes on top.
    let setup_sectors = if setup_sectors == 0 { 4 } else { usize::from(setup_sectors) };
    let payload = image
        .get((setup_sectors + 1) * 512..)
        .and_then(|protected_mode| protected_mode.get(offset as usize..))
        .and_then(|from_payload| from_payload.get(..length as usize))
        .ok_or(Error::CutOff("compressed kernel"))?;

    let version = image.get(usize::from(version) + 0x200..).ok_or(Error::CutOff("version string"))?;
    let release = version.split(|&byte| byte == 0 || byte == b' ').next().unwrap_or_default();
    Ok(Some(BzImage { release, payload }))
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Option<[u8; N]> {
    image.get(offset..)?.first_chunk().copied()
}
