//! A client of `git upload-pack` (gitprotocol-v2(5)) that trusts nothing it reads.
//!
//! git's own client has no limit on refs or bytes, and leaves what it has received in the repository when it fails. This
//! one asks for the branches and one pack, and passes the pack on without a look into it.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use banger_proto::guest::message::Algorithm;

use crate::error::{Error, Result};

/// Limit on the branches of a sandbox.
pub const MAX_BRANCHES: usize = 256;
/// Limit on the packets before the pack: capabilities, refs, and shallow commits.
const MAX_PACKETS: usize = 20_000;
/// Limit on packets without data in a row. A server sends one every five seconds while it looks for objects.
const MAX_EMPTY: usize = 200;
/// Bytes of a packet, with its length (gitprotocol-common(5)).
const MAX_PACKET: usize = 65_520;
/// Why there is no more to read. What git has written to standard error says it better.
pub const ENDED: &str = "git in the sandbox has ended";
const PREFIX: &str = "refs/heads/";
const HEAD: &str = "HEAD";
/// How a line of a server begins that fails.
const FAILED: &[u8] = b"ERR ";

/// The branches of a repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Branches {
    /// Their commits by name, without `refs/heads/`.
    pub tips: BTreeMap<String, String>,
    /// The checked-out commit.
    pub head: Option<String>,
    /// The branch that is checked out.
    pub current: Option<String>,
}

/// What this side has, and what it wants.
#[derive(Debug, Default)]
pub struct Negotiation {
    /// Commits to get, with their history.
    pub wants: Vec<String>,
    /// Commits that this side has with their history.
    pub haves: Vec<String>,
    /// Commits of this side whose parents it does not have.
    pub shallow: Vec<String>,
}

/// A conversation with `upload-pack`.
#[derive(Debug)]
pub struct UploadPack<S> {
    stream: S,
    algorithm: Algorithm,
    /// Whether the server wants to hear which hash function is used.
    names_format: bool,
    packets: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Packet {
    Flush,
    Delimiter,
    Line(Vec<u8>),
}

impl<S: Read + Write> UploadPack<S> {
    /// Reads what the server can do.
    pub fn begin(stream: S, algorithm: Algorithm) -> Result<Self> {
        let mut this = Self { stream, algorithm, names_format: false, packets: 0 };
        match this.packet()? {
            Packet::Line(line) if trimmed(&line) == b"version 2" => {}
            _ => {
                return Err(cannot("git in the sandbox is too old").with_hint(
                    "git 2.18 or later can; `banger vm workspace export NAME` needs no git there.",
                ));
            }
        }
        let mut format = b"sha1".to_vec();
        while let Packet::Line(line) = this.packet()? {
            if let Some(name) = trimmed(&line).strip_prefix(b"object-format=") {
                (format, this.names_format) = (name.to_vec(), true);
            }
        }
        match format == format_name(algorithm).as_bytes() {
            true => Ok(this),
            false => Err(Error::Refused(
                "the repository in the sandbox uses another hash function than the one on the host"
                    .to_owned(),
            )),
        }
    }

    /// Asks for the branches.
    pub fn branches(&mut self) -> Result<Branches> {
        let prefix = format!("ref-prefix {PREFIX}\n");
        self.request("ls-refs", &["symrefs\n", "ref-prefix HEAD\n", &prefix])?;
        let mut branches = Branches::default();
        while let Packet::Line(line) = self.packet()? {
            self.take_ref(&mut branches, trimmed(&line))?;
        }
        Ok(branches)
    }

    fn take_ref(&self, branches: &mut Branches, line: &[u8]) -> Result<()> {
        // git gives names any bytes; those that are not text are of no use as a branch on this host.
        let Ok(line) = std::str::from_utf8(line) else {
            return Err(cannot("the sandbox has a branch whose name is not UTF-8"));
        };
        let mut fields = line.split(' ');
        let (Some(id), Some(name)) = (fields.next(), fields.next()) else { return Err(violation()) };
        if !self.is_id(id) {
            return Err(violation());
        }
        if name == HEAD {
            let target = fields.find_map(|field| field.strip_prefix("symref-target:"));
            branches.current = target.and_then(|name| name.strip_prefix(PREFIX)).map(str::to_owned);
            branches.head = Some(id.to_owned());
        } else if let Some(name) = name.strip_prefix(PREFIX) {
            if name.is_empty() || name.chars().any(char::is_control) {
                return Err(violation());
            }
            branches.tips.insert(name.to_owned(), id.to_owned());
        }
        if branches.tips.len() > MAX_BRANCHES {
            return Err(cannot(&format!("the sandbox has more than {MAX_BRANCHES} branches")));
        }
        Ok(())
    }

