//! The messages of FUSE as bytes (`linux/fuse.h`, fuse(4)). Structures have the byte order of the guest, which is that of
//! the host.

use std::ffi::CStr;

use banger_proto::guest::mount::{BadLength, MAX_IO, MAX_MESSAGE};
use rustix::io::Errno;

/// The length of the header of a request.
pub const HEADER: usize = 40;
/// The length of the header of an answer.
const ANSWER_HEADER: usize = 16;
/// The longest name of Linux.
const MAX_NAME: usize = 255;

/// The version that is served, of Linux 5.4.
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 31;

pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
}

/// Why a mount has to end: its guest does not speak FUSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message has a length that none has.
    #[error("the sandbox sent a message of {0} bytes")]
    Length(usize),
    /// A message is not as long as its kind is.
    #[error("the sandbox sent a message of kind {0} with a wrong length")]
    Body(u32),
    /// The first message must open the connection, and no other may.
    #[error("the sandbox sent a message of kind {0} out of order")]
    Order(u32),
    /// The kernel of the guest is older than Linux 5.4.
    #[error("the kernel of the guest speaks version {0}.{1} of FUSE, and {MAJOR}.{MINOR} is needed")]
    Version(u32, u32),
}

impl From<BadLength> for Violation {
    fn from(BadLength(length): BadLength) -> Self {
        Self::Length(length)
    }
}

/// Why a request is not served.
pub enum Fault {
    /// The guest gets this error.
    Refused(Errno),
    /// The mount ends.
    Violation(Violation),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// The part of a request's header that counts. The process that asks in the guest is of no interest.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
}

/// The rest of a request, which is read from front to end.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    opcode: u32,
    rest: &'a [u8],
}

/// Reads the header of a whole message.
pub fn split(message: &[u8]) -> Result<(Header, Body<'_>), Violation> {
    let wrong = Violation::Length(message.len());
    let Some((header, rest)) = message.split_first_chunk::<HEADER>() else { return Err(wrong) };
    let mut header = Body { opcode: 0, rest: header };
    let length = header.u32()? as usize;
    if length != message.len() || length > MAX_MESSAGE {
        return Err(wrong);
    }
    let header = Header { opcode: header.u32()?, unique: header.u64()?, node: header.u64()? };
    Ok((header, Body { opcode: header.opcode, rest }))
}

impl<'a> Body<'a> {
    pub fn u32(&mut self) -> Result<u32, Violation> {
        self.take().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    pub fn u64(&mut self) -> Result<u64, Violation> {
        self.take().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    /// Takes text up to its terminating zero.
    pub fn text(&mut self) -> Result<&'a CStr, Violation> {
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| Violation::Body(self.opcode))?;
        self.rest = &self.rest[text.count_bytes() + 1..];
        Ok(text)
    }

    /// Takes exactly this many bytes, to the end.
    pub fn data(&mut self, length: u32) -> Result<&'a [u8], Violation> {
        if self.rest.len() != length as usize {
            return Err(Violation::Body(self.opcode));
        }
        Ok(std::mem::take(&mut self.rest))
    }

    /// Checks that nothing is left.
    pub fn end(self) -> Result<(), Violation> {
        if self.rest.is_empty() { Ok(()) } else { Err(Violation::Body(self.opcode)) }
    }

    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], Violation> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Violation::Body(self.opcode))?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Checks that a name leads to an entry of its directory, and nowhere else.
pub fn component(name: &CStr) -> Result<&CStr, Errno> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        bytes if bytes.len() > MAX_NAME => Err(Errno::NAMETOOLONG),
        _ => Ok(name),
    }
}

/// Checks how many bytes an answer may have.
pub fn size(size: u32) -> Result<usize, Errno> {
    let size = size as usize;
    if size <= MAX_IO { Ok(size) } else { Err(Errno::INVAL) }
}

/// Returns an answer.
pub fn answer(unique: u64, result: Result<Out, Errno>) -> Vec<u8> {
    let (error, Out(payload)) = match result {
        Ok(payload) => (0, payload),
        Err(errno) => (-errno.raw_os_error(), Out::default()),
    };
    let mut bytes = Vec::with_capacity(ANSWER_HEADER + payload.len());
    bytes.extend(((ANSWER_HEADER + payload.len()) as u32).to_ne_bytes());
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

/// The payload of an answer, written from front to end.
#[derive(Debug, Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}
