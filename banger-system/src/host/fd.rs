//! Files that users hand over, as open file descriptors. What is wrong with one is said without a word of
//! its content.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use banger_proto::size::Bytes;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

use super::pulse::Pulse;
use crate::ports::{Error, Result};

/// A regular file that its user could read.
#[derive(Debug)]
pub(super) struct UserFile {
    /// What it is to be, for messages: `the root file system`.
    pub what: &'static str,
    /// The file.
    pub file: File,
    /// Its size when it was looked at.
    pub size: Bytes,
}

impl UserFile {
    /// Takes the descriptor if it is of a regular file, open for reading, not empty and of at most `max`.
    /// May hang like every look at a user's file.
    pub(super) fn check(fd: OwnedFd, what: &'static str, max: Bytes) -> Result<Self> {
        let refuse = |why: &str| Err(Error::BadFile { message: format!("{what} {why}") });
        let look = |source| Error::os(format!("look at {what}"), source);
        let flags = fcntl_getfl(fd.as_fd()).map_err(look)?;
        // The descriptor of an O_PATH open says nothing about whether its user may read the file.
        if flags.contains(OFlags::PATH) {
            return refuse("was opened with O_PATH; open it for reading");
        }
        if flags.contains(OFlags::WRONLY) {
            return refuse("is open for writing only; open it for reading");
        }
        if flags.contains(OFlags::DIRECT) {
            return refuse("was opened with O_DIRECT; open it without");
        }
        let stat = fstat(&fd).map_err(look)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return refuse("is not a regular file");
        }
        let size = Bytes(u64::try_from(stat.st_size).unwrap_or_default());
        if size.0 == 0 {
            return refuse("is empty");
        }
        if size > max {
            return refuse(&format!("is {size} large, and at most {max} are taken"));
        }
        Ok(Self { what, file: File::from(fd), size })
    }

    /// The whole content.
    pub(super) fn read(&self, pulse: &Pulse) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.stream(pulse).read_to_end(&mut content).map_err(|source| self.unread(source))?;
        Ok(content)
    }

    /// The content from its beginning up to [`UserFile::size`], wherever the descriptor stands.
    pub(super) fn stream<'a>(&'a self, pulse: &'a Pulse) -> Stream<'a> {
        Stream { file: self, at: 0, pulse }
    }

    /// The error of a read.
    pub(super) fn unread(&self, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::BadFile { message: format!("{} became shorter while it was read", self.what) }
            }
            _ => Error::os(format!("read {}", self.what), source),
        }
    }
}

/// Takes the descriptor if it is of a regular file, open for writing at any place.
pub(super) fn writable(fd: OwnedFd, what: &str) -> Result<File> {
    let refuse = |why: &str| Err(Error::BadFile { message: format!("{what} {why}") });
    let look = |source| Error::os(format!("look at {what}"), source);
    let flags = fcntl_getfl(fd.as_fd()).map_err(look)?;
    let mode = flags & OFlags::RWMODE;
    if flags.contains(OFlags::PATH) || !matches!(mode, OFlags::WRONLY | OFlags::RDWR) {
        return refuse("is not open for writing");
    }
    if flags.intersects(OFlags::APPEND | OFlags::DIRECT) {
        return refuse("was opened with O_APPEND or O_DIRECT; open it without");
    }
    if FileType::from_raw_mode(fstat(&fd).map_err(look)?.st_mode) != FileType::RegularFile {
        return refuse("is not a regular file");
    }
    Ok(File::from(fd))
}

/// A seekable reader of a user's file. That the file became shorter is an error, and that nobody waits for the
/// content any more is one, too.
#[derive(Debug)]
pub(super) struct Stream<'a> {
    file: &'a UserFile,
    at: u64,
    pulse: &'a Pulse,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.file.size.0.saturating_sub(self.at);
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let read = self.file.file.read_at(&mut buffer[..want], self.at)?;
        self.pulse.beat()?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Stream<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.size.0.checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Write, path::Path};

    use rustix::fs::{Mode, open};

    use super::*;

    const MAX: Bytes = Bytes::kib(1);

    fn check(path: &Path, flags: OFlags) -> Result<UserFile> {
        UserFile::check(open(path, flags, Mode::empty()).unwrap(), "the file", MAX)
    }

    fn refused(path: &Path, flags: OFlags, expect: &str) {
        match check(path, flags) {
            Err(Error::BadFile { message }) => assert!(message.contains(expect), "{message}"),
            other => panic!("{path:?} was not refused: {other:?}"),
        }
    }

    #[test]
    fn only_regular_files_that_are_open_for_reading_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "content").unwrap();
        assert_eq!(check(&file, OFlags::RDONLY).unwrap().size, Bytes(7));
        assert_eq!(check(&file, OFlags::RDWR).unwrap().size, Bytes(7));
        refused(&file, OFlags::WRONLY, "writing only");
        refused(&file, OFlags::PATH, "O_PATH");
        refused(&file, OFlags::RDONLY | OFlags::DIRECT, "O_DIRECT");
        refused(directory.path(), OFlags::RDONLY, "regular");
        refused(Path::new("/dev/zero"), OFlags::RDONLY, "regular");
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(UserFile::check(reader, "the file", MAX), Err(Error::BadFile { .. })));
    }

    #[test]
    fn a_file_must_be_neither_empty_nor_too_large() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        refused(file.path(), OFlags::RDONLY, "empty");
        file.write_all(&[1; 1024]).unwrap();
        assert_eq!(check(file.path(), OFlags::RDONLY).unwrap().size, MAX);
        file.write_all(&[1]).unwrap();
        refused(file.path(), OFlags::RDONLY, "at most 1 KiB");
    }

    #[test]
    fn the_content_is_read_from_its_beginning_and_not_beyond_the_size_that_was_checked() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"content").unwrap();
        let taken = UserFile::check(file.as_file().try_clone().unwrap().into(), "the file", MAX).unwrap();
        file.write_all(b" and more").unwrap();
        assert_eq!(taken.read(&Pulse::default()).unwrap(), b"content");
        let pulse = Pulse::default();
        let mut stream = taken.stream(&pulse);
        for (to, rest) in
            [(SeekFrom::Start(5), "nt"), (SeekFrom::End(-1), "t"), (SeekFrom::Current(-3), "ent")]
        {
            let mut read = String::new();
            stream.seek(to).unwrap();
            stream.read_to_string(&mut read).unwrap();
            assert_eq!(read, rest);
        }
        assert!(stream.seek(SeekFrom::Current(-8)).is_err());
        assert_eq!(stream.seek(SeekFrom::End(9)).unwrap(), 16);
        assert_eq!(stream.read(&mut [0; 4]).unwrap(), 0);
        file.as_file().set_len(3).unwrap();
        assert!(matches!(taken.read(&Pulse::default()), Err(Error::BadFile { .. })));
    }
}
