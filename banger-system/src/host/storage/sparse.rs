//! Copies sparse files, by sharing blocks if the file system can, else without the holes.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use banger_image::holes::{CHUNK, chunks, next_data, write_sparse};
use banger_proto::size::Bytes;
use rustix::{
    fs::{copy_file_range, ioctl_ficlone},
    io::Errno,
};

use crate::ports::{NoProgress, Progress};

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Method {
    /// It shares blocks with the original until one of the two changes.
    Shared,
    /// It has blocks of its own.
    Copied,
}

/// How much is copied between two looks at whether the copy is still wanted.
const STEP: u64 = 64 << 20;

/// Makes the empty file `to` a copy of `from`, with the same holes.
pub(in crate::host) fn copy(from: &File, to: &File) -> io::Result<Method> {
    copy_with(from, to, &NoProgress)
}

/// Does the same, reports the position in the file, and fails once it is cancelled.
pub(super) fn copy_with(from: &File, to: &File, progress: &dyn Progress) -> io::Result<Method> {
    if share(from, to)? {
        return Ok(Method::Shared);
    }
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut at = 0;
    while let Some(data) = next_data(from, at, len)? {
        at = data.start;
        while at < data.end {
            let end = data.end.min(at + STEP);
            copy_range(from, to, at..end)?;
            at = end;
            progress.advanced(Bytes(at), Some(Bytes(len)));
            if progress.is_canceled() {
                return Err(io::Error::other("it was canceled"));
            }
        }
    }
    Ok(Method::Copied)
}

/// Shares the blocks of `from` with the empty file `to`. Returns `false` if the file systems cannot.
pub(super) fn share(from: &File, to: &File) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(full @ (Errno::NOSPC | Errno::DQUOT)) => Err(full.into()),
        // EOPNOTSUPP, EXDEV and EINVAL are the usual errors, and there are others (fuse, nfs, seals).
        Err(_) => Ok(false),
    }
}

fn copy_range(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let (mut read, mut written) = (range.start, range.start);
    while read < range.end {
        let left = usize::try_from(range.end - read).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // The file systems differ, or cannot do it.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_through_memory(from, to, read..range.end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    for (at, length) in chunks(range) {
        from.read_exact_at(&mut buffer[..length], at)?;
        write_sparse(to, &buffer[..length], at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use banger_image::holes::BLOCK;

    use super::*;

    /// 64 MiB with data at both ends and in the middle, and a length that is no multiple of anything.
    fn original(file: &File) -> u64 {
        let len = (64 << 20) + 123;
        file.set_len(len).unwrap();
        for at in [0, (32 << 20) + 7, len - 5] {
            file.write_all_at(b"data!", at).unwrap();
        }
        len
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_copy_has_the_same_content_and_the_same_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let len = original(&from);
        copy(&from, &to).unwrap();
        assert!(content(&from) == content(&to));
        assert_eq!(to.metadata().unwrap().len(), len);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "the copy is not sparse");
    }

    #[test]
    fn a_copy_from_another_file_system_goes_through_memory() {
        let from = File::from(rustix::fs::memfd_create("from", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let to = tempfile::tempfile().unwrap();
        original(&from);
        assert_eq!(copy(&from, &to).unwrap(), Method::Copied);
        assert!(content(&from) == content(&to));
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "the copy is not sparse");
    }

    #[test]
    fn an_empty_file_and_a_file_of_one_hole_are_copied() {
        for len in [0, 1, 1 << 30] {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            from.set_len(len).unwrap();
            copy(&from, &to).unwrap();
            assert_eq!(to.metadata().unwrap().len(), len);
            assert_eq!(to.metadata().unwrap().blocks(), 0);
        }
    }

    #[test]
    fn zeros_are_left_out_wherever_they_stand() {
        let data: Vec<u8> =
            [1, 0, 0, 1, 0, 1, 1, 0].iter().flat_map(|byte| [*byte; BLOCK]).chain([0, 1]).collect();
        let file = tempfile::tempfile().unwrap();
        write_sparse(&file, &data, 0).unwrap();
        assert!(content(&file) == data);
        let mut written = Vec::new();
        let mut at = 0;
        while let Some(range) = next_data(&file, at, data.len() as u64).unwrap() {
            at = range.end;
            written.push(range.start / BLOCK as u64..range.end.div_ceil(BLOCK as u64));
        }
        assert_eq!(written, [0..1, 3..4, 5..7, 8..9]);
    }
}
