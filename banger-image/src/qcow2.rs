//! Writes an empty qcow2 overlay: it takes the guest's writes, and what was not written is read from the disk below.
//!
//! The format is QEMU's `docs/interop/qcow2.txt`, version 3. The overlay does not name the disk below: the VMM gets
//! both, so that the service decides which disk that is.

use banger_proto::size::Bytes;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
/// QEMU's usual cluster of 64 KiB.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Reference counts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;
const HEADER_LENGTH: u32 = 104;
/// What one entry of the level 1 table covers: a cluster of 8-byte entries, each for a cluster of data.
const L1_COVERS: u64 = CLUSTER / 8 * CLUSTER;
/// The clusters of an empty overlay, in order: the header, the refcount table, the first refcount block, and the
/// level 1 table.
const REFCOUNT_TABLE: u64 = 1;
const REFCOUNT_BLOCK: u64 = 2;
const L1_TABLE: u64 = 3;

/// The largest disk: that of an ext4 with blocks of 4 KiB and numbers of 32 bits.
const MAX_DISK: Bytes = Bytes::gib(16 << 10);

/// How much of an overlay's beginning contains the size of its disk.
pub const HEAD: usize = 48;
/// In that, the offsets of the disk's size and of the number of level 1 entries.
const SIZE: usize = 24;
const L1_ENTRIES: usize = 36;

/// Why an overlay cannot grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotGrown {
    /// It was not made by [`empty`], or something else changed it.
    #[error("its layer is damaged")]
    Damaged,
    /// The level 1 table cannot become longer where it is.
    #[error("its layer was created for at most {0}; a new sandbox has no such limit")]
    Full(Bytes),
}

/// Returns the size of the disk in an overlay, from its beginning. `None` if it was not made by [`empty`], or has a disk
/// that ext4 could not fill.
pub fn disk_size(head: &[u8; HEAD]) -> Option<Bytes> {
    let u32_at = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let u64_at = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let size = u64_at(SIZE);
    let known = head[..4] == MAGIC
        && (u32_at(4), u32_at(20)) == (VERSION, CLUSTER_BITS)
        && u64_at(40) == L1_TABLE * CLUSTER
        && u64::from(u32_at(L1_ENTRIES)) == size.div_ceil(L1_COVERS);
    (known && size <= MAX_DISK.0).then_some(Bytes(size))
}

/// Returns the beginning of an overlay with a larger disk, whose size must be a multiple of 512 bytes. A disk of that
/// size or more stays the same. The level 1 table fills whole clusters, and its unused entries are zero, so only its
/// length has to be written.
pub fn grow(mut head: [u8; HEAD], size: Bytes) -> Result<[u8; HEAD], NotGrown> {
    let is = disk_size(&head).ok_or(NotGrown::Damaged)?.0;
    if size.0 <= is {
        return Ok(head);
    }
    let room = l1_clusters(is.div_ceil(L1_COVERS)) * (CLUSTER / 8);
    let entries = size.0.div_ceil(L1_COVERS);
    if entries > room {
        return Err(NotGrown::Full(Bytes(room.saturating_mul(L1_COVERS))));
    }
    head[SIZE..SIZE + 8].copy_from_slice(&size.0.to_be_bytes());
    head[L1_ENTRIES..L1_ENTRIES + 4].copy_from_slice(&(entries as u32).to_be_bytes());
    Ok(head)
}

/// Returns the clusters of a level 1 table with this many entries.
fn l1_clusters(entries: u64) -> u64 {
    entries.saturating_mul(8).div_ceil(CLUSTER).max(1)
}

