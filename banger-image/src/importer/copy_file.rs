//! Checks and copies the files of users.
//!
//! A user's file may be on a file system that the user serves (FUSE) or on a remote one, and such a file system may
//! never answer. A process that waits for it hangs until a signal ends it. So the service itself never touches a
//! user's file: a worker does, and is killed if it stalls.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

use super::{
    Meter,
    message::{CopyFile, Extent, Failure},
};
use crate::holes;

/// Copies a user's file, or parts of it one after the other, to an empty file, keeping holes. Returns the size of the
/// original.
pub(super) fn copy_file(
    order: &CopyFile,
    original: &File,
    copy: &File,
    meter: &Meter,
) -> Result<u64, Failure> {
    let size = check_readable(original, &order.what, order.max.0)?;
    let unwritten = |error| Failure::os(&format!("copy {}", order.what), error);
    let parts = match &order.extent {
        Extent::Whole => &vec![(0, size)],
        Extent::Head(length) => &vec![(0, size.min(*length))],
        Extent::Parts(parts) => parts,
    };
    let mut to = 0;
    for &(from, length) in parts {
        if from.checked_add(length).is_none_or(|end| end > size) {
            return Err(bad_file(&order.what, "has a part beyond its end"));
        }
        copy.set_len(to + length).map_err(unwritten)?;
        copy_range(original, (from, length), copy, to, order, meter)?;
        to += length;
    }
    Ok(size)
}

fn copy_range(
    original: &File,
    (from, length): (u64, u64),
    copy: &File,
    to: u64,
    order: &CopyFile,
    meter: &Meter,
) -> Result<(), Failure> {
    let unread = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => bad_file(&order.what, "shrank while it was read"),
        _ => Failure::os(&format!("read {}", order.what), error),
    };
    let (mut at, end, mut buffer) = (from, from + length, vec![0; holes::CHUNK]);
    while let Some(data) = holes::next_data(original, at, end).map_err(unread)? {
        for (at, length) in holes::chunks(data.clone()) {
            let bytes = &mut buffer[..length];
            original.read_exact_at(bytes, at).map_err(unread)?;
            meter.add_read(length);
            holes::write_sparse(copy, bytes, to + (at - from))
                .map_err(|error| Failure::os(&format!("copy {}", order.what), error))?;
            meter.add_written(length);
        }
        at = data.end;
    }
    // A hole at the end is not read, and the file may have been truncated there.
    match fstat(original).map_err(|error| unread(error.into()))?.st_size
        < i64::try_from(end).unwrap_or(i64::MAX)
    {
        true => Err(unread(io::ErrorKind::UnexpectedEof.into())),
        false => Ok(()),
    }
}

/// Checks that a file is regular, open for reading, neither empty nor too large, and returns its size.
fn check_readable(file: &File, what: &str, max: u64) -> Result<u64, Failure> {
    let refuse = |why: &str| Err(bad_file(what, why));
    let look = |error: rustix::io::Errno| Failure::os(&format!("look at {what}"), error);
    let flags = fcntl_getfl(file.as_fd()).map_err(look)?;
    // An O_PATH descriptor does not prove that its user may read the file.
    if flags.contains(OFlags::PATH) {
        return refuse("was opened with O_PATH; open it for reading");
    }
    if flags.contains(OFlags::WRONLY) {
        return refuse("is open for writing only; open it for reading");
    }
    if flags.contains(OFlags::DIRECT) {
        return refuse("was opened with O_DIRECT; open it without");
    }
    let stat = fstat(file).map_err(look)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return refuse("is not a regular file");
    }
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    match size {
        0 => refuse("is empty"),
        size if size > max => refuse(&format!("is larger than {}", banger_proto::size::Bytes(max))),
        size => Ok(size),
    }
}

/// Checks that a descriptor is of a regular file, open for writing at any place.
pub(super) fn check_writable(file: &File, what: &str) -> Result<(), Failure> {
    let look = |error: rustix::io::Errno| Failure::os(&format!("look at {what}"), error);
    let flags = fcntl_getfl(file.as_fd()).map_err(look)?;
    let mode = flags & OFlags::RWMODE;
    if flags.contains(OFlags::PATH) || !matches!(mode, OFlags::WRONLY | OFlags::RDWR) {
        return Err(bad_file(what, "is not open for writing"));
    }
    if flags.intersects(OFlags::APPEND | OFlags::DIRECT) {
        return Err(bad_file(what, "was opened with O_APPEND or O_DIRECT; open it without"));
    }
    match FileType::from_raw_mode(fstat(file).map_err(look)?.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(bad_file(what, "is not a regular file")),
    }
}

