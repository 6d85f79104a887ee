//! How an archive is compressed, told by its first bytes. What a media type or the name of a file says does not count:
//! programs that make images get it wrong, and every other program looks at the bytes.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use crate::rootfs::tar;

/// How many of the first bytes tell the packing: a header of a tar archive.
pub const HEAD: usize = 512;

/// RFC 1952, section 2.3.1.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// RFC 8878, section 3.1.1.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878, section 3.1.2: a frame without data, whose first byte is from 0x50 to 0x5f.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Formats that other programs read and banger does not.
const FOREIGN: [(&[u8], &str); 8] = [
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"\x5d\0\0", "lzma"),
    (b"\x1f\x9d", "compress"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
];

/// How a tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// RFC 1952, of one member or more.
    Gzip,
    /// RFC 8878, of one frame or more.
    Zstd,
}

/// The archive is compressed in a way that banger does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is packed by {0}, and banger reads plain archives and those packed by gzip or zstd")]
pub struct Foreign(pub &'static str);

/// Returns how the archive that begins with these bytes is compressed; [`HEAD`] bytes are enough. `None` if they are
/// not the beginning of an archive.
pub fn of(head: &[u8]) -> Result<Option<Packing>, Foreign> {
    // The name of the first file in a tar may begin like anything else.
    if tar::is_beginning(head) {
        return Ok(Some(Packing::Plain));
    }
    if head.starts_with(&GZIP) {
        return Ok(Some(Packing::Gzip));
    }
    let is_skippable =
        head.first().is_some_and(|first| first & 0xf0 == 0x50) && head[1..].starts_with(&SKIPPABLE);
    if head.starts_with(&ZSTD) || is_skippable {
        return Ok(Some(Packing::Zstd));
    }
    match FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, name)) => Err(Foreign(name)),
        None => Ok(None),
    }
}

/// Reads the first bytes of an input, [`HEAD`] or all that there are.
pub fn head(mut input: impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    (&mut input).take(HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// Decompresses all members of a gzip file. Zeros after the last one are padding, as for `gzip` itself: tapes and some
/// programs fill blocks with them.
#[derive(Debug)]
pub struct Gzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Gzip<R> {
    /// Returns a reader of the content.
    pub fn new(input: R) -> Self {
        Self(Some(GzDecoder::new(input)))
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.0 else { return Ok(0) };
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(mut input) = self.0.take().map(GzDecoder::into_inner) else { return Ok(0) };
            match skip_zeros(&mut input)? {
                Rest::Nothing => return Ok(0),
                Rest::Member => self.0 = Some(GzDecoder::new(input)),
                Rest::Garbage => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "there is data after its padding",
                    ));
                }
            }
        }
    }
}

enum Rest {
    Nothing,
    Member,
    Garbage,
}

fn skip_zeros(input: &mut impl BufRead) -> io::Result<Rest> {
    let mut is_padded = false;
    loop {
        let bytes = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        match (bytes.len(), zeros) {
            (0, _) => return Ok(Rest::Nothing),
            (length, zeros) if zeros < length => {
                return Ok(if is_padded || zeros > 0 { Rest::Garbage } else { Rest::Member });
            }
            _ => {}
        }
        is_padded = true;
        input.consume(zeros);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::BufReader;

    use super::*;
    use crate::fixtures::tar::{Tar, pack};

    #[test]
    fn the_first_bytes_tell_how_an_archive_is_packed() {
        let tar = Tar::default().file("x", b"x").end();
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            assert_eq!(of(&pack(&tar, packing)), Ok(Some(packing)));
        }
        let skippable = [&[0x5e, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9][..], &pack(&tar, Packing::Zstd)].concat();
        assert_eq!(of(&skippable), Ok(Some(Packing::Zstd)));
        for name in ["\x1f", "PK\x03\x04", "BZh", "LZIP"] {
            assert_eq!(of(&Tar::default().file(name, b"x").end()), Ok(Some(Packing::Plain)), "{name:?}");
        }
        assert_eq!(of(b"\xfd7zXZ\0\0\x04"), Err(Foreign("xz")));
        assert_eq!(of(b"BZh91AY"), Err(Foreign("bzip2")));
        for other in [&b""[..], b"\x1f", b"\x28\xb5", b"P", &[0; 512], b"text"] {
            assert_eq!(of(other), Ok(None), "{other:?}");
        }
    }

    fn unpacked(bytes: &[u8], buffer: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Gzip::new(BufReader::with_capacity(buffer, bytes)).read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn members_and_padding_are_read_and_nothing_else() {
        let (one, two) = (pack(b"one", Packing::Gzip), pack(b"two", Packing::Gzip));
        for buffer in [1, 7, 8192] {
            let check = |parts: &[&[u8]]| unpacked(&parts.concat(), buffer).map_err(|error| error.kind());
            assert_eq!(check(&[&one]), Ok(b"one".to_vec()));
            assert_eq!(check(&[&one, &two]), Ok(b"onetwo".to_vec()));
            assert_eq!(check(&[&one, &[0; 700]]), Ok(b"one".to_vec()));
            assert!(check(&[&one, &[0; 3], &two]).is_err());
            assert!(check(&[&one, b"garbage"]).is_err());
            assert!(check(&[&one[..one.len() - 1]]).is_err());
        }
    }
}