/// Returns the overlay for a disk of this size, which must be a multiple of 512 bytes.
pub fn empty(size: Bytes) -> Vec<u8> {
    let l1_entries = size.0.div_ceil(L1_COVERS);
    let clusters = L1_TABLE + l1_clusters(l1_entries);
    let mut layer = MAGIC.to_vec();
    layer.extend(VERSION.to_be_bytes());
    // No backing file.
    layer.extend([0; 8 + 4]);
    layer.extend(CLUSTER_BITS.to_be_bytes());
    layer.extend(size.0.to_be_bytes());
    // Not encrypted.
    layer.extend(0u32.to_be_bytes());
    layer.extend((l1_entries as u32).to_be_bytes());
    layer.extend((L1_TABLE * CLUSTER).to_be_bytes());
    layer.extend((REFCOUNT_TABLE * CLUSTER).to_be_bytes());
    layer.extend(1u32.to_be_bytes());
    // No snapshots, and no features of any of the three kinds.
    layer.extend([0; 4 + 8 + 3 * 8]);
    layer.extend(REFCOUNT_ORDER.to_be_bytes());
    layer.extend(HEADER_LENGTH.to_be_bytes());

    layer.resize((REFCOUNT_TABLE * CLUSTER) as usize, 0);
    layer.extend((REFCOUNT_BLOCK * CLUSTER).to_be_bytes());
    layer.resize((REFCOUNT_BLOCK * CLUSTER) as usize, 0);
    layer.extend((0..clusters).flat_map(|_| 1u16.to_be_bytes()));
    layer.resize((clusters * CLUSTER) as usize, 0);
    layer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_where_everything_is() {
        let layer = empty(Bytes::gib(8));
        let number = |at: usize| u64::from_be_bytes(*layer[at..].first_chunk().unwrap_or(&[0; 8]));
        assert_eq!(layer[..8], *b"QFI\xfb\0\0\0\x03");
        assert_eq!((number(8), number(24)), (0, 8 << 30), "it names nothing below");
        assert_eq!(number(32), 16, "entries of the first table");
        assert_eq!((number(40), number(48)), (3 << 16, 1 << 16));
        assert_eq!(number(96), 4 << 32 | 104);
        assert_eq!(number(1 << 16), 2 << 16);
        assert_eq!(layer.len(), 4 << 16);
    }

    #[test]
    fn a_layer_grows_by_its_length_alone_for_as_long_as_its_table_has_room() {
        let head = |size| *empty(size).first_chunk::<HEAD>().unwrap_or(&[0; HEAD]);
        let whole = |layer: Vec<u8>, head: [u8; HEAD]| [&head[..], &layer[HEAD..]].concat();
        let check = |from: Bytes, to: Bytes| {
            let grown = grow(head(from), to).unwrap_or([0; HEAD]);
            assert!(whole(empty(from), grown) == empty(to), "{from} to {to}");
        };
        check(Bytes::mib(512), Bytes::gib(16));
        check(Bytes::gib(8), Bytes(Bytes::gib(9).0 + 4096));
        check(Bytes::gib(8), Bytes::gib(4 << 10));
        check(Bytes::gib(5 << 10), Bytes::gib(8 << 10));
        check(Bytes::gib(8), Bytes::gib(8));
        assert_eq!(grow(head(Bytes::gib(8)), Bytes::gib(1)), Ok(head(Bytes::gib(8))));
        let full = Err(NotGrown::Full(Bytes::gib(4 << 10)));
        assert_eq!(grow(head(Bytes::gib(8)), Bytes::gib((4 << 10) + 1)), full);
        assert_eq!(grow(head(Bytes::gib(8)), Bytes(u64::MAX)), full);
    }

    #[test]
    fn a_foreign_overlay_is_left_alone() {
        let head = *empty(Bytes::gib(8)).first_chunk::<HEAD>().unwrap_or(&[0; HEAD]);
        // The magic number, the version, the clusters, the size, and the length and offset of the level 1 table.
        for at in [0, 7, 23, 24, 36, 40] {
            let mut damaged = head;
            damaged[at] ^= 0x80;
            assert_eq!(grow(damaged, Bytes::gib(16)), Err(NotGrown::Damaged), "byte {at}");
        }
        assert_eq!(grow([0; HEAD], Bytes::gib(16)), Err(NotGrown::Damaged));
        assert_eq!(grow([0xff; HEAD], Bytes::gib(16)), Err(NotGrown::Damaged));
    }

    #[test]
    fn the_largest_disk_has_a_first_table_of_several_clusters() {
        let layer = empty(Bytes::gib(16 << 10));
        assert_eq!(layer.len(), (3 + 4) << 16);
        let counts = &layer[2 << 16..][..16];
        assert_eq!(counts, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0]);
    }
}
