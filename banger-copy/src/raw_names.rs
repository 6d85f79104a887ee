//! Appends entries whose names and link targets are arbitrary bytes. The `tar` crate treats them as paths: it drops
//! dots and doubled slashes, and refuses some long names that are not UTF-8.

use std::io::{self, Read, Write};

use tar::{Builder, EntryType, Header};

/// Names and targets longer than this are written before their entry (GNU tar manual, "Basic Tar Format").
const SHORT: usize = 100;

/// Appends an entry with this name and, for a link, this target. The header has everything else; its size must match
/// the data.
pub fn append_entry<W: Write>(
    archive: &mut Builder<W>,
    mut header: Header,
    name: &[u8],
    target: Option<&[u8]>,
    data: impl Read,
) -> io::Result<()> {
    if let Some(target) = target {
        long(archive, target, b'K')?;
        header.set_link_name_literal(&target[..target.len().min(SHORT)])?;
    }
    long(archive, name, b'L')?;
    put_name(&mut header, name);
    header.set_cksum();
    archive.append(&header, data)
}

/// Writes a name or target that does not fit into a header, before its entry.
fn long<W: Write>(archive: &mut Builder<W>, bytes: &[u8], kind: u8) -> io::Result<()> {
    if bytes.len() <= SHORT {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    put_name(&mut header, b"././@LongLink");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64 + 1);
    header.set_entry_type(EntryType::new(kind));
    header.set_cksum();
    archive.append(&header, bytes.chain(&[0][..]))
}

fn put_name(header: &mut Header, name: &[u8]) {
    let short = &name[..name.len().min(SHORT)];
    header.as_old_mut().name[..short.len()].copy_from_slice(short);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_targets_keep_their_bytes() {
        let long = b"\xff".repeat(300);
        for target in [&b"a//b/./c/"[..], b"./x", b"..", b"/etc//passwd", &b"./".repeat(90), &long] {
            for name in [&b"n"[..], b"\xfe\n", &long] {
                let mut archive = Builder::new(Vec::new());
                let mut header = Header::new_gnu();
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                append_entry(&mut archive, header, name, Some(target), io::empty()).unwrap();
                let bytes = archive.into_inner().unwrap();
                let mut archive = tar::Archive::new(bytes.as_slice());
                let entry = archive.entries().unwrap().next().unwrap().unwrap();
                assert_eq!(entry.path_bytes(), name);
                assert_eq!(entry.link_name_bytes().unwrap(), target);
            }
        }
    }
}
