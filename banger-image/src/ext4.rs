//! Checks whether a file is an ext4 file system that a guest can use as its root. Only the superblock is read: the
//! rest is for the guest's kernel alone.
//!
//! Layout and feature bits: <https://docs.kernel.org/filesystems/ext4/globals.html#super-block>, and the
//! `EXT4_FEATURE_*_SUPP` masks in `fs/ext4/ext4.h` of Linux 6.1, the oldest supported guest kernel.

use banger_proto::size::Bytes;

/// How much of the file's beginning [`FileSystem::read`] needs.
pub const HEAD: usize = START + LENGTH;

const START: usize = 1024;
const LENGTH: usize = 1024;

const MAGIC: u16 = 0xef53;
/// Linux mounts no block larger than a page, which is 4 KiB on supported architectures.
const MAX_LOG_BLOCK_SIZE: u32 = 2;

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;

const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;
/// filetype, recover, meta_bg, extent, 64bit, mmp, flex_bg, ea_inode, metadata_csum_seed, large_dir,
/// inline_data, encrypt, casefold.
const INCOMPAT_KNOWN: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;

const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const RO_COMPAT_READONLY: u32 = 0x1000;
/// sparse_super, large_file, btree_dir, huge_file, uninit_bg, dir_nlink, extra_isize, quota, bigalloc, metadata_csum,
/// project, verity, orphan_present. Not read-only, since a guest writes to its clone.
const RO_COMPAT_KNOWN: u32 =
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x8000 | 0x1_0000;

/// The beginnings of files that people mistake for a root file system: offset, bytes, and name. Archives are missing,
/// since they can be one.
const OTHER_FORMATS: [(usize, &[u8], &str); 10] = [
    (0, b"QFI\xfb", "a QCOW2 disk, which `qemu-img convert -O raw` turns into a raw one"),
    (0, b"KDMV", "a VMDK disk, which `qemu-img convert -O raw` turns into a raw one"),
    (0, b"\xfd7zXZ\0", "compressed by xz; decompress it first"),
    (0, b"BZh", "compressed by bzip2; decompress it first"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"XFSB", "an XFS file system"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (0, b"\x7fELF", "an ELF file"),
    (512, b"EFI PART", "a whole disk with partitions; extract the one with the root file system"),
    (510, b"\x55\xaa", "a whole disk with partitions; extract the one with the root file system"),
];

/// An ext4 file system that a guest can use as its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Its size, at most that of the file.
    pub size: Bytes,
    /// The blocks that files take, if it says how many it needs for itself.
    pub used: Option<Bytes>,
}

