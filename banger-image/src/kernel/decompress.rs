//! Decompresses kernels and modules in the formats that distributions use.
//!
//! All decoders are safe Rust and bounded: in output by the caller's limit, in memory by [`MAX_WINDOW`].

use std::{fmt, io, io::Read};

use banger_proto::size::Bytes;

/// The largest dictionary that a stream may ask for: `scripts/xz_wrap.sh` of the kernel uses 128 MiB for
/// kernel images, and `zstd -22 --ultra` the same. It is allocated only as the output needs it.
const MAX_WINDOW: usize = 128 << 20;

/// The initial capacity of the output, which grows as bytes arrive.
const FIRST_ROOM: usize = 1 << 20;

/// The size of every block but the last in lz4's legacy format (`lz4_Frame_format.md`, "Legacy frame").
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// A compression format that Linux accepts for its image or its modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Compression {
    Bzip2,
    Gzip,
    Lz4,
    Lzma,
    Lzo,
    Xz,
    Zstd,
}

/// Why a stream was not decompressed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// We have no decoder for this format.
    #[error("cannot read {0} compression; gzip, xz, zstd and lz4 are supported")]
    Unsupported(Compression),
    /// The content is larger than the caller accepts.
    #[error("the {compression} data unpack to more than {limit}")]
    TooLarge {
        /// The format of the stream.
        compression: Compression,
        /// The caller's limit.
        limit: Bytes,
    },
    /// The stream is damaged or cut off.
    #[error("the {compression} data are damaged")]
    Damaged {
        /// The format of the stream.
        compression: Compression,
        /// The decoder's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Compression {
    /// Recognises the format by the first bytes.
    pub fn of(stream: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Self); 7] = [
            (b"\x1f\x8b", Self::Gzip),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (b"\x02\x21\x4c\x18", Self::Lz4),
            (b"BZh", Self::Bzip2),
            (b"\x5d\0\0", Self::Lzma),
            (b"\x89LZO\0\r\n\x1a\n", Self::Lzo),
        ];
        magics.into_iter().find(|(magic, _)| stream.starts_with(magic)).map(|(_, compression)| compression)
    }

    /// Decompresses one `stream` of this format. Bytes after its end are ignored.
    ///
    /// lz4 is the exception: its legacy format has no end, so nothing may follow the stream.
    pub fn unpack(self, stream: &[u8], limit: Bytes) -> Result<Vec<u8>, Error> {
        let mut output = Output { bytes: Vec::new(), limit: usize::try_from(limit.0).unwrap_or(usize::MAX) };
        let unpacked = match self {
            Self::Gzip => output.read_from(flate2::read::GzDecoder::new(stream)),
            Self::Zstd => zstd(stream, &mut output),
            Self::Xz => xz(stream, &mut output),
            Self::Lz4 => lz4_legacy(stream, &mut output),
            Self::Bzip2 | Self::Lzma | Self::Lzo => return Err(Error::Unsupported(self)),
        };
        match unpacked {
            Ok(()) => Ok(output.bytes),
            Err(Stop::Full) => Err(Error::TooLarge { compression: self, limit }),
            Err(Stop::Damaged(source)) => Err(Error::Damaged { compression: self, source }),
        }
    }
}

/// Decompresses the first bytes of a gzip stream, or all if there are fewer.
pub fn beginning_of_gzip(stream: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let decoder = flate2::read::GzDecoder::new(stream);
    match decoder.take(length as u64).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Error::Damaged { compression: Compression::Gzip, source: error.into() }),
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        })
    }
}

/// Why a decoder stopped early.
enum Stop {
    Full,
    Damaged(Box<dyn std::error::Error + Send + Sync>),
}

impl Stop {
    fn damaged(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Damaged(source.into())
    }
}

/// The decompressed bytes, never more than `limit`.
struct Output {
    bytes: Vec<u8>,
    limit: usize,
}

