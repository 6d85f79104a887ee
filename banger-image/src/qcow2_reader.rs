//! Reads where the clusters of a disk are in a qcow2 overlay that a VMM has written.
//!
//! The guest may have taken over its VMM, so every number is checked, and only what QEMU writes into an overlay of
//! [`super::qcow2::empty`] is accepted: no encryption, no compression, no second data file. Memory is bounded by two
//! tables. The format is QEMU's `docs/interop/qcow2.txt`.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use banger_proto::size::Bytes;

/// The size of a cluster, as [`super::qcow2::empty`] writes it.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
const HEADER: usize = 104;
/// The only incompatible feature that does not change how clusters are read: reference counts may be wrong.
const INCOMPATIBLE_DIRTY: u64 = 1;
/// What one entry of the level 1 table covers.
const SPAN: u64 = CLUSTER / 8 * CLUSTER;
/// Bits 9 to 55 of an entry are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZEROS: u64 = 1;

/// Why an overlay cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what QEMU makes of an overlay of ours.
    #[error("the system disk is damaged: {0}")]
    Damaged(&'static str),
    /// The disk in it is too large.
    #[error("the system disk has {0}, which is too much for an image")]
    TooLarge(Bytes),
    /// It cannot be read.
    #[error("cannot read the system disk")]
    Read(#[from] io::Error),
}

/// Where the bytes of a cluster are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// On the disk below the overlay.
    Below,
    /// Nowhere: they are zeros.
    Zeros,
    /// In the overlay, at this offset.
    At(u64),
}

/// An overlay.
pub struct Overlay<'a> {
    file: &'a File,
    size: u64,
    first_table: Vec<u64>,
}

impl<'a> Overlay<'a> {
    /// Reads the header and the level 1 table of an overlay whose disk has at most `max`.
    pub fn open(file: &'a File, max: Bytes) -> Result<Self, Error> {
        let mut head = [0; HEADER];
        file.read_exact_at(&mut head, 0)?;
        let u32_at = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let u64_at = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if head[..4] != MAGIC || (u32_at(4), u32_at(20)) != (VERSION, CLUSTER_BITS) {
            return Err(Error::Damaged("its overlay has another format"));
        }
        if u32_at(32) != 0 || u64_at(72) & !INCOMPATIBLE_DIRTY != 0 {
            return Err(Error::Damaged("its overlay is encrypted, corrupt, or has unknown features"));
        }
        let size = u64_at(24);
        if size > max.0 {
            return Err(Error::TooLarge(Bytes(size)));
        }
        let entries = size.div_ceil(SPAN);
        if u64::from(u32_at(36)) < entries {
            return Err(Error::Damaged("the first table of its overlay is too short"));
        }
        let first_table = table(file, u64_at(40), usize::try_from(entries).unwrap_or(usize::MAX))?;
        Ok(Self { file, size, first_table })
    }

    /// Returns the size of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the file of the overlay.
    pub fn file(&self) -> &'a File {
        self.file
    }

    /// Calls `visit` for runs of clusters, in order: where they are on the disk, their length, and where their bytes
    /// are. A run is as long as its bytes are in one place. The range begins with a cluster, and what is beyond the end
    /// of the disk is left out.
    pub fn runs<E: From<Error>>(
        &self,
        range: Range<u64>,
        mut visit: impl FnMut(u64, u64, Cluster) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = range.end.min(self.size);
        let mut run: Option<(u64, u64, Cluster)> = None;
        for (index, entry) in self.first_table.iter().enumerate() {
            let first = index as u64 * SPAN;
            let (start, end) = (first.max(range.start), (first + SPAN).min(end));
            if start >= end {
                continue;
            }
            let second = match entry & OFFSET {
                0 => None,
                offset => Some(table(self.file, offset, (CLUSTER / 8) as usize)?),
            };
            let Some(second) = second else {
                run = extend(run, (start, end - start, Cluster::Below), &mut visit)?;
                continue;
            };
            let entries = second.into_iter().skip(((start - first) / CLUSTER) as usize);
            for (at, entry) in (start..end).step_by(CLUSTER as usize).zip(entries) {
                let found = (at, CLUSTER.min(end - at), cluster(entry)?);
                run = extend(run, found, &mut visit)?;
            }
        }
        run.map_or(Ok(()), |(at, length, cluster)| visit(at, length, cluster))
    }
}

/// Makes a run longer, or visits it and begins the next one.
fn extend<E>(
    run: Option<(u64, u64, Cluster)>,
    (at, length, cluster): (u64, u64, Cluster),
    visit: &mut impl FnMut(u64, u64, Cluster) -> Result<(), E>,
) -> Result<Option<(u64, u64, Cluster)>, E> {
    let Some((start, so_far, first)) = run else { return Ok(Some((at, length, cluster))) };
    let continues = match (first, cluster) {
        (Cluster::At(offset), Cluster::At(next)) => offset.checked_add(so_far) == Some(next),
        (first, next) => first == next,
    };
    if continues {
        return Ok(Some((start, so_far + length, first)));
    }
    visit(start, so_far, first)?;
    Ok(Some((at, length, cluster)))
}

