//! A kernel module as a file: its name, compression and metadata.

use banger_domain::architecture::Architecture;
use banger_proto::size::Bytes;

use super::{
    decompress::{self, Compression},
    elf::{self, Elf, Kind},
};

/// Returns the name of a module from a path that ends in `.ko` or a compressed form of it. As in `lsmod`, it has `_`
/// for `-`.
pub(super) fn name_of(path: &str) -> Option<String> {
    let (path, _) = unpacked_path(path);
    Some(normal_name(path.rsplit('/').next()?.strip_suffix(".ko")?))
}

/// Returns the name that the kernel uses, to which `-` and `_` are the same.
pub(super) fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the path of the decompressed module, and its compression.
pub fn unpacked_path(path: &str) -> (&str, Option<Compression>) {
    match path.rsplit_once('.') {
        Some((stem, "gz")) if stem.ends_with(".ko") => (stem, Some(Compression::Gzip)),
        Some((stem, "xz")) if stem.ends_with(".ko") => (stem, Some(Compression::Xz)),
        Some((stem, "zst")) if stem.ends_with(".ko") => (stem, Some(Compression::Zstd)),
        _ => (path, None),
    }
}

/// Returns the ELF file in the file at `path`.
pub fn unpack(path: &str, content: Vec<u8>, limit: Bytes) -> Result<Vec<u8>, decompress::Error> {
    match unpacked_path(path).1 {
        None => Ok(content),
        Some(compression) => compression.unpack(&content, limit),
    }
}

/// A module's metadata, from its section `.modinfo`: lines of `key=value`.
#[derive(Debug, Clone, Copy)]
pub(super) struct ModInfo<'a> {
    elf: Elf<'a>,
    section: &'a [u8],
}

impl<'a> ModInfo<'a> {
    pub fn parse(module: &'a [u8]) -> Result<Self, elf::Error> {
        let elf = Elf::parse(module, Kind::Relocatable)?;
        Ok(Self { elf, section: elf.section(b".modinfo").unwrap_or_default() })
    }

    /// Returns the processor that the module is built for.
    pub fn architecture(self) -> Option<Architecture> {
        self.elf.architecture()
    }

    /// Returns every value of a key that is text.
    pub fn all(self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.section.split(|&byte| byte == 0).filter_map(move |entry| {
            let (found, value) = str::from_utf8(entry).ok()?.split_once('=')?;
            (found == key).then_some(value)
        })
    }

    /// Returns the first value of a key.
    pub fn first(self, key: &'a str) -> Option<&'a str> {
        self.all(key).next()
    }

    /// Returns the names of the modules that this one depends on.
    pub fn depends(self) -> impl Iterator<Item = String> {
        let names = self.first("depends").unwrap_or_default().split(',');
        names.filter(|name| !name.is_empty()).map(normal_name)
    }

    /// Returns the exported symbols: for each, the kernel's build adds a symbol with the prefix `__ksymtab_`.
    pub fn exported(self) -> impl Iterator<Item = &'a str> {
        let names = self.elf.section(b".strtab").unwrap_or_default().split(|&byte| byte == 0);
        names.filter_map(|name| str::from_utf8(name).ok()?.strip_prefix("__ksymtab_"))
    }
}
