//! Files in and out of the guest, as tar archives.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
};

use banger_proto::guest::{Frame, STDIN_WINDOW, frame::MAX_DATA};

use crate::{
    conversation::{kind_of, refuse},
    port::Port,
};

/// Unpacks the archive that follows. What would land outside of the directory is refused by the unpacker.
pub fn put(port: &mut Port, directory: &str) -> io::Result<()> {
    let unpacked = unpack(port, directory);
    match unpacked {
        Ok(()) => port.send(&Frame::Done).map(drop),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => refuse(port, kind_of(&error), &format!("cannot unpack into {directory}: {error}")),
    }
}

fn unpack(port: &mut Port, directory: &str) -> io::Result<()> {
    if !Path::new(directory).is_absolute() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    fs::create_dir_all(directory)?;
    let mut input = Input { port, rest: Vec::new(), taken: 0, ended: false };
    let mut archive = tar::Archive::new(&mut input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(directory)?;
    // What the sender added behind the end of the archive is of no interest, but must be taken.
    io::copy(&mut input, &mut io::sink()).map(drop)
}

/// Sends a file or directory.
pub fn get(port: &mut Port, path: &str) -> io::Result<()> {
    match pack(port, Path::new(path)) {
        Ok(()) => port.send(&Frame::Done).map(drop),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => refuse(port, kind_of(&error), &format!("cannot read {path}: {error}")),
    }
}

fn pack(port: &mut Port, path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(MAX_DATA, Output { port }));
    archive.follow_symlinks(false);
    match metadata.is_dir() {
        true => archive.append_dir_all(name, path)?,
        false => archive.append_path_with_name(path, name)?,
    }
    archive.into_inner()?.flush()
}

/// Reads the bytes of input frames.
struct Input<'a> {
    port: &'a mut Port,
    rest: Vec<u8>,
    taken: u32,
    ended: bool,
}

impl Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.port.wait_frame()? {
                Some(Frame::Input(bytes)) => {
                    self.taken += bytes.len() as u32;
                    self.rest = bytes;
                }
                Some(Frame::InputEnd) => self.ended = true,
                Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "an archive was expected")),
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            // Often enough that the sender never waits, seldom enough to cost nothing.
            if self.taken >= STDIN_WINDOW / 4 {
                self.port.queue(&Frame::Window(std::mem::take(&mut self.taken)));
                self.port.flush()?;
            }
        }
        let count = self.rest.len().min(into.len());
        into[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }
}

/// Writes output frames.
struct Output<'a> {
    port: &'a mut Port,
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