/// Why a file cannot be the root file system of a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It has another format, or none that we know.
    #[error("the file is not an ext4 file system{}", .0.map(|what| format!("; it is {what}")).unwrap_or_default())]
    NotExt4(Option<&'static str>),
    /// Its superblock is inconsistent.
    #[error("the ext4 file system is damaged: {0}")]
    Damaged(&'static str),
    /// The file ends before the file system does.
    #[error("the file is cut short: the ext4 file system in it has {expected}, but the file only {found}")]
    Short {
        /// Size of the file system.
        expected: Bytes,
        /// It was mounted when it was copied, or never unmounted cleanly.
        found: Bytes,
    },
    /// It was mounted when it was copied, or never unmounted.
    #[error("the ext4 file system was not unmounted cleanly; unmount it, or run `e2fsck -f` on it")]
    Unclean,
    /// The kernel found errors in it.
    #[error("the ext4 file system is marked as having errors; run `e2fsck -f` on it")]
    Errors,
    /// A guest's kernel could not mount it for writing.
    #[error("the ext4 file system has features that Linux 6.1 cannot write to ({0})")]
    Features(String),
    /// A guest's kernel could not mount it.
    #[error("the ext4 file system has blocks of more than 4 KiB, which Linux cannot mount")]
    BlockSize,
}

impl FileSystem {
    /// Parses the first [`HEAD`] bytes of a file of this size, or all of a shorter file.
    pub fn read(head: &[u8], file: Bytes) -> Result<Self, Unusable> {
        let superblock = match head.get(START..HEAD).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Superblock(bytes),
            None => return Err(Unusable::NotExt4(other_format(head))),
        };
        if superblock.u16(0x38) != MAGIC {
            return Err(Unusable::NotExt4(other_format(head)));
        }
        let (incompat, ro_compat) = (superblock.u32(0x60), superblock.u32(0x64));
        // First, since with a wrong checksum nothing else can be trusted, not even the features.
        if ro_compat & RO_COMPAT_METADATA_CSUM != 0 && superblock.u32(0x3fc) != superblock.checksum() {
            return Err(Unusable::Damaged("the checksum of its superblock is wrong"));
        }
        let unknown = [("incompat", incompat & !INCOMPAT_KNOWN), ("ro_compat", ro_compat & !RO_COMPAT_KNOWN)]
            .into_iter()
            .filter(|(_, bits)| *bits != 0)
            .map(|(set, bits)| match (set, bits) {
                ("ro_compat", RO_COMPAT_READONLY) => "read-only".to_owned(),
                _ => format!("{set} {bits:#x}"),
            })
            .collect::<Vec<_>>();
        if !unknown.is_empty() {
            return Err(Unusable::Features(unknown.join(", ")));
        }
        let state = superblock.u16(0x3a);
        if state & STATE_ERRORS != 0 {
            return Err(Unusable::Errors);
        }
        if state & STATE_CLEAN == 0 || incompat & INCOMPAT_RECOVER != 0 {
            return Err(Unusable::Unclean);
        }
        let log_block_size = superblock.u32(0x18);
        if log_block_size > MAX_LOG_BLOCK_SIZE {
            return Err(Unusable::BlockSize);
        }
        let high = if incompat & INCOMPAT_64BIT != 0 { superblock.u32(0x150) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(superblock.u32(0x4));
        let per_group = [superblock.u32(0x20), superblock.u32(0x28)];
        if blocks == 0 || per_group.contains(&0) {
            return Err(Unusable::Damaged("it has no blocks or no inodes"));
        }
        let block_size = 1024 << log_block_size;
        let size = blocks.checked_mul(block_size);
        let size = Bytes(size.ok_or(Unusable::Damaged("its size is invalid"))?);
        if size > file {
            return Err(Unusable::Short { expected: size, found: file });
        }
        let high = if incompat & INCOMPAT_64BIT != 0 { superblock.u32(0x158) } else { 0 };
        let free = u64::from(high) << 32 | u64::from(superblock.u32(0xc));
        // Programs that make file systems may leave it out.
        let own = Some(u64::from(superblock.u32(0x248))).filter(|own| *own != 0);
        let used = own.and_then(|own| blocks.checked_sub(free)?.checked_sub(own)?.checked_mul(block_size));
        Ok(Self { size, used: used.map(Bytes) })
    }
}

fn other_format(head: &[u8]) -> Option<&'static str> {
    OTHER_FORMATS
        .into_iter()
        .find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(_, _, what)| what)
}

/// The fields are little-endian, at fixed offsets.
struct Superblock<'a>(&'a [u8; LENGTH]);

