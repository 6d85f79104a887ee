//! Writes headers of a tar archive in the POSIX format (`pax`), which has room for everything.

use super::entry::{Entry, Special, What};

/// The block size of an archive.
pub const BLOCK: u64 = 512;
/// The end of an archive.
pub const END: [u8; 1024] = [0; 1024];
/// The length of the name field, and of the link target field.
const NAME: usize = 100;
/// The largest number in a field of eight octal digits, the last of which is a terminator.
const SMALL: u64 = 0o7_777_777;
/// The same for twelve digits.
const LARGE: u64 = 0o77_777_777_777;

/// Returns the headers of an entry. The content of a file follows, padded to whole blocks.
pub fn head(entry: &Entry) -> Vec<u8> {
    let (kind, target, size, device) = match &entry.what {
        What::Directory => (b'5', &[][..], 0, None),
        What::File(shape) => (b'0', &[][..], shape.size, None),
        What::Symlink(target) => (b'2', target.as_slice(), 0, None),
        What::Link(target) => (b'1', target.as_slice(), 0, None),
        What::Special(Special::Character { major, minor }) => (b'3', &[][..], 0, Some((*major, *minor))),
        What::Special(Special::Block { major, minor }) => (b'4', &[][..], 0, Some((*major, *minor))),
        What::Special(Special::Fifo) => (b'6', &[][..], 0, None),
    };
    let (seconds, nanoseconds) = entry.meta.modified;
    let mut records = Vec::new();
    if entry.path.len() > NAME {
        record(&mut records, b"path", &entry.path);
    }
    if target.len() > NAME {
        record(&mut records, b"linkpath", target);
    }
    if size > LARGE {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    for (key, number) in [(&b"uid"[..], entry.meta.user), (b"gid", entry.meta.group)] {
        if u64::from(number) > SMALL {
            record(&mut records, key, number.to_string().as_bytes());
        }
    }
    let whole = u64::try_from(seconds).ok().filter(|seconds| *seconds <= LARGE);
    if nanoseconds != 0 || whole.is_none() {
        record(&mut records, b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in &entry.attributes {
        record(&mut records, &[b"SCHILY.xattr.", escaped(name).as_slice()].concat(), value);
    }
    let mut bytes = Vec::new();
    if !records.is_empty() {
        let extended = Fields { kind: b'x', size: records.len() as u64, mode: 0o644, ..Fields::default() };
        bytes.extend(extended.block(b"pax", b""));
        bytes.extend(&records);
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    }
    let fields = Fields {
        kind,
        size: if size > LARGE { 0 } else { size },
        mode: entry.meta.mode,
        user: entry.meta.user,
        group: entry.meta.group,
        modified: whole.unwrap_or_default(),
        device,
    };
    bytes.extend(fields.block(&entry.path, target));
    bytes
}

/// Returns the header of an ordinary file of root, with the time 0. It is always one block.
pub fn file_header(path: &str, size: u64) -> [u8; BLOCK as usize] {
    let mut block = Fields { kind: b'0', size: size.min(LARGE), mode: 0o644, ..Fields::default() }
        .block(path.as_bytes(), b"");
    if size > LARGE {
        // GNU's format: the highest bit marks a base-256 number.
        let mut field = [0; 12];
        field[0] = 0x80;
        field[4..].copy_from_slice(&size.to_be_bytes());
        block[124..136].copy_from_slice(&field);
        seal(&mut block);
    }
    block
}

#[derive(Default)]
struct Fields {
    kind: u8,
    size: u64,
    mode: u16,
    user: u32,
    group: u32,
    modified: u64,
    device: Option<(u32, u32)>,
}

impl Fields {
    /// Returns the `ustar` header. Values that do not fit are in records before it.
    fn block(&self, path: &[u8], target: &[u8]) -> [u8; BLOCK as usize] {
        let mut block = [0; BLOCK as usize];
        let fit = |number: u32| if u64::from(number) > SMALL { 0 } else { u64::from(number) };
        let text = |field: &mut [u8], text: &[u8]| {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
        };
        text(&mut block[..NAME], path);
        octal(&mut block[100..108], u64::from(self.mode));
        octal(&mut block[108..116], fit(self.user));
        octal(&mut block[116..124], fit(self.group));
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], self.modified);
        block[156] = self.kind;
        text(&mut block[157..157 + NAME], target);
        block[257..265].copy_from_slice(b"ustar\x0000");
        let (major, minor) = self.device.unwrap_or_default();
        octal(&mut block[329..337], fit(major));
        octal(&mut block[337..345], fit(minor));
        seal(&mut block);
        block
    }
}

/// Writes the checksum into the header.
fn seal(block: &mut [u8; BLOCK as usize]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn octal(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{number:0digits$o}").as_bytes());
}

/// Appends a record: its own length in decimal, key and value.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    records.extend(length.to_string().as_bytes());
    records.push(b' ');
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

/// Formats a time in seconds with a fraction.
fn time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds < 0, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (false, _) => format!("{seconds}.{nanoseconds:09}"),
        // Towards zero: the fraction of -1.5 counts from -1, not from -2.
        (true, _) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

/// Escapes the name of an attribute as GNU tar does, since it must not contain the sign that ends a key.
fn escaped(name: &[u8]) -> Vec<u8> {
    let one = |byte: &u8| match byte {
        b'=' => b"%3D".to_vec(),
        b'%' => b"%25".to_vec(),
        other => vec![*other],
    };
    name.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::rootfs::{
        entry::{Meta, Shape},
        tar::Tar,
    };

    fn read(bytes: &[u8]) -> Entry {
        Tar::new(bytes).next_entry().unwrap().unwrap()
    }

    fn check(entry: Entry) {
        let mut bytes = head(&entry);
        assert_eq!(bytes.len() % 512, 0);
        bytes.extend(END);
        assert_eq!(read(&bytes), entry);
    }

    fn entry(path: &[u8], what: What) -> Entry {
        let meta = Meta { mode: 0o4755, user: 0, group: 5, modified: (1_700_000_000, 0) };
        Entry { path: path.to_vec(), what, meta, attributes: Vec::new() }
    }

    #[test]
    fn what_was_written_can_be_read_back() {
        for what in [
            What::Directory,
            What::Symlink(b"../x".to_vec()),
            What::Symlink([b'y'; 3000].to_vec()),
            What::Link(b"a".to_vec()),
            What::Special(Special::Character { major: 4, minor: 64 }),
            What::Special(Special::Block { major: 259, minor: 1_048_575 }),
            What::Special(Special::Fifo),
        ] {
            check(entry(b"d/e", what));
        }
        check(entry(&[b'z'; 101], What::Directory));
        check(entry(b"\xff\nodd", What::Directory));
        for modified in [(-1, 0), (-2, 500_000_000), (1 << 33, 1), (1 << 34, 0), (0, 999_999_999)] {
            let meta = Meta { modified, user: u32::MAX - 1, group: 1 << 22, mode: 0 };
            check(Entry { meta, ..entry(b"t", What::Directory) });
        }
        let attributes =
            vec![(b"security.capability".to_vec(), vec![0; 90]), (b"user.a=b%".to_vec(), b"x\0\ny".to_vec())];
        check(Entry { attributes, ..entry(b"f", What::Directory) });
    }

    #[test]
    fn a_file_of_any_size_has_its_header() {
        for size in [0, 1, LARGE, LARGE + 1, 60 << 30] {
            let shape = Shape { size, segments: None };
            let bytes = head(&entry(b"f", What::File(shape.clone())));
            assert_eq!(read(&bytes).what, What::File(shape.clone()));
            assert_eq!(read(&file_header("blobs/x", size)).what, What::File(shape));
        }
    }

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        for length in 0..2000 {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; length]);
            let text = String::from_utf8(records.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), records.len());
        }
    }

    proptest! {
        #[test]
        fn names_and_attributes_of_any_bytes_are_read_back(
            path in "[^\0/]{1,200}", name in "[^\0]{1,60}", value: Vec<u8>, seconds in -(1i64 << 31)..1 << 34,
            nanoseconds in 0u32..1_000_000_000,
        ) {
            let attributes = vec![(format!("user.{name}").into_bytes(), value)];
            let meta = Meta { mode: 0o644, user: 7, group: 7, modified: (seconds, nanoseconds) };
            check(Entry { path: path.into_bytes(), what: What::Directory, meta, attributes });
        }
    }
}
