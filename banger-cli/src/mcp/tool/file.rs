//! Tools that read, write and list files in a sandbox.

use std::{io::Read, path::Path};

use banger_copy::{Ownership, Packer};
use banger_proto::guest::{
    Request,
    frame::MAX_DATA,
    listing,
    message::{CopyIn, CopyOut, CopyOwner},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tar::{Archive, EntryType};

use super::{Call, Effect, Found, Tool, command::MAX_OUTPUT};
use crate::{
    command::vm::{
        cp::side::{GuestPath, login},
        workspace_args::guest_path,
    },
    error::{Error, Result},
    guest::{
        agent::{Guest, from_copy, from_io, protocol_error},
        files::{Listing, kind_name, mode_text},
    },
    mcp::failure::invalid,
    workspace::bounded::BoundedArchive,
};

/// How much of a file is returned unless the call says otherwise.
const READ_LIMIT: usize = 64 << 10;
/// How many entries of a directory are returned unless the call says otherwise, and at most.
const LIST_LIMIT: usize = 1000;
const MAX_LIST: usize = 10_000;
/// The highest offset. What is before it is transferred, or is a hole of any size.
const MAX_OFFSET: u64 = 1 << 30;

/// The form of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Encoding {
    /// Text.
    #[default]
    Utf8,
    /// Bytes in the digits 0 to 9 and a to f, two for each byte.
    Hex,
}

/// A path in a sandbox with a file name: absolute, or below a home.
fn file_path(found: &Found, text: &str) -> Result<GuestPath> {
    let path = GuestPath { sandbox: found.reference.clone(), path: text.to_owned() };
    let is_rooted = text.starts_with('/') || text.starts_with("~/");
    let is_plain = !text.ends_with('/') && !text.contains('\0') && path.name()?.is_some();
    match is_rooted && is_plain {
        true => Ok(path),
        false => Err(invalid(format!(
            "cannot use the path {text}: write the absolute path of a file, or one below the home directory such as ~/notes"
        ))),
    }
}

/// Returns the path for the agent, and the name of the file.
fn for_agent(guest: &Guest, path: &GuestPath) -> Result<(String, String)> {
    let name = path.name()?.unwrap_or_default().to_owned();
    Ok((path.path_for(login(guest)?.as_deref()), name))
}

/// Arguments of `read_file`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadFile {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// Its absolute path, or one below the home directory such as `~/notes`.
    path: String,
    /// The byte to begin at, 1073741824 at most.
    #[serde(default)]
    offset: u64,
    /// How many bytes to return at most: 65536 if absent.
    #[serde(default)]
    max_bytes: Option<u64>,
}

/// Result of `read_file`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Content {
    /// The content.
    content: String,
    /// Its form: `hex` if it is not text.
    encoding: Encoding,
    /// The size of the whole file in bytes.
    size: u64,
    /// Whether there is more after it.
    truncated: bool,
}

impl Tool for ReadFile {
    const NAME: &'static str = "read_file";
    const ABOUT: &'static str =
        "Reads a file in a sandbox, or a part of it. What is not text comes in hexadecimal digits.";
    const EFFECT: Effect = Effect::Reads;
    type Output = Content;

