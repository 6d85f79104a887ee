//! Reads an archive from standard input, and decompresses it.

use std::io::{self, Chain, Cursor, Read};

use crate::{
    error::{Error, Result},
    guest::agent::Call,
    ui::progress::{Meter, Metered},
};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const BZIP2: &[u8] = b"BZh";
/// Bytes needed to detect the compression.
const MAGIC: u64 = 6;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Sends the decompressed archive.
pub fn send(from: &mut impl Read, to: &mut Call, meter: &Meter) -> Result<()> {
    let failed = |source| Error::io("read the archive on standard input", source);
    let mut archive = decompressed(Metered { from, meter })?;
    let mut piece = vec![0; CHUNK];
    loop {
        match archive.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => to.send(&piece[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(failed(source)),
        }
    }
}

type Sniffed<R> = Chain<Cursor<Vec<u8>>, R>;

/// Detects the compression from the first bytes, and returns the decompressed archive.
fn decompressed<'a, R: Read + 'a>(mut from: R) -> Result<Box<dyn Read + 'a>> {
    let failed = |source| Error::io("read the archive on standard input", source);
    let mut magic = Vec::new();
    from.by_ref().take(MAGIC).read_to_end(&mut magic).map_err(failed)?;
    let is = |kind: &[u8]| magic.starts_with(kind);
    let unknown = |name: &str, program: &str| {
        Err(Error::Refused(format!("cannot decompress the archive: it is compressed with {name}"))
            .with_hint(format!("`{program} -dc FILE | banger vm cp - SANDBOX:PATH` decompresses it first.")))
    };
    let (gzip, zstd, xz, bzip2) = (is(GZIP), is(ZSTD), is(XZ), is(BZIP2));
    let whole: Sniffed<R> = Cursor::new(magic).chain(from);
    match (gzip, zstd) {
        (true, _) => Ok(Box::new(flate2::read::MultiGzDecoder::new(whole))),
        (_, true) => Ok(Box::new(zstd::stream::read::Decoder::new(whole).map_err(failed)?)),
        _ if xz => unknown("xz", "xz"),
        _ if bzip2 => unknown("bzip2", "bzip2"),
        _ => Ok(Box::new(whole)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn an_archive_is_decompressed_by_its_first_bytes() {
        let text = b"an archive".repeat(10_000);
        let (first, second) = text.split_at(20_000);
        for compressed in [
            text.clone(),
            gzip(&text),
            [gzip(first), gzip(second)].concat(),
            zstd::encode_all(text.as_slice(), 1).unwrap(),
        ] {
            let mut bytes = Vec::new();
            decompressed(compressed.as_slice()).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == text);
        }
        let mut bytes = Vec::new();
        decompressed(&b""[..]).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes.is_empty());
    }

    #[test]
    fn truncated_and_unsupported_archives_are_refused() {
        let whole = gzip(&b"an archive".repeat(10_000));
        let cut = &whole[..whole.len() - 9];
        assert!(decompressed(cut).unwrap().read_to_end(&mut Vec::new()).is_err());
        let xz = decompressed(&[XZ, b"more"].concat()[..]).err().unwrap();
        assert_eq!(xz.to_string(), "cannot decompress the archive: it is compressed with xz");
    }
}
