//! What the two ends of a channel say to each other.
//!
//! ```text
//! remote  greeting                            one line: GREETING, then JSON
//! local   request                             one line of JSON
//! local   arguments, contents of files        for a call
//! remote  reply                               one line of JSON
//! remote  values                              for the answer of a call
//! both    bytes of the bus, or of the stream that was opened, or a file that was filled
//! ```
//!
//! The arguments and values of a call are in the wire format of D-Bus, without the descriptors that they refer to. A file
//! is a series of chunks, so that holes cost nothing.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of what is said here. Another one is refused by name.
pub const PROTOCOL: u32 = 2;
/// The beginning of the first line, so that it cannot be mistaken for what a login shell prints.
pub const GREETING: &str = "banger-remote ";
/// Limit on a line.
const MAX_LINE: usize = 64 << 10;
/// Limit on the arguments or the values of a call.
pub const MAX_VALUES: u32 = 1 << 20;
/// Limit on the files of a call.
pub const MAX_FILES: usize = 16;
/// The bytes of a chunk, and the least size of a hole.
const CHUNK: usize = 64 << 10;
/// Marks the length of a hole.
const HOLE: u32 = 1 << 31;

/// What the remote end says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    pub protocol: u32,
    /// The version of banger there.
    pub version: String,
    /// The user there, as the bus knows it.
    pub uid: u32,
    /// The architecture of its processor.
    #[serde(default)]
    pub architecture: Option<String>,
}

/// What a channel is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A connection to the system bus, from its first byte.
    Bus,
    /// One call of the service that passes descriptors.
    Call(Call),
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub path: String,
    pub interface: String,
    pub member: String,
    pub arguments: Values,
    /// The files that the arguments refer to.
    pub files: Vec<Passed>,
}

/// How a descriptor of an argument is made at the remote end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Passed {
    /// A sealed memory file with the content that follows.
    Memory,
    /// A temporary file with the content that follows.
    File,
    /// An empty temporary file that the service fills. Its content is sent back once the local end ends its input.
    Filled,
}

/// Values that follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    pub signature: String,
    pub little_endian: bool,
    pub length: u32,
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The bus follows.
    Bus,
    /// The values of the answer follow, and then the stream that they refer to, if any.
    Answer(Values),
    /// The service or the remote end refused.
    Refused { name: String, message: String },
}

/// Writes a line of JSON.
pub fn write_line(to: &mut impl Write, prefix: &str, value: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(value).map_err(io::Error::other)?;
    to.write_all(format!("{prefix}{line}\n").as_bytes())
}