fn cluster(entry: u64) -> Result<Cluster, Error> {
    match entry & OFFSET {
        _ if entry & COMPRESSED != 0 => Err(Error::Damaged("its overlay is compressed")),
        _ if entry & READS_AS_ZEROS != 0 => Ok(Cluster::Zeros),
        0 => Ok(Cluster::Below),
        offset => Ok(Cluster::At(offset)),
    }
}

/// Reads a table of this many entries.
fn table(file: &File, offset: u64, entries: usize) -> Result<Vec<u64>, Error> {
    let mut bytes = vec![0; entries * 8];
    file.read_exact_at(&mut bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Damaged("a table is beyond the end of its overlay"),
        _ => Error::Read(error),
    })?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::qcow2;

    const MAX: Bytes = Bytes::gib(1);
    /// Where a level 2 table and clusters are in [`overlay`]: behind the four clusters of an empty one.
    const SECOND: u64 = 4 * CLUSTER;
    const DATA: u64 = 5 * CLUSTER;

    fn overlay(size: Bytes, entries: &[(u64, u64)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&qcow2::empty(size), 0).unwrap();
        file.write_all_at(&(SECOND | 1 << 63).to_be_bytes(), 3 * CLUSTER).unwrap();
        file.set_len(DATA).unwrap();
        for (index, entry) in entries {
            file.write_all_at(&entry.to_be_bytes(), SECOND + index * 8).unwrap();
        }
        file
    }

    fn runs(file: &File) -> Result<Vec<(u64, u64, Cluster)>, Error> {
        let mut runs = Vec::new();
        Overlay::open(file, MAX)?.runs(0..u64::MAX, |at, length, cluster| {
            runs.push((at, length, cluster));
            Ok::<_, Error>(())
        })?;
        Ok(runs)
    }

    #[test]
    fn clusters_are_found_in_runs() {
        let data = |index: u64| (DATA + index * CLUSTER) | 1 << 63;
        let file =
            overlay(Bytes::mib(1), &[(1, data(0)), (2, data(1)), (3, data(9)), (4, 1), (5, data(2) | 1)]);
        let expect = [
            (0, CLUSTER, Cluster::Below),
            (CLUSTER, 2 * CLUSTER, Cluster::At(DATA)),
            (3 * CLUSTER, CLUSTER, Cluster::At(DATA + 9 * CLUSTER)),
            (4 * CLUSTER, 2 * CLUSTER, Cluster::Zeros),
            (6 * CLUSTER, 10 * CLUSTER, Cluster::Below),
        ];
        assert_eq!(runs(&file).unwrap(), expect);
    }

    #[test]
    fn an_empty_overlay_is_one_run_and_a_disk_may_end_within_a_cluster() {
        let file = tempfile::tempfile().unwrap();
        let size = Bytes(Bytes::mib(600).0 + 512);
        file.write_all_at(&qcow2::empty(size), 0).unwrap();
        assert_eq!(runs(&file).unwrap(), [(0, size.0, Cluster::Below)]);
        let file = overlay(Bytes(CLUSTER + 512), &[(1, DATA | 1 << 63)]);
        assert_eq!(runs(&file).unwrap(), [(0, CLUSTER, Cluster::Below), (CLUSTER, 512, Cluster::At(DATA))]);
    }

    #[test]
    fn damaged_overlays_are_refused() {
        let refused = |at: u64, bytes: &[u8]| {
            let file = overlay(Bytes::mib(1), &[]);
            file.write_all_at(bytes, at).unwrap();
            runs(&file).unwrap_err().to_string()
        };
        for (at, bytes, expect) in [
            (0, &b"QFI\xfa"[..], "another format"),
            (7, &[2], "another format"),
            (23, &[9], "another format"),
            (24, &[0x80], "too much for an image"),
            (35, &[1], "encrypted"),
            (79, &[2], "unknown features"),
            (79, &[4], "unknown features"),
            (39, &[0], "too short"),
            (40, &[0x7f; 8], "beyond the end"),
            (3 * CLUSTER, &[0, 0x7f, 0xff, 0xff], "beyond the end"),
            (SECOND, &[0x40], "compressed"),
        ] {
            let message = refused(at, bytes);
            assert!(message.contains(expect), "{at}: {message}");
        }
        assert!(runs(&tempfile::tempfile().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_an_overlay_says_it_is_read_in_order_or_refused(
            changes in prop::collection::vec(
                (prop_oneof![0..HEADER as u64, 3 * CLUSTER..3 * CLUSTER + 64, SECOND..SECOND + 256], any::<u64>()),
                0..20,
            )
        ) {
            let file = overlay(Bytes::mib(1), &[]);
            for (at, value) in changes {
                file.write_all_at(&value.to_be_bytes(), at).unwrap();
            }
            let mut end = 0;
            for (at, length, _) in runs(&file).unwrap_or_default() {
                prop_assert_eq!(at, end);
                end += length;
            }
            prop_assert!(end <= MAX.0);
        }
    }
}
