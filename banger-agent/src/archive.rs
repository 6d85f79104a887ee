//! Unpacks tar archives into the guest, and adapts streams of archives to frames.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use banger_copy::{Access, Names, Owner, Rules};
use banger_proto::{
    causes::with_causes,
    guest::{Frame, STDIN_WINDOW, frame::MAX_DATA, message::Placement},
};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use crate::{
    conversation::{kind_of, refuse},
    port::Port,
};

/// Unpacks the archive that follows. The unpacker refuses entries outside of the directory.
pub fn put(port: &mut Port, directory: &str, placement: Placement) -> io::Result<()> {
    let unpacked = match placement {
        Placement::Merge => unpack(port, directory, false),
        Placement::New | Placement::Replace => unpack_atomically(port, directory, placement),
    };
    match unpacked {
        Ok(()) => port.send(&Frame::Done).map(drop),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            refuse(port, kind_of(&error), &format!("cannot unpack into {directory}: {}", with_causes(&error)))
        }
    }
}

/// Unpacks next to the directory, and moves the result into place when it is complete.
fn unpack_atomically(port: &mut Port, directory: &str, placement: Placement) -> io::Result<()> {
    let path = Path::new(directory);
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), path.is_absolute()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if placement == Placement::New && !is_free(path)? {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something already"));
    }
    fs::create_dir_all(parent)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".coming-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let unfinished = parent.join(hidden);
    // Left over if an earlier boot was interrupted.
    remove(&unfinished)?;
    let unpacked =
        unpack(port, &unfinished.to_string_lossy(), true).and_then(|()| swap_into_place(&unfinished, path));
    // This is now the previous content, or an incomplete archive.
    remove(&unfinished)?;
    unpacked
}

/// Exchanges the new directory with the old one in one step.
fn swap_into_place(unfinished: &Path, target: &Path) -> io::Result<()> {
    match renameat_with(CWD, unfinished, CWD, target, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT) => fs::rename(unfinished, target),
        changed => Ok(changed?),
    }
}

/// Removes whatever is at this path.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Distinguishes names that are created at the same time.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Returns whether nothing is there, or an empty directory.
fn is_free(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        entries => Ok(entries?.next().is_none()),
    }
}

/// Unpacks with the owners and permissions of the archive. `fresh` means that no other process uses the directory.
fn unpack(port: &mut Port, directory: &str, fresh: bool) -> io::Result<()> {
    if !Path::new(directory).is_absolute() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let rules =
        Rules { owner: Owner::Archive, access: Access::AS_ARCHIVED, through_links: true, names: Names::Any };
    let unpacked = banger_copy::unpack(Input::new(port), Path::new(directory), fresh, rules);
    // The archives of workspaces consist of files and links, so there are no notes.
    unpacked.map(drop).map_err(|error| io::Error::new(error.kind(), error))
}

/// Reads the bytes of input frames.
pub struct Input<'a> {
    port: &'a mut Port,
    /// The bytes of the last frame, and how many of them were read.
    bytes: Vec<u8>,
    read: usize,
    taken: u32,
    ended: bool,
}

impl<'a> Input<'a> {
    /// Creates a reader of this conversation's input.
    pub fn new(port: &'a mut Port) -> Self {
        Self { port, bytes: Vec::new(), read: 0, taken: 0, ended: false }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.bytes.len() && !self.ended {
            match self.port.wait_frame()? {
                Some(Frame::Input(bytes)) => {
                    self.taken += bytes.len() as u32;
                    (self.bytes, self.read) = (bytes, 0);
                }
                Some(Frame::InputEnd) => self.ended = true,
                Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "an archive was expected")),
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            // Often enough that the sender never waits, and seldom enough to be cheap.
            if self.taken >= STDIN_WINDOW / 4 {
                self.port.queue(&Frame::Window(std::mem::take(&mut self.taken)));
                self.port.flush()?;
            }
        }
        // An archive is read in small pieces, so the rest of a frame is not moved for each of them.
        let rest = &self.bytes[self.read..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

/// Writes output frames.
pub struct Output<'a> {
    pub port: &'a mut Port,
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(MAX_DATA);
        match self.port.send(&Frame::Output(bytes[..count].to_vec()))? {
            true => Ok(count),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