/// Reads a line without reading ahead. Returns `None` at the end, if nothing was read.
pub fn read_line(from: &mut impl Read) -> io::Result<Option<String>> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    let text = |line: Vec<u8>| String::from_utf8_lossy(&line).into_owned();
    loop {
        match from.read(&mut byte) {
            Ok(0) => return Ok((!line.is_empty()).then(|| text(line))),
            Ok(_) if byte == *b"\n" => return Ok(Some(text(line))),
            Ok(_) if line.len() == MAX_LINE => return Err(invalid("a line is too long")),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a line of JSON.
pub fn read_json<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let line = read_line(from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    serde_json::from_str(&line).map_err(|_| invalid("a line is not what was expected"))
}

/// Reads the bytes of values.
pub fn read_values(from: &mut impl Read, values: &Values) -> io::Result<Vec<u8>> {
    if values.length > MAX_VALUES {
        return Err(invalid("the values of a call are too long"));
    }
    let mut bytes = vec![0; values.length as usize];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Sends the content of a file.
pub fn send_file(file: &File, to: &mut impl Write) -> io::Result<()> {
    let (mut offset, mut hole, mut buffer) = (0, 0, vec![0; CHUNK]);
    loop {
        let length = match file.read_at(&mut buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            length => length?,
        };
        let bytes = &buffer[..length];
        offset += length as u64;
        if length == CHUNK && hole < HOLE - CHUNK as u32 && bytes.iter().all(|byte| *byte == 0) {
            hole += CHUNK as u32;
            continue;
        }
        if hole != 0 {
            to.write_all(&(HOLE | hole).to_be_bytes())?;
            hole = 0;
        }
        to.write_all(&(length as u32).to_be_bytes())?;
        if length == 0 {
            return to.flush();
        }
        to.write_all(bytes)?;
    }
}

/// Receives the content of an empty file, at most `limit` bytes.
pub fn receive_file(from: &mut impl Read, file: &File, limit: u64) -> io::Result<()> {
    let (mut offset, mut buffer) = (0u64, vec![0; CHUNK]);
    loop {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        let bytes = (length & !HOLE) as usize;
        if offset + bytes as u64 > limit {
            return Err(invalid("a file is too large"));
        }
        match length {
            // A hole at the end has no bytes behind it.
            0 => return file.set_len(offset),
            _ if length & HOLE != 0 => {}
            _ if bytes > CHUNK => return Err(invalid("a chunk is too long")),
            _ => {
                from.read_exact(&mut buffer[..bytes])?;
                file.write_all_at(&buffer[..bytes], offset)?;
            }
        }
        offset += bytes as u64;
    }
}

/// Returns the error for an end that does not keep to this.
pub fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn sent(content: &[u8]) -> Vec<u8> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        let mut sent = Vec::new();
        send_file(&file, &mut sent).unwrap();
        sent
    }

    #[test]
    fn a_file_arrives_as_it_was() {
        let mut sparse = vec![0; 5 * CHUNK];
        sparse[3 * CHUNK + 7] = 1;
        for content in
            [vec![], b"short".to_vec(), vec![1; CHUNK], vec![2; 3 * CHUNK + 1], sparse, vec![0; 2 * CHUNK]]
        {
            let bytes = sent(&content);
            let file = tempfile::tempfile().unwrap();
            let mut from = bytes.as_slice();
            receive_file(&mut from, &file, u64::MAX).unwrap();
            assert!(from.is_empty());
            let mut received = vec![3; content.len()];
            file.read_exact_at(&mut received, 0).unwrap();
            assert!(received == content && file.metadata().unwrap().size() == content.len() as u64);
        }
    }

    #[test]
    fn holes_are_not_sent() {
        assert!(sent(&vec![0; 100 * CHUNK]).len() < 20);
    }

    #[test]
    fn an_incomplete_or_oversized_file_is_refused() {
        let bytes = sent(&vec![1; 2 * CHUNK]);
        let file = tempfile::tempfile().unwrap();
        for length in [0, 3, 4, 100, bytes.len() - 1] {
            assert!(receive_file(&mut &bytes[..length], &file, u64::MAX).is_err(), "{length}");
        }
        assert!(receive_file(&mut bytes.as_slice(), &file, 2 * CHUNK as u64 - 1).is_err());
        let too_long = (CHUNK as u32 + 1).to_be_bytes();
        assert!(receive_file(&mut too_long.as_slice(), &file, u64::MAX).is_err());
    }

    #[test]
    fn a_line_ends_where_the_bytes_that_follow_begin() {
        let call = Request::Call(Call {
            path: "/a".to_owned(),
            interface: "b".to_owned(),
            member: "C".to_owned(),
            arguments: Values { signature: "(s)".to_owned(), little_endian: true, length: 3 },
            files: vec![Passed::Memory, Passed::Filled],
        });
        let mut bytes = Vec::new();
        write_line(&mut bytes, "", &call).unwrap();
        bytes.extend(b"abc");
        let mut from = bytes.as_slice();
        assert_eq!(read_json::<Request>(&mut from).unwrap(), call);
        assert_eq!(from, b"abc");
    }

    #[test]
    fn lines_are_bounded_and_checked() {
        assert_eq!(read_line(&mut [].as_slice()).unwrap(), None);
        assert_eq!(read_line(&mut b"\nx".as_slice()).unwrap().unwrap(), "");
        assert_eq!(read_line(&mut b"cut".as_slice()).unwrap().unwrap(), "cut");
        assert!(read_line(&mut vec![b'a'; MAX_LINE + 2].as_slice()).is_err());
        assert!(read_json::<Request>(&mut b"{}\n".as_slice()).is_err());
        let long = Values { signature: String::new(), little_endian: true, length: MAX_VALUES + 1 };
        assert!(read_values(&mut [0; 10].as_slice(), &long).is_err());
    }
}