    /// Asks for a pack with what this side lacks, and writes it to `to`.
    pub fn fetch(&mut self, wanted: &Negotiation, to: &mut impl Write) -> Result<()> {
        let mut lines = vec!["thin-pack\n".to_owned(), "ofs-delta\n".to_owned(), "no-progress\n".to_owned()];
        let named = [("want", &wanted.wants), ("shallow", &wanted.shallow), ("have", &wanted.haves)];
        for (word, ids) in named {
            lines.extend(ids.iter().map(|id| format!("{word} {id}\n")));
        }
        lines.push("done\n".to_owned());
        self.request("fetch", &lines)?;
        // Shallow commits of the server are of no interest: what they stand on has to be here.
        loop {
            match self.packet()? {
                Packet::Line(line) if trimmed(&line) == b"packfile" => break,
                Packet::Flush => return Err(violation()),
                Packet::Line(_) | Packet::Delimiter => {}
            }
        }
        self.pass_on(to)
    }

    /// Passes the pack on, out of the packets that it comes in.
    fn pass_on(&mut self, to: &mut impl Write) -> Result<()> {
        let mut empty = 0;
        while empty <= MAX_EMPTY {
            // The pack has a limit of its own.
            self.packets = 0;
            match self.packet()? {
                Packet::Line(line) => match line.split_first() {
                    // Progress may be anything.
                    Some((1, [])) | Some((2, _)) => empty += 1,
                    Some((1, bytes)) => {
                        empty = 0;
                        to.write_all(bytes).map_err(|source| Error::io("store the commits", source))?;
                    }
                    Some((3, message)) => return Err(failed(message)),
                    _ => return Err(violation()),
                },
                Packet::Flush => return Ok(()),
                Packet::Delimiter => return Err(violation()),
            }
        }
        Err(violation())
    }

    /// Ends the conversation.
    pub fn end(&mut self) -> Result<()> {
        self.write(b"0000")
    }

    fn request(&mut self, command: &str, lines: &[impl AsRef<str>]) -> Result<()> {
        let mut request = Vec::new();
        put(&mut request, &format!("command={command}\n"));
        if self.names_format {
            put(&mut request, &format!("object-format={}\n", format_name(self.algorithm)));
        }
        request.extend(b"0001");
        lines.iter().for_each(|line| put(&mut request, line.as_ref()));
        request.extend(b"0000");
        self.write(&request)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(crate::guest::agent::from_io)
    }

    fn packet(&mut self) -> Result<Packet> {
        self.packets += 1;
        if self.packets > MAX_PACKETS {
            return Err(violation());
        }
        let mut length = [0; 4];
        self.read(&mut length)?;
        let length = std::str::from_utf8(&length).ok().filter(|text| !text.starts_with('+'));
        let length = length.and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or_else(violation)?;
        match length {
            0 => Ok(Packet::Flush),
            1 => Ok(Packet::Delimiter),
            4..=MAX_PACKET => {
                let mut line = vec![0; length - 4];
                self.read(&mut line)?;
                match line.strip_prefix(FAILED) {
                    Some(message) => Err(failed(message)),
                    None => Ok(Packet::Line(line)),
                }
            }
            _ => Err(violation()),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        self.stream.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cannot(ENDED),
            _ => crate::guest::agent::from_io(error),
        })
    }

    fn is_id(&self, text: &str) -> bool {
        let length = match self.algorithm {
            Algorithm::Sha1 => 40,
            Algorithm::Sha256 => 64,
        };
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }
}

fn format_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Sha1 => "sha1",
        Algorithm::Sha256 => "sha256",
    }
}