    async fn run(self, call: Call) -> Result<Content> {
        let limit = match self.max_bytes.map(usize::try_from) {
            None => READ_LIMIT,
            Some(Ok(bytes)) if bytes <= MAX_OUTPUT => bytes,
            Some(_) => return Err(invalid(format!("max_bytes must be at most {MAX_OUTPUT}"))),
        };
        if self.offset > MAX_OFFSET {
            return Err(invalid(format!("offset must be at most {MAX_OFFSET}"))
                .with_hint("the tool `exec` runs `tail` or `dd` for what is behind it."));
        }
        let found = call.find_for_use(&self.sandbox).await?;
        let path = file_path(&found, &self.path)?;
        let mut guest = call.guest(&found);
        let (path, name) = for_agent(&guest, &path)?;
        let request = Request::CopyOut(CopyOut { path, top: Some(name), follow: true });
        let (shown, offset) = (self.path, self.offset);
        let read = guest.call(request, move |call| {
            let mut archive = Archive::new(BoundedArchive::new(&mut *call));
            let Some(entry) = archive.entries().map_err(from_io)?.next() else {
                // An archive without entries comes before the reason.
                drop(archive);
                return Err(call.finish().err().unwrap_or_else(protocol_error));
            };
            let entry = entry.map_err(from_io)?;
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {}
                EntryType::Directory => {
                    return Err(Error::Refused(format!("cannot read {shown}: it is a directory"))
                        .with_hint("the tool `list_files` lists it."));
                }
                _ => return Err(Error::Refused(format!("cannot read {shown}: it is not a regular file"))),
            }
            // What follows is not read: dropping the call ends it.
            content(entry.size(), entry, offset, limit)
        });
        read.await.map_err(|error| found.about(error))
    }
}

fn content(size: u64, mut file: impl Read, offset: u64, limit: usize) -> Result<Content> {
    std::io::copy(&mut file.by_ref().take(offset), &mut std::io::sink()).map_err(from_io)?;
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes).map_err(from_io)?;
    let truncated = offset.saturating_add(bytes.len() as u64) < size;
    let (content, encoding) = match text(bytes, truncated) {
        Ok(text) => (text, Encoding::Utf8),
        Err(bytes) => (hex(&bytes), Encoding::Hex),
    };
    Ok(Content { content, encoding, size, truncated })
}

/// Returns bytes as text if they are. A character at the end may be cut.
fn text(bytes: Vec<u8>, truncated: bool) -> Result<String, Vec<u8>> {
    String::from_utf8(bytes).or_else(|error| {
        let (valid, is_cut) = (error.utf8_error().valid_up_to(), error.utf8_error().error_len().is_none());
        let mut bytes = error.into_bytes();
        if !(truncated && is_cut) {
            return Err(bytes);
        }
        bytes.truncate(valid);
        String::from_utf8(bytes).map_err(|error| error.into_bytes())
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Arguments of `write_file`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteFile {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// Its absolute path, or one below the home directory such as `~/notes`.
    path: String,
    /// The content.
    content: String,
    /// The form of the content: `utf8`, or `hex` for bytes that are not text.
    #[serde(default)]
    encoding: Encoding,
    /// Whether it is a program.
    #[serde(default)]
    executable: bool,
}

/// Result of `write_file`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Wrote {
    /// The path.
    path: String,
    /// The size in bytes.
    size: u64,
}

impl Tool for WriteFile {
    const NAME: &'static str = "write_file";
    const ABOUT: &'static str =
        "Writes a file in a sandbox. Replaces an existing file, and creates missing directories.";
    const EFFECT: Effect = Effect::Changes;
    type Output = Wrote;

    async fn run(self, call: Call) -> Result<Wrote> {
        let content = match self.encoding {
            Encoding::Utf8 => self.content.into_bytes(),
            Encoding::Hex => from_hex(&self.content).ok_or_else(|| {
                invalid("cannot read content: it has something else than pairs of hexadecimal digits")
            })?,
        };
        let found = call.find_for_use(&self.sandbox).await?;
        let path = file_path(&found, &self.path)?;
        let mut guest = call.guest(&found);
        let (to, name) = for_agent(&guest, &path)?;
        let owner = login(&guest)?.map_or(CopyOwner::Login, CopyOwner::User);
        let beside: Vec<String> = guest.query(Request::Complete { path: to.clone() }).await?;
        if beside.contains(&format!("{name}/")) {
            return Err(Error::Refused(format!("cannot write {}: it is a directory", self.path)));
        }
        let permissions = if self.executable { 0o755 } else { 0o644 };
        let size = content.len() as u64;
        let request = Request::CopyIn(CopyIn { to, top: Some(name.clone()), owner });
        let write = guest.call(request, move |call| {
            let output = std::io::BufWriter::with_capacity(MAX_DATA, &mut *call);
            let mut packer = Packer::new(output, Ownership::Root);
            packer.add_bytes(Path::new(&name), permissions, &content).map_err(from_copy)?;
            drop(packer.finish().map_err(from_copy)?);
            call.end_input()?;
            call.finish()
        });
        write.await.map_err(|error| found.about(error))?;
        Ok(Wrote { path: self.path, size })
    }
}

/// Arguments of `list_files`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListFiles {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// The absolute path of the directory.
    path: String,
    /// Whether to list everything below it.
    #[serde(default)]
    recursive: bool,
    /// How many entries to return at most: 1000 if absent.
    #[serde(default)]
    max_entries: Option<u64>,
}

/// Result of `list_files`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Listed {
    /// The entries, in no particular order. `.git` is left out.
    entries: Vec<File>,
    /// Whether there are more.
    truncated: bool,
}

