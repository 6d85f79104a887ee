//! Sparse files: the maps of their data, in the four formats of GNU tar (its manual, "Sparse Formats").

use super::{Error, limits};

/// The block size of the file system, and so the unit of holes.
pub const BLOCK: u64 = 4096;

/// A range of data in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub at: u64,
    /// How many bytes it has.
    pub length: u64,
}

impl Segment {
    fn end(self) -> u64 {
        self.at + self.length
    }
}

/// Checks the map of a file of this size, of which the archive has `data` bytes, and drops empty ranges.
pub(super) fn check(
    name: &[u8],
    segments: Vec<Segment>,
    size: u64,
    stored: u64,
) -> Result<Vec<Segment>, Error> {
    let refuse = |why: &str| Err(Error::entry(name, why));
    if size > limits::FILE {
        return refuse("is larger than a file can be");
    }
    let (mut end, mut sum) = (0, 0u64);
    for segment in &segments {
        let fits = segment.at.checked_add(segment.length).is_some_and(|end| end <= size);
        if !fits || segment.at < end {
            return refuse("has an invalid map of its data");
        }
        end = segment.end();
        sum += segment.length;
    }
    if sum != stored {
        return refuse("has a map of its data that does not fit the data");
    }
    if segments.len() > limits::SEGMENTS {
        return refuse("has too many pieces of data");
    }
    Ok(segments.into_iter().filter(|segment| segment.length > 0).collect())
}

/// Extends ranges to whole blocks. The last one may end with the file.
pub fn blocks(segments: &[Segment], size: u64) -> Vec<Segment> {
    let mut blocks: Vec<Segment> = Vec::new();
    for segment in segments {
        let at = segment.at / BLOCK * BLOCK;
        let end = segment.end().next_multiple_of(BLOCK).min(size);
        match blocks.last_mut() {
            Some(last) if at <= last.end() => last.length = end - last.at,
            _ => blocks.push(Segment { at, length: end - at }),
        }
    }
    blocks
}

/// Parses a map in the value of a keyword: `offset,length,offset,length…`.
pub(super) fn in_a_line(text: &[u8]) -> Option<Vec<Segment>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    pairs(text.split(|&byte| byte == b',').map(decimal))
}

/// Parses a number of ranges and their map, with one item per number.
pub(super) fn pairs(mut numbers: impl Iterator<Item = Option<u64>>) -> Option<Vec<Segment>> {
    let mut segments = Vec::new();
    while let Some(at) = numbers.next() {
        segments.push(Segment { at: at?, length: numbers.next()?? });
    }
    Some(segments)
}

/// Parses a decimal number.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(u64, u64)]) -> Vec<Segment> {
        pairs.iter().map(|&(at, length)| Segment { at, length }).collect()
    }

    #[test]
    fn a_map_must_be_in_order_and_fit() {
        let check = |pairs, size, stored| check(b"f", map(pairs), size, stored);
        assert_eq!(check(&[(0, 4), (8, 0), (8, 2)], 10, 6).unwrap(), map(&[(0, 4), (8, 2)]));
        for (pairs, size, stored) in [
            (&[(0, 4), (3, 2)][..], 10, 6),
            (&[(8, 3)], 10, 3),
            (&[(u64::MAX, 2)], 10, 2),
            (&[(0, 4)], 10, 5),
            (&[], limits::FILE + 1, 0),
        ] {
            assert!(check(pairs, size, stored).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn stretches_become_whole_blocks() {
        let check = |pairs, size, expect| assert_eq!(blocks(&map(pairs), size), map(expect), "{pairs:?}");
        check(&[], 100, &[]);
        check(&[(0, 10)], 10, &[(0, 10)]);
        check(&[(5000, 10)], 20_000, &[(4096, 4096)]);
        check(&[(0, 10), (4095, 2)], 20_000, &[(0, 8192)]);
        check(&[(0, 10), (8192, 10)], 8202, &[(0, 4096), (8192, 10)]);
    }

    #[test]
    fn maps_are_read_from_a_line() {
        assert_eq!(in_a_line(b"0,512,4096,1"), Some(map(&[(0, 512), (4096, 1)])));
        assert_eq!(in_a_line(b""), Some(vec![]));
        for wrong in ["0", "0,", ",", "a,1", "0,-1", "0,1,", "99999999999999999999,1"] {
            assert_eq!(in_a_line(wrong.as_bytes()), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn blocks_cover_the_data_and_begin_at_blocks(
            gaps in prop::collection::vec((0..20_000u64, 1..20_000u64), 0..20), tail in 0..20_000u64,
        ) {
            let mut at = 0;
            let mut segments = Vec::new();
            for (gap, length) in gaps {
                segments.push(Segment { at: at + gap, length });
                at += gap + length;
            }
            let size = at + tail;
            let blocks = blocks(&segments, size);
            for (index, block) in blocks.iter().enumerate() {
                prop_assert!(block.at % BLOCK == 0 && block.length > 0 && block.end() <= size);
                prop_assert!(block.length % BLOCK == 0 || index + 1 == blocks.len());
            }
            for pair in blocks.windows(2) {
                prop_assert!(pair[0].end() < pair[1].at);
            }
            for segment in segments {
                prop_assert!(blocks.iter().any(|b| b.at <= segment.at && segment.end() <= b.end()));
            }
        }
    }
}
