//! The binary tables of kmod: radix trees in a file (`libkmod/libkmod-index.h` of kmod).
//!
//! All numbers are 32 bits, big-endian. A file has a magic number, a version, and the offset of the root. The highest
//! bits of an offset say which parts its node has, in this order: a prefix, terminated by a NUL; children, as the
//! first and last byte with a child and an offset for each byte between; values, as their number and for each a
//! priority and text terminated by a NUL.

use std::ops::Range;

const MAGIC: u32 = 0xb007_f457;
const VERSION: u32 = 0x0002_0001;
/// The position of the root's offset.
const ROOT: Range<usize> = 8..12;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;

/// A value and its key. A key's value with the lowest priority comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// ASCII without NUL.
    pub key: String,
    pub priority: u32,
    pub value: String,
}

/// The largest table: offsets have 28 bits. A distribution's kernel has 2 MiB.
const MAX: usize = 64 << 20;

/// Returns the file of a table, or `None` if that would be too large. The caller limits the length of keys, and so
/// the depth of the recursion.
pub(super) fn write(mut entries: Vec<Entry>) -> Option<Vec<u8>> {
    entries.sort();
    entries.dedup();
    let mut file = [MAGIC, VERSION, 0].map(u32::to_be_bytes).concat();
    let root = node(&mut file, &entries, 0, 0);
    file[ROOT].copy_from_slice(&root.to_be_bytes());
    (file.len() <= MAX).then_some(file)
}

/// Writes the node of the keys that are equal before `at`, after its children. Its prefix ends at `end`.
fn node(file: &mut Vec<u8>, entries: &[Entry], at: usize, end: usize) -> u32 {
    if file.len() > MAX {
        return 0;
    }
    let (values, longer) = entries.split_at(entries.partition_point(|entry| entry.key.len() == end));
    let byte = |entry: &Entry| entry.key.as_bytes()[end];
    let children: Vec<(u8, u32)> = longer
        .chunk_by(|one, other| byte(one) == byte(other))
        .map(|group| (byte(&group[0]), node(file, group, end + 1, common(group, end + 1))))
        .collect();

    let mut offset = u32::try_from(file.len()).unwrap_or(u32::MAX);
    if end > at {
        offset |= HAS_PREFIX;
        file.extend(&entries[0].key.as_bytes()[at..end]);
        file.push(0);
    }
    if let (Some((first, _)), Some((last, _))) = (children.first(), children.last()) {
        offset |= HAS_CHILDREN;
        file.extend([first, last]);
        let mut rest = children.iter().peekable();
        for byte in *first..=*last {
            let child = rest.next_if(|(found, _)| *found == byte).map_or(0, |(_, child)| *child);
            file.extend(child.to_be_bytes());
        }
    }
    if !values.is_empty() {
        offset |= HAS_VALUES;
        file.extend(u32::try_from(values.len()).unwrap_or(u32::MAX).to_be_bytes());
        for value in values {
            file.extend(value.priority.to_be_bytes());
            file.extend(value.value.as_bytes());
            file.push(0);
        }
    }
    offset
}

/// Returns the end of the common prefix of sorted keys, which is at least `at`.
fn common(entries: &[Entry], at: usize) -> usize {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return at };
    let (first, last) = (&first.key.as_bytes()[at..], &last.key.as_bytes()[at..]);
    at + first.iter().zip(last).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// Reads all entries of a file.
    pub(in crate::kernel) fn read(file: &[u8]) -> Vec<Entry> {
        assert_eq!((number(file, 0), number(file, 4)), (MAGIC, VERSION));
        let mut entries = Vec::new();
        walk(file, number(file, 8), String::new(), &mut entries);
        entries.sort();
        entries
    }

    fn number(file: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(file[at..at + 4].try_into().unwrap())
    }

    fn text(file: &[u8], at: &mut usize) -> String {
        let length = file[*at..].iter().position(|&byte| byte == 0).unwrap();
        let text = String::from_utf8(file[*at..*at + length].to_vec()).unwrap();
        *at += length + 1;
        text
    }

    fn walk(file: &[u8], offset: u32, mut key: String, entries: &mut Vec<Entry>) {
        let mut at = (offset & 0x0fff_ffff) as usize;
        if offset & HAS_PREFIX != 0 {
            key += &text(file, &mut at);
        }
        if offset & HAS_CHILDREN != 0 {
            let (first, last) = (file[at], file[at + 1]);
            at += 2;
            for byte in first..=last {
                let child = number(file, at);
                at += 4;
                if child != 0 {
                    walk(file, child, format!("{key}{}", byte as char), entries);
                }
            }
        }
        if offset & HAS_VALUES != 0 {
            let count = number(file, at);
            at += 4;
            for _ in 0..count {
                let priority = number(file, at);
                at += 4;
                entries.push(Entry { key: key.clone(), priority, value: text(file, &mut at) });
            }
        }
    }

    fn entry(key: &str, priority: u32, value: &str) -> Entry {
        Entry { key: key.to_owned(), priority, value: value.to_owned() }
    }

    #[test]
    fn a_table_has_these_bytes() {
        let file = write(vec![entry("dm", 1, "x"), entry("dma", 2, "y")]).unwrap();
        let expect: &[&[u8]] = &[
            b"\xb0\x07\xf4\x57\x00\x02\x00\x01\x60\x00\x00\x25",
            // dma: one value.
            b"\0\0\0\x01\0\0\0\x02y\0",
            // dm: a prefix, a child `a`, one value.
            b"m\0aa\x40\0\0\x0c\0\0\0\x01\0\0\0\x01x\0",
            // The root has one child.
            b"dd\xe0\0\0\x16",
        ];
        let mut expect = expect.concat();
        let root = 0x2000_0000u32 | u32::try_from(expect.len() - 6).unwrap();
        expect[ROOT].copy_from_slice(&root.to_be_bytes());
        assert_eq!(file, expect);
    }

    #[test]
    fn an_empty_table_has_a_root() {
        assert_eq!(read(&write(Vec::new()).unwrap()), []);
    }

    proptest! {
        #[test]
        fn what_was_written_can_be_read(entries in proptest::collection::vec(("[a-c:*]{0,6}", 0..3u32, "[xy]{0,2}"), 0..40)) {
            let mut entries: Vec<_> = entries.iter().map(|(key, priority, value)| entry(key, *priority, value)).collect();
            let file = write(entries.clone()).unwrap();
            entries.sort();
            entries.dedup();
            prop_assert_eq!(read(&file), entries);
        }
    }
}
