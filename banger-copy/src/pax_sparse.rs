//! Reads sparse files of pax archives, as GNU tar and libarchive write them (GNU tar manual, "Sparse Formats", PAX
//! format 1.0): the extended header has the name and the length, and the content begins with a map of the parts that
//! are data, in decimal numbers terminated by line feeds, padded to a whole block.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use tar::Entry;

use crate::{Error, Result};

const BLOCK: usize = 512;
/// Limit on the parts of a file. With more, the holes are too small to matter.
const MAX_PARTS: usize = 1 << 20;

/// The extended header of a sparse file.
#[derive(Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Its real name; the entry has a generated one.
    pub name: Vec<u8>,
    size: u64,
}

/// Returns the sparse header of an entry, if it has one.
pub fn of<R: Read>(entry: &mut Entry<'_, R>) -> Result<Option<Sparse>> {
    let damaged = || Error::Damaged("a sparse file has no usable extended header".to_owned());
    let Some(extensions) = entry.pax_extensions().map_err(|_| damaged())? else { return Ok(None) };
    let (mut version, mut name, mut size, mut any) = ([None; 2], None, None, false);
    for extension in extensions {
        let extension = extension.map_err(|_| damaged())?;
        let number = || extension.value().ok().and_then(|value| value.parse().ok());
        match extension.key_bytes() {
            b"GNU.sparse.major" => version[0] = number(),
            b"GNU.sparse.minor" => version[1] = number(),
            b"GNU.sparse.name" => name = Some(extension.value_bytes().to_vec()),
            b"GNU.sparse.realsize" => size = number(),
            key if key.starts_with(b"GNU.sparse.") => {}
            _ => continue,
        }
        any = true;
    }
    match (any, version, name, size) {
        (false, ..) => Ok(None),
        (true, [Some(1), Some(0)], Some(name), Some(size)) => Ok(Some(Sparse { name, size })),
        (true, ..) => Err(Error::Damaged(
            "a sparse file is in an old pax format; `tar --sparse-version=1.0` makes one that can be read"
                .to_owned(),
        )),
    }
}

impl Sparse {
    /// Writes the content, which begins with the map. An error without an OS code means a malformed archive.
    pub fn write(&self, mut content: impl Read, mut file: &File) -> io::Result<()> {
        for (offset, length) in self.map(&mut content)? {
            file.seek(SeekFrom::Start(offset))?;
            if io::copy(&mut content.by_ref().take(length), &mut file)? != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        file.set_len(self.size)
    }

    fn map(&self, content: &mut impl Read) -> io::Result<Vec<(u64, u64)>> {
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        let (mut parts, mut block) = (Vec::new(), [0; BLOCK]);
        let (mut digits, mut count, mut offset) = (String::new(), None, None);
        let mut end = 0;
        while count != Some(parts.len()) {
            content.read_exact(&mut block)?;
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits.len() < 20 => {
                        digits.push(char::from(byte));
                        continue;
                    }
                    b'\n' => {}
                    _ => return Err(damaged()),
                }
                let number: u64 = digits.parse().map_err(|_| damaged())?;
                digits.clear();
                match (count, offset.take()) {
                    (None, _) => count = usize::try_from(number).ok().filter(|count| *count <= MAX_PARTS),
                    (Some(_), None) => offset = Some(number),
                    (Some(_), Some(offset)) => {
                        let next =
                            number.checked_add(offset).filter(|next| *next <= self.size && offset >= end);
                        end = next.ok_or_else(damaged)?;
                        parts.push((offset, number));
                    }
                }
                match count {
                    None => return Err(damaged()),
                    // The rest of the block is padding.
                    Some(count) if count == parts.len() => break,
                    Some(_) => {}
                }
            }
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn check(map: &str, content: &[u8], size: u64) -> io::Result<Vec<u8>> {
        let mut bytes = map.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes.write_all(content).unwrap();
        let file = tempfile::tempfile().unwrap();
        Sparse { name: Vec::new(), size }.write(bytes.as_slice(), &file)?;
        let (mut read, mut file) = (Vec::new(), &file);
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut read).unwrap();
        Ok(read)
    }

    #[test]
    fn the_parts_of_a_file_are_where_its_map_says() {
        assert_eq!(check("2\n2\n3\n7\n1\n", b"abcd", 10).unwrap(), b"\0\0abc\0\0d\0\0");
        assert_eq!(check("0\n", b"", 3).unwrap(), b"\0\0\0");
        let many: String = (0..500).map(|n| format!("{n}\n1\n")).collect();
        assert_eq!(check(&format!("500\n{many}"), &[7; 500], 500).unwrap(), [7; 500]);
    }

    #[test]
    fn an_invalid_map_is_refused() {
        for map in [
            "",
            "x\n",
            "1\n",
            "-1\n",
            "2\n5\n1\n3\n1\n",
            "1\n9\n2\n",
            "1\n18446744073709551615\n1\n",
            "99999999\n",
            "1\n0\n99999999999999999999999\n",
        ] {
            assert!(check(map, b"abc", 10).is_err(), "{map:?}");
        }
    }
}
