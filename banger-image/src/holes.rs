//! Sparse files: where their data is, and how a copy keeps the holes of the original.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

/// How much is read at once.
pub const CHUNK: usize = 1 << 20;
/// What is left out when it holds nothing but zeros: the block of the usual file systems.
pub const BLOCK: usize = 4096;

/// The next stretch at or after `at` that may hold data, of a file of `len` bytes.
pub fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that cannot tell.
        Err(Errno::INVAL) => at,
        Err(error) => return Err(error.into()),
    };
    if start >= len {
        return Ok(None);
    }
    let end = match seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(len),
        Err(Errno::INVAL | Errno::NXIO) => len,
        Err(error) => return Err(error.into()),
    };
    // Somebody may change the file meanwhile, and a stretch of nothing would never end.
    Ok(Some(start..if end > start { end } else { len }))
}

/// A stretch in pieces of at most [`CHUNK`]: where each begins, and its length.
pub fn chunks(range: Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let end = range.end;
    range.step_by(CHUNK).map(move |at| (at, CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK))))
}

/// Writes `data` at `at`, but for the blocks that are all zeros, which a new file has by itself.
pub fn write_sparse(to: &File, data: &[u8], at: u64) -> io::Result<()> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut written = 0;
    for (index, block) in data.chunks(BLOCK).enumerate() {
        if *block == ZEROS[..block.len()] {
            let start = index * BLOCK;
            to.write_all_at(&data[written..start], at + written as u64)?;
            written = start + block.len();
        }
    }
    to.write_all_at(&data[written..], at + written as u64)
}