impl Superblock<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    /// Returns the CRC-32C of everything before the checksum, not inverted at the end.
    fn checksum(&self) -> u32 {
        self.0[..0x3fc].iter().fold(!0, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// The beginning of a file system that mke2fs 1.47.0 made in a file of 64 MiB.
    const REAL: &[u8; HEAD] = include_bytes!("../tests/data/ext4-head.bin");
    const SIZE: Bytes = Bytes::mib(64);

    /// Returns the real file system with these bytes at this offset of its superblock, and a matching checksum.
    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        with_more(REAL, at, bytes)
    }

    fn with_more(head: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = head.to_vec();
        head[START + at..][..bytes.len()].copy_from_slice(bytes);
        let checksum = Superblock(head[START..].try_into().unwrap()).checksum();
        head[START + 0x3fc..].copy_from_slice(&checksum.to_le_bytes());
        head
    }

    #[test]
    fn a_file_system_of_mke2fs_is_usable_also_in_a_larger_file() {
        for file in [SIZE, Bytes::gib(1)] {
            assert_eq!(FileSystem::read(REAL, file).unwrap().size, SIZE);
        }
    }

    #[test]
    fn what_files_take_is_neither_free_nor_taken_by_the_file_system() {
        let used = |own: u32, free: u32| {
            let head = with_more(&with(0xc, &free.to_le_bytes()), 0x248, &own.to_le_bytes());
            FileSystem::read(&head, SIZE).unwrap().used
        };
        let block = 1024 << REAL[START + 0x18];
        let blocks = u32::try_from(SIZE.0 / block).unwrap();
        assert_eq!(used(100, blocks - 110), Some(Bytes(10 * block)));
        assert_eq!(used(0, blocks - 110), None);
        assert_eq!(used(100, blocks), None, "it contradicts itself");
    }

    #[test]
    fn a_file_system_that_guests_cannot_use_is_refused_with_the_reason() {
        let check = |head: &[u8], reason| assert_eq!(FileSystem::read(head, SIZE), Err(reason));
        check(&with(0x38, &[0, 0]), Unusable::NotExt4(None));
        check(&with(0x3a, &[0]), Unusable::Unclean);
        check(&with(0x3a, &[3]), Unusable::Errors);
        check(&with(0x60, &[REAL[START + 0x60] | 4]), Unusable::Unclean);
        check(&with(0x60, &[REAL[START + 0x60] | 8]), Unusable::Features("incompat 0x8".into()));
        check(&with(0x65, &[REAL[START + 0x65] | 0x10]), Unusable::Features("read-only".into()));
        check(&with(0x18, &[6]), Unusable::BlockSize);
        check(&with(0x4, &[0, 0, 0, 0]), Unusable::Damaged("it has no blocks or no inodes"));
        check(&with(0x150, &[0xff; 4]), Unusable::Damaged("its size is invalid"));
        check(&with(0x4, &[1, 0, 1, 0]), Unusable::Short { expected: Bytes(SIZE.0 + 1024), found: SIZE });
    }

    #[test]
    fn a_file_that_is_cut_short_is_refused() {
        let found = Bytes(SIZE.0 - 1);
        assert_eq!(FileSystem::read(REAL, found), Err(Unusable::Short { expected: SIZE, found }));
        assert_eq!(FileSystem::read(&REAL[..HEAD - 1], found), Err(Unusable::NotExt4(None)));
        assert_eq!(FileSystem::read(&[], Bytes(0)), Err(Unusable::NotExt4(None)));
    }

    #[test]
    fn other_formats_are_called_by_their_names() {
        for (at, magic, what) in OTHER_FORMATS {
            let mut head = vec![0; HEAD];
            head[at..at + magic.len()].copy_from_slice(magic);
            let message = FileSystem::read(&head, SIZE).unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
    }

    proptest! {
        #[test]
        fn no_flipped_bit_of_the_superblock_goes_unnoticed(at in START..HEAD, bit in 0..8) {
            // Without the feature bit there is no checksum.
            prop_assume!((at, bit) != (START + 0x65, 2));
            let mut head = *REAL;
            head[at] ^= 1 << bit;
            prop_assert!(FileSystem::read(&head, SIZE).is_err());
        }

        #[test]
        fn nothing_makes_it_panic(at in 0..LENGTH, bytes in prop::collection::vec(any::<u8>(), 0..64), len in 0..=HEAD, file: u64) {
            let bytes = &bytes[..bytes.len().min(LENGTH - at)];
            let head = with(at, bytes);
            let _ = FileSystem::read(&head[..len], Bytes(file));
            if let Ok(found) = FileSystem::read(&head, Bytes(file)) {
                prop_assert!(found.size <= Bytes(file));
            }
        }
    }
}
