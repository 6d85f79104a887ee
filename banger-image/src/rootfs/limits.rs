//! Limits of an archive. Each is beyond what real images need, and together they bound the memory of a reader.

/// Names in an image. A large image (languages, browsers, a package manager's store) has half a million.
pub const ENTRIES: usize = 1_000_000;
/// Directories in an image. Each takes a block of the file system, which is built in memory.
pub const DIRECTORIES: usize = 150_000;
/// Entries in all archives of an image, including hidden ones.
pub const RECORDS: u64 = 4_000_000;
/// `PATH_MAX` of Linux: a program in the guest could not use a longer path.
pub const PATH: usize = 4095;
/// `NAME_MAX` of Linux.
pub const NAME: usize = 255;
/// Bytes in the target of a symbolic link: one block of ext4, less its end.
pub const TARGET: usize = 4095;
/// Symbolic links in the resolution of one name, as in Linux (`MAXSYMLINKS`).
pub const SYMLINKS: usize = 40;
/// Names of one file, as in ext4 (`EXT4_LINK_MAX`).
pub const LINKS: u32 = 65_000;
/// Bytes of headers before one entry: its names, attributes and map.
pub const EXTENDED: u64 = 1 << 20;
/// Bytes of the extended attributes of one entry. ext4 has room for one block.
pub const ATTRIBUTES: usize = 4096;
/// Extended attributes in the headers of one entry: more than ext4 has room for.
pub const ATTRIBUTE_NAMES: usize = 256;
/// Bytes of the headers for all entries, of which each entry gets a copy.
pub const GLOBALS: usize = ATTRIBUTES;
/// Bytes of the extended attributes of a whole image.
pub const ALL_ATTRIBUTES: usize = 64 << 20;
/// Ranges of data in one sparse file.
pub const SEGMENTS: usize = 50_000;
/// Ranges of data in all sparse files of an image.
pub const ALL_SEGMENTS: usize = 500_000;
/// Bytes of one file, holes included: less than ext4 can address with blocks of 4 KiB, and little enough that the sum
/// of all files does not overflow.
pub const FILE: u64 = 4 << 40;
/// Device numbers of Linux: 12 and 20 bits.
pub const MAJOR: u64 = 0xfff;
/// See [`MAJOR`].
pub const MINOR: u64 = 0xf_ffff;