fn bad_file(what: &str, why: &str) -> Failure {
    Failure::BadFile { message: format!("{what} {why}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Write, os::unix::fs::MetadataExt, path::Path};

    use banger_proto::size::Bytes;
    use rustix::fs::{Mode, open};

    use super::*;

    const MAX: Bytes = Bytes::kib(1);

    fn copied(original: &File, max: Bytes, extent: Extent) -> Result<File, Failure> {
        let order = CopyFile { what: "the file".to_owned(), max, extent };
        let copy = tempfile::tempfile().unwrap();
        let size = copy_file(&order, original, &copy, &Meter::default())?;
        assert_eq!(size, original.metadata().unwrap().len());
        Ok(copy)
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn check(path: &Path, flags: OFlags) -> Result<Vec<u8>, Failure> {
        let file = File::from(open(path, flags, Mode::empty()).unwrap());
        copied(&file, MAX, Extent::Whole).map(|copy| content(&copy))
    }

    fn refused(path: &Path, flags: OFlags, expect: &str) {
        match check(path, flags) {
            Err(Failure::BadFile { message }) => assert!(message.contains(expect), "{message}"),
            other => panic!("{path:?} was not refused: {other:?}"),
        }
    }

    #[test]
    fn only_regular_files_that_are_open_for_reading_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "content").unwrap();
        assert_eq!(check(&file, OFlags::RDONLY).unwrap(), b"content");
        assert_eq!(check(&file, OFlags::RDWR).unwrap(), b"content");
        refused(&file, OFlags::WRONLY, "writing only");
        refused(&file, OFlags::PATH, "O_PATH");
        refused(&file, OFlags::RDONLY | OFlags::DIRECT, "O_DIRECT");
        refused(directory.path(), OFlags::RDONLY, "regular");
        refused(Path::new("/dev/zero"), OFlags::RDONLY, "regular");
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(copied(&reader.into(), MAX, Extent::Whole), Err(Failure::BadFile { .. })));
    }

    #[test]
    fn a_file_must_be_neither_empty_nor_too_large() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        refused(file.path(), OFlags::RDONLY, "empty");
        file.write_all(&[1; 1024]).unwrap();
        assert_eq!(check(file.path(), OFlags::RDONLY).unwrap().len(), 1024);
        file.write_all(&[1]).unwrap();
        refused(file.path(), OFlags::RDONLY, "is larger than 1 KiB");
    }

    #[test]
    fn a_copy_is_as_sparse_as_the_original() {
        let original = tempfile::tempfile().unwrap();
        let length = (64 << 20) + 123;
        original.set_len(length).unwrap();
        for at in [0, (32 << 20) + 7, length - 5] {
            original.write_all_at(b"data!", at).unwrap();
        }
        let copy = copied(&original, Bytes::gib(1), Extent::Whole).unwrap();
        assert!(content(&copy) == content(&original));
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20, "the copy is not sparse");
    }

    #[test]
    fn parts_are_copied_in_order_and_lie_within_the_file() {
        let mut original = tempfile::tempfile().unwrap();
        original.write_all(b"0123456789").unwrap();
        let copy = copied(&original, MAX, Extent::Parts(vec![(8, 2), (0, 3), (5, 0)])).unwrap();
        assert_eq!(content(&copy), b"89012");
        for (length, expect) in [(4, &b"0123"[..]), (99, b"0123456789")] {
            assert_eq!(content(&copied(&original, MAX, Extent::Head(length)).unwrap()), expect);
        }
        for part in [(8, 3), (11, 0), (u64::MAX, 2)] {
            assert!(
                matches!(copied(&original, MAX, Extent::Parts(vec![part])), Err(Failure::BadFile { .. })),
                "{part:?}"
            );
        }
    }

    #[test]
    fn an_archive_is_written_to_a_regular_file_that_is_open_for_that() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = |flags| {
            check_writable(&File::from(open(file.path(), flags, Mode::empty()).unwrap()), "the file").is_ok()
        };
        assert!(check(OFlags::WRONLY) && check(OFlags::RDWR));
        assert!(!check(OFlags::RDONLY) && !check(OFlags::PATH) && !check(OFlags::RDWR | OFlags::APPEND));
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(check_writable(&writer.into(), "the file").is_err());
    }
}
