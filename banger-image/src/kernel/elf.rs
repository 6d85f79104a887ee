//! Parses the parts of ELF that kernels and modules need: 64-bit, little-endian, x86-64 or arm64 (`man 5 elf`).

use banger_domain::architecture::Architecture;

/// What an ELF file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `ET_REL`: a kernel module.
    Relocatable,
    /// `ET_EXEC`: a kernel.
    Executable,
}

/// Why a file is not a suitable ELF file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The magic number is missing.
    #[error("this is not an ELF file")]
    NotElf,
    /// It is for another processor, or a 32-bit one.
    #[error("this is built neither for x86-64 nor for arm64")]
    WrongArchitecture,
    /// It is another type of ELF file.
    #[error("this is the wrong type of ELF file ({0})")]
    WrongKind(u16),
    /// A header points outside the file.
    #[error("the file ends before its {0}")]
    CutOff(&'static str),
}

/// An ELF file whose header has been checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elf<'a> {
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    /// Checks the header, and that all segments and sections with content are within the file.
    pub fn parse(bytes: &'a [u8], kind: Kind) -> Result<Self, Error> {
        let elf = Self { bytes };
        if !bytes.starts_with(b"\x7fELF") {
            return Err(Error::NotElf);
        }
        let header = || Error::CutOff("header");
        // ELFCLASS64 and ELFDATA2LSB.
        let is_64_bit = bytes.get(4..6).ok_or_else(header)? == [2, 1];
        elf.u16(18).ok_or_else(header)?;
        if !is_64_bit || elf.architecture().is_none() {
            return Err(Error::WrongArchitecture);
        }
        let found = elf.u16(16).ok_or_else(header)?;
        let wanted = match kind {
            Kind::Relocatable => 1,
            Kind::Executable => 2,
        };
        if found != wanted {
            return Err(Error::WrongKind(found));
        }
        elf.u16(62).ok_or_else(header)?;
        if elf.segments().any(|segment| segment.is_none()) {
            return Err(Error::CutOff("segments"));
        }
        if elf.sections().any(|section| section.is_none()) {
            return Err(Error::CutOff("sections"));
        }
        Ok(elf)
    }

    /// Returns the processor that the file is built for. [`Elf::parse`] refuses files without one.
    pub fn architecture(&self) -> Option<Architecture> {
        const EM_X86_64: u16 = 62;
        const EM_AARCH64: u16 = 183;
        match self.u16(18)? {
            EM_X86_64 => Some(Architecture::X86_64),
            EM_AARCH64 => Some(Architecture::Aarch64),
            _ => None,
        }
    }

    /// Returns whether the file has anything to load.
    pub fn has_loadable_segment(&self) -> bool {
        const PT_LOAD: u32 = 1;
        self.segments().flatten().any(|segment| segment.kind == PT_LOAD && !segment.content.is_empty())
    }

    /// Returns the content of the first note of this owner and type.
    pub fn note(&self, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
        const PT_NOTE: u32 = 4;
        self.segments()
            .flatten()
            .filter(|segment| segment.kind == PT_NOTE)
            .flat_map(|segment| Notes { rest: segment.content })
            .find(|note| note.owner == owner && note.kind == kind)
            .map(|note| note.content)
    }

    /// Returns the content of the section with this name.
    pub fn section(&self, name: &[u8]) -> Option<&'a [u8]> {
        let names = self.sections().nth(usize::from(self.u16(62)?))??.content;
        self.sections().flatten().find_map(|section| {
            let found = names.get(section.name as usize..)?.split(|&byte| byte == 0).next()?;
            (found == name).then_some(section.content)
        })
    }

    /// Returns every program header; `None` for one that points outside the file.
    fn segments(&self) -> impl Iterator<Item = Option<Segment<'a>>> {
        let elf = *self;
        let table = elf.u64(32).unwrap_or_default();
        let size = u64::from(elf.u16(54).unwrap_or_default());
        let count = elf.u16(56).unwrap_or_default();
        (0..u64::from(count)).map(move |index| {
            let header = usize::try_from(table.checked_add(index * size)?).ok()?;
            let content = elf.range(elf.u64(header.checked_add(8)?)?, elf.u64(header.checked_add(32)?)?)?;
            Some(Segment { kind: elf.u32(header)?, content })
        })
    }

    /// Returns every section header; `None` for one that points outside the file.
    fn sections(&self) -> impl Iterator<Item = Option<Section<'a>>> {
        const SHT_NOBITS: u32 = 8;
        let elf = *self;
        let table = elf.u64(40).unwrap_or_default();
        let size = u64::from(elf.u16(58).unwrap_or_default());
        let count = elf.u16(60).unwrap_or_default();
        (0..u64::from(count)).map(move |index| {
            let header = usize::try_from(table.checked_add(index * size)?).ok()?;
            let content = match elf.u32(header.checked_add(4)?)? {
                SHT_NOBITS => &[],
                _ => elf.range(elf.u64(header.checked_add(24)?)?, elf.u64(header.checked_add(32)?)?)?,
            };
            Some(Section { name: elf.u32(header)?, content })
        })
    }

    fn range(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        let offset = usize::try_from(offset).ok()?;
        self.bytes.get(offset..)?.get(..usize::try_from(length).ok()?)
    }

    fn field<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }

    fn u16(&self, offset: usize) -> Option<u16> {
        self.field(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: usize) -> Option<u32> {
        self.field(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: usize) -> Option<u64> {
        self.field(offset).map(u64::from_le_bytes)
    }
}

struct Segment<'a> {
    kind: u32,
    content: &'a [u8],
}

struct Section<'a> {
    name: u32,
    content: &'a [u8],
}

struct Note<'a> {
    owner: &'a [u8],
    kind: u32,
    content: &'a [u8],
}

/// The notes of one segment; the first damaged one ends them.
struct Notes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Notes<'a> {
    type Item = Note<'a>;

    fn next(&mut self) -> Option<Note<'a>> {
        let mut words = self.rest.chunks_exact(4).map(|word| word.try_into().map(u32::from_le_bytes));
        let owner_length = words.next()?.ok()? as usize;
        let content_length = words.next()?.ok()? as usize;
        let kind = words.next()?.ok()?;
        let content_at = 12usize.checked_add(owner_length.checked_next_multiple_of(4)?)?;
        let owner = self.rest.get(12..)?.get(..owner_length)?;
        let content = self.rest.get(content_at..)?.get(..content_length)?;
        let next = content_at.checked_add(content_length.checked_next_multiple_of(4)?)?;
        self.rest = self.rest.get(next..).unwrap_or_default();
        Some(Note { owner, kind, content })
    }
}