fn put(to: &mut Vec<u8>, line: &str) {
    to.extend(format!("{:04x}{line}", line.len() + 4).bytes());
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// Limit on the server's own words in an error.
const MAX_MESSAGE: usize = 500;

fn failed(message: &[u8]) -> Error {
    let message = String::from_utf8_lossy(&message[..message.len().min(MAX_MESSAGE)]);
    cannot(&format!("git in the sandbox refuses: {}", message.trim()))
}

fn violation() -> Error {
    cannot("git in the sandbox violates the protocol")
}

/// Returns the error that no commits were fetched, for this reason.
pub fn cannot(reason: &str) -> Error {
    Error::Refused(format!("cannot fetch the commits: {reason}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// A server that says this, whatever it is asked.
    #[derive(Debug)]
    struct Says(io::Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Says {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.read(into)
        }
    }

    impl Write for Says {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn says(parts: &[&str]) -> Says {
        let mut bytes = Vec::new();
        for part in parts {
            match *part {
                "0000" | "0001" => bytes.extend(part.bytes()),
                line => put(&mut bytes, line),
            }
        }
        Says(io::Cursor::new(bytes), Vec::new())
    }

    fn talk(parts: &[&str]) -> Result<(Branches, Vec<u8>)> {
        let mut server = UploadPack::begin(says(parts), Algorithm::Sha1)?;
        let branches = server.branches()?;
        let mut pack = Vec::new();
        server.fetch(&Negotiation { wants: vec![A.to_owned()], ..Negotiation::default() }, &mut pack)?;
        Ok((branches, pack))
    }

    #[test]
    fn branches_and_a_pack_are_read() {
        let (head, main) =
            (format!("{A} HEAD symref-target:refs/heads/main\n"), format!("{A} refs/heads/main\n"));
        let parts = ["version 2\n", "agent=git/2\n", "fetch=shallow\n", "0000", &head, &main, "0000"];
        let pack = [
            "shallow-info\n",
            "shallow x",
            "0001",
            "packfile\n",
            "\u{1}PACK",
            "\u{2}99%",
            "\u{1}end",
            "0000",
        ];
        let (branches, pack) = talk(&[&parts[..], &pack].concat()).unwrap();
        assert_eq!(branches.tips, BTreeMap::from([("main".to_owned(), A.to_owned())]));
        assert_eq!((branches.current.as_deref(), branches.head.as_deref()), (Some("main"), Some(A)));
        assert_eq!(pack, b"PACKend");
    }

    #[test]
    fn what_is_asked_for_is_what_the_protocol_says() {
        let mut server =
            UploadPack::begin(says(&["version 2", "object-format=sha1", "0000"]), Algorithm::Sha1).unwrap();
        let [wants, haves, shallow] = ["w", "h", "s"].map(|id| vec![id.to_owned()]);
        // Nothing answers.
        server.fetch(&Negotiation { wants, haves, shallow }, &mut Vec::new()).unwrap_err();
        assert_eq!(
            String::from_utf8_lossy(&server.stream.1),
            "0012command=fetch\n0017object-format=sha1\n0001000ethin-pack\n000eofs-delta\n0010no-progress\n\
             000bwant w\n000eshallow s\n000bhave h\n0009done\n0000"
        );
    }

    #[test]
    fn a_hostile_server_gets_an_error() {
        let begin = ["version 2\n", "0000"];
        let many: Vec<String> = (0..=MAX_BRANCHES).map(|n| format!("{A} refs/heads/{n}\n")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let flood = vec!["x"; MAX_PACKETS];
        let alive = vec!["\u{1}"; MAX_EMPTY + 1];
        let line = |name: &str| format!("{A} {name}\n");
        let (escape, empty) = (line("refs/heads/\u{1b}[2J"), line("refs/heads/"));
        let pack = |parts: &[&'static str]| [&["0000", "packfile\n"][..], parts].concat();
        for (parts, expect) in [
            (vec![], ENDED),
            (vec!["version 1\n"], "too old"),
            (vec!["ERR no such repository\u{1b}[2J"], "refuses: no such repository"),
            (vec!["version 2\n", "object-format=sha256\n", "0000"], "another hash function"),
            ([&["version 2\n"][..], &flood].concat(), "violates the protocol"),
            ([&begin[..], &["short refs/heads/a\n"]].concat(), "violates the protocol"),
            ([&begin[..], &[&escape]].concat(), "violates the protocol"),
            ([&begin[..], &[&empty]].concat(), "violates the protocol"),
            (
                [&begin[..], &["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA refs/heads/a"]].concat(),
                "violates the protocol",
            ),
            ([&begin[..], &many].concat(), "more than 256 branches"),
            ([&begin[..], &pack(&["\u{1}PA"])].concat(), ENDED),
            ([&begin[..], &pack(&["\u{4}"])].concat(), "violates the protocol"),
            ([&begin[..], &pack(&[""])].concat(), "violates the protocol"),
            ([&begin[..], &pack(&alive)].concat(), "violates the protocol"),
            ([&begin[..], &pack(&["0001"])].concat(), "violates the protocol"),
            ([&begin[..], &pack(&["\u{3}out of memory"])].concat(), "refuses: out of memory"),
            ([&begin[..], &["0000", "0000"]].concat(), "violates the protocol"),
        ] {
            let error = talk(&parts).unwrap_err().to_string();
            assert!(error.contains(expect), "{expect}: {error}");
        }
        for bytes in [&b"0002"[..], b"0003", b"fff1", b"zzzz", b"+00a"] {
            let server = Says(io::Cursor::new(bytes.to_vec()), Vec::new());
            let error = UploadPack::begin(server, Algorithm::Sha1).unwrap_err().to_string();
            assert!(error.contains("violates the protocol"), "{error}");
        }
    }

    #[test]
    fn a_repository_without_branches_is_empty() {
        let mut server = UploadPack::begin(says(&["version 2\n", "0000", "0000"]), Algorithm::Sha1).unwrap();
        assert_eq!(server.branches().unwrap(), Branches::default());
    }
}