/// A file in a directory.
#[derive(Debug, Serialize, JsonSchema)]
pub struct File {
    /// Its path, relative to the directory.
    name: String,
    /// `file`, `directory`, `symlink` or `other`.
    kind: &'static str,
    /// Its size in bytes.
    size: u64,
    /// Its permission bits in octal digits.
    mode: String,
}

impl From<listing::Entry> for File {
    fn from(entry: listing::Entry) -> Self {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        Self { name, kind: kind_name(entry.kind), size: entry.size, mode: mode_text(entry.mode) }
    }
}

impl Tool for ListFiles {
    const NAME: &'static str = "list_files";
    const ABOUT: &'static str = "Lists a directory in a sandbox, or everything below it.";
    const EFFECT: Effect = Effect::Reads;
    type Output = Listed;

    async fn run(self, call: Call) -> Result<Listed> {
        let limit = match self.max_entries.map(usize::try_from) {
            None => LIST_LIMIT,
            Some(Ok(count)) if (1..=MAX_LIST).contains(&count) => count,
            Some(_) => return Err(invalid(format!("max_entries must be between 1 and {MAX_LIST}"))),
        };
        let directory = match self.path.as_str() {
            "/" => "/".to_owned(),
            path => guest_path(path).map_err(|error| invalid(format!("cannot list {path}: {error}")))?,
        };
        let found = call.find_for_use(&self.sandbox).await?;
        let mut guest = call.guest(&found);
        let listing = Listing::of(&mut guest, directory, self.recursive, limit).await;
        let Listing { entries, truncated, .. } = listing.map_err(|error| found.about(error))?;
        Ok(Listed { entries: entries.into_iter().map(File::from).collect(), truncated })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_part_of_a_file_is_text_unless_it_is_not() {
        for (bytes, offset, limit, content, encoding, truncated) in [
            (&b"hello"[..], 0, 10, "hello", Encoding::Utf8, false),
            (b"hello", 1, 3, "ell", Encoding::Utf8, true),
            (b"hello", 9, 3, "", Encoding::Utf8, false),
            ("a\u{20ac}b".as_bytes(), 0, 3, "a", Encoding::Utf8, true),
            ("a\u{20ac}".as_bytes(), 0, 4, "a\u{20ac}", Encoding::Utf8, false),
            (b"a\xe2\x82", 0, 9, "61e282", Encoding::Hex, false),
            (b"\xff\x00", 0, 1, "ff", Encoding::Hex, true),
        ] {
            let found = super::content(bytes.len() as u64, bytes, offset, limit).unwrap();
            assert_eq!(
                (found.content.as_str(), found.encoding, found.truncated),
                (content, encoding, truncated)
            );
            assert_eq!(found.size, bytes.len() as u64);
        }
        assert_eq!(from_hex("00ffA0").unwrap(), [0, 255, 160]);
        assert_eq!((from_hex("0"), from_hex("zz"), from_hex("\u{20ac}\u{20ac}")), (None, None, None));
    }
}
