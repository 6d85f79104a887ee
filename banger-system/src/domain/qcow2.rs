//! An empty layer in QEMU's own format: what a guest writes goes into it, and what it has not written is
//! read from the disk that the layer lies on.
//!
//! The format is QEMU's `docs/interop/qcow2.txt`, version 3. The layer does not name the disk below: the
//! monitor is told of both, so that a layer can only ever lie on what we say.

use banger_proto::size::Bytes;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
/// QEMU's usual cluster of 64 KiB.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Reference counts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;
const HEADER_LENGTH: u32 = 104;
/// What one entry of the first table covers: a cluster of entries of 8 bytes, each for a cluster of data.
const L1_COVERS: u64 = CLUSTER / 8 * CLUSTER;
/// The clusters of an empty layer, in their order: the header, the table of the reference counts, the first
/// block of those, and then the first table of the data.
const REFCOUNT_TABLE: u64 = 1;
const REFCOUNT_BLOCK: u64 = 2;
const L1_TABLE: u64 = 3;

/// The layer for a disk of this size, which must be a multiple of 512 bytes.
pub fn empty(size: Bytes) -> Vec<u8> {
    let l1_entries = size.0.div_ceil(L1_COVERS);
    let clusters = L1_TABLE + (l1_entries * 8).div_ceil(CLUSTER).max(1);
    let mut layer = MAGIC.to_vec();
    layer.extend(VERSION.to_be_bytes());
    // Nothing is named that lies below.
    layer.extend([0; 8 + 4]);
    layer.extend(CLUSTER_BITS.to_be_bytes());
    layer.extend(size.0.to_be_bytes());
    // It is not encrypted.
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
    fn the_largest_disk_has_a_first_table_of_several_clusters() {
        let layer = empty(Bytes::gib(16 << 10));
        assert_eq!(layer.len(), (3 + 4) << 16);
        let counts = &layer[2 << 16..][..16];
        assert_eq!(counts, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0]);
    }
}
