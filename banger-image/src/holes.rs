//! Sparse files: finds their data, and keeps the holes in copies.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

/// How much is read at a time.
pub const CHUNK: usize = 1 << 20;
/// The unit of holes: the block size of the usual file systems.
pub const BLOCK: usize = 4096;

/// Returns the next range at or after `at` that may hold data, in a file of `len` bytes.
pub fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // The file system does not support the call.
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
    // The file may change meanwhile, and an empty range would loop forever.
    Ok(Some(start..if end > start { end } else { len }))
}

/// Splits a range into chunks of at most [`CHUNK`], each with offset and length.
pub fn chunks(range: Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let end = range.end;
    range.step_by(CHUNK).map(move |at| (at, CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK))))
}

/// Writes `data` at `at`, except for blocks of zeros, which a new file already has. Returns how much it wrote.
pub fn write_sparse(to: &File, data: &[u8], at: u64) -> io::Result<u64> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let (mut written, mut zeros) = (0, 0);
    for (index, block) in data.chunks(BLOCK).enumerate() {
        if *block == ZEROS[..block.len()] {
            let start = index * BLOCK;
            to.write_all_at(&data[written..start], at + written as u64)?;
            written = start + block.len();
            zeros += block.len();
        }
    }
    to.write_all_at(&data[written..], at + written as u64)?;
    Ok((data.len() - zeros) as u64)
}