impl Output {
    fn read_from(&mut self, decoder: impl Read) -> Result<(), Stop> {
        let one_too_many = (self.limit as u64).saturating_add(1);
        decoder.take(one_too_many).read_to_end(&mut self.bytes).map_err(Stop::damaged)?;
        if self.bytes.len() > self.limit { Err(Stop::Full) } else { Ok(()) }
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(Stop::Full);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

fn zstd(stream: &[u8], output: &mut Output) -> Result<(), Stop> {
    let window = MAX_WINDOW as u64;
    let mut decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(stream, window)
        .map_err(|error| Stop::damaged(error.to_string()))?;
    output.read_from(&mut decoder)?;
    let decoder = decoder.into_frame_decoder();
    match decoder.get_checksum_from_data() {
        Some(expected) if decoder.get_calculated_checksum() != Some(expected) => {
            Err(Stop::damaged("the checksum does not match"))
        }
        _ => Ok(()),
    }
}

fn xz(stream: &[u8], output: &mut Output) -> Result<(), Stop> {
    let mut decoder = xz4rust::XzDecoder::in_heap_with_alloc_dict_size(0, MAX_WINDOW);
    let mut room = vec![0; FIRST_ROOM];
    let mut consumed = 0;
    loop {
        let input = stream.get(consumed..).unwrap_or_default();
        let progress = decoder.decode(input, &mut room).map_err(Stop::damaged)?;
        consumed += progress.input_consumed();
        output.extend(room.get(..progress.output_produced()).unwrap_or_default())?;
        if progress.is_end_of_stream() {
            return Ok(());
        }
        if !progress.made_progress() {
            return Err(Stop::damaged(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
    }
}

/// Decompresses the only lz4 format that the kernel's build and its decoder know: a magic number, then blocks that are
/// preceded by their compressed size, until the end of the data.
fn lz4_legacy(stream: &[u8], output: &mut Output) -> Result<(), Stop> {
    let mut rest = stream.get(4..).unwrap_or_default();
    let mut room = vec![0; LZ4_LEGACY_BLOCK];
    while !rest.is_empty() {
        let cut_off = || Stop::damaged(io::Error::from(io::ErrorKind::UnexpectedEof));
        let (size, after_size) = rest.split_first_chunk().ok_or_else(cut_off)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (block, after_block) = after_size.split_at_checked(size).ok_or_else(cut_off)?;
        let length = lz4_flex::block::decompress_into(block, &mut room).map_err(Stop::damaged)?;
        output.extend(room.get(..length).unwrap_or_default())?;
        rest = after_block;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::kernel::pack;

    const SUPPORTED: [Compression; 4] =
        [Compression::Gzip, Compression::Lz4, Compression::Xz, Compression::Zstd];

    #[test]
    fn each_format_is_recognised_and_unpacked() {
        let content: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for compression in SUPPORTED {
            let stream = pack(compression, &content);
            assert_eq!(Compression::of(&stream), Some(compression));
            assert!(compression.unpack(&stream, Bytes::mib(2)).unwrap() == content, "{compression}");
        }
    }

    #[test]
    fn a_stream_cut_off_anywhere_is_damaged() {
        let content: Vec<u8> = (0..3_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for compression in SUPPORTED {
            let stream = pack(compression, &content);
            // lz4's legacy format has no end mark: cut off between two blocks it is whole.
            let shortest = if compression == Compression::Lz4 { 5 } else { 0 };
            for length in shortest..stream.len() {
                let unpacked = compression.unpack(&stream[..length], Bytes::mib(1));
                assert!(
                    matches!(unpacked, Err(Error::Damaged { .. })),
                    "{compression} {length}: {unpacked:?}"
                );
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; 3 << 20];
        for compression in SUPPORTED {
            let bomb = pack(compression, &zeros);
            let exact = compression.unpack(&bomb, Bytes::mib(3));
            assert_eq!(exact.unwrap().len(), 3 << 20);
            let unpacked = compression.unpack(&bomb, Bytes((3 << 20) - 1));
            assert!(matches!(unpacked, Err(Error::TooLarge { .. })), "{compression}: {unpacked:?}");
        }
    }

    #[test]
    fn formats_without_a_decoder_are_named() {
        for (magic, name) in
            [(b"BZh9".as_slice(), "bzip2"), (b"\x5d\0\0\x80", "lzma"), (b"\x89LZO\0\r\n\x1a\n", "lzo")]
        {
            let error = Compression::of(magic).unwrap().unpack(magic, Bytes::mib(1)).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(Compression::of(b"MZ"), None);
    }

    /// Uses what the kernel's build runs, see `scripts/Makefile.lib` and `scripts/xz_wrap.sh`.
    #[test]
    fn the_tools_of_the_kernels_build_are_understood() {
        let content: Vec<u8> = (0..1_500_000u32).map(|n| (n.wrapping_mul(n >> 3) >> 11) as u8).collect();
        let tools: [(Compression, &str, &[&str]); 5] = [
            (Compression::Gzip, "gzip", &["-n", "-9"]),
            (Compression::Xz, "xz", &["--check=crc32", "--x86", "--lzma2=,dict=32MiB"]),
            (Compression::Xz, "xz", &["--check=crc32", "--lzma2=dict=1MiB"]),
            (Compression::Zstd, "zstd", &["-q", "-22", "--ultra"]),
            (Compression::Lz4, "lz4", &["-l", "-9"]),
        ];
        for (compression, tool, arguments) in tools {
            let child =
                Command::new(tool).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let Ok(mut child) = child else {
                println!("skipped {tool}: it is not installed");
                continue;
            };
            let mut input = child.stdin.take().unwrap();
            let stream = std::thread::scope(|scope| {
                scope.spawn(|| io::Write::write_all(&mut input, &content).map(|()| drop(input)).unwrap());
                child.wait_with_output().unwrap().stdout
            });
            assert_eq!(Compression::of(&stream), Some(compression), "{tool} {arguments:?}");
            assert!(compression.unpack(&stream, Bytes::mib(2)).unwrap() == content, "{tool} {arguments:?}");
        }
    }

    proptest! {
        #[test]
        fn damaged_streams_never_panic_and_never_exceed_the_limit(
            which in 0..4usize,
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8),
            content in proptest::collection::vec(0..4u8, 0..4096),
        ) {
            let compression = SUPPORTED[which];
            let mut stream = pack(compression, &content);
            for (at, value) in flips {
                let at = at.index(stream.len());
                stream[at] = value;
            }
            if let Ok(unpacked) = compression.unpack(&stream, Bytes::kib(8)) {
                prop_assert!(unpacked.len() <= 8 << 10);
            }
        }
    }
}
