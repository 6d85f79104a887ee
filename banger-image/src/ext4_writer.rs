//! Writes empty ext4 file systems without a program, a mount or privileges.

use std::{fs::File, io, os::unix::fs::FileExt};

use banger_proto::size::Bytes;
use mkext4::{FsBuilder, Options, RegionSink};

/// The label of work disks.
const LABEL: &str = "banger-work";
/// 2026-01-01, the time of every work disk. So two of the same size differ only in their UUID, and no time of the
/// host gets into a guest.
const EPOCH: i64 = 1_767_225_600;
/// The block size of the writer. Sizes are rounded up to it.
const BLOCK: u64 = 4096;

/// Why a file system cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be written to.
    #[error(transparent)]
    Write(io::Error),
    /// No ext4 file system has this size.
    #[error(transparent)]
    Unsupported(mkext4::Error),
    /// A bug of the writer.
    #[error(transparent)]
    Other(mkext4::Error),
}

impl From<mkext4::Error> for Error {
    fn from(error: mkext4::Error) -> Self {
        match error {
            mkext4::Error::Io(error) => Self::Write(error),
            mkext4::Error::Invalid(_) | mkext4::Error::Unsupported(_) => Self::Unsupported(error),
            error => Self::Other(error),
        }
    }
}

/// Writes an empty ext4 file system of this size, rounded up to whole blocks, to the empty file `to`.
pub fn write_empty(to: &File, size: Bytes, uuid: [u8; 16]) -> Result<(), Error> {
    let too_large = || mkext4::Error::Invalid(format!("{size} is too large"));
    let size = size.0.checked_next_multiple_of(BLOCK).ok_or_else(too_large)?;
    let mut options = Options::new(size, uuid, EPOCH);
    options.label = Some(LABEL.to_owned());
    // Reserved blocks are for root, which is the user of the disk in a guest.
    options.reserved_percent = 0;
    let layout = FsBuilder::new(options)?.seal()?;
    to.set_len(size).map_err(Error::Write)?;
    layout.writer(Holes(to))?.finish()?;
    Ok(())
}

/// A new file, whose zeros need not be written.
struct Holes<'a>(&'a File);

impl RegionSink for Holes<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;

    use super::*;

    #[test]
    fn two_file_systems_of_one_size_differ_by_their_uuid_alone() {
        let made = |uuid| {
            let mut file = tempfile::tempfile().unwrap();
            write_empty(&file, Bytes::mib(64), [uuid; 16]).unwrap();
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            content
        };
        assert!(made(1) == made(1));
        assert!(made(1) != made(2));
    }
}
