//! Snapshots of what was sent and what came back, as commits in a small repository of banger's own.
//!
//! Contents are the files' bytes: no filter and no conversion of line endings is applied, and no program of a
//! repository is run. The repository contains all its objects, so nothing is lost when the user's repository is
//! garbage-collected.

use std::{
    collections::HashSet,
    fs,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout},
};

use banger_proto::guest::message::Algorithm;

use super::git::{Git, Running};
use crate::error::{Error, Result};

/// The commit of what was sent.
pub const SENT: &str = "refs/banger/sent";

/// One of banger's repositories.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its path.
    pub path: PathBuf,
    /// The hash function of its object names.
    pub algorithm: Algorithm,
}

/// A change of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It gets this mode and content.
    Put {
        /// The mode in a git tree.
        mode: u32,
        /// The content.
        content: Content,
        /// Its name.
        path: Vec<u8>,
    },
    /// It is removed.
    Remove {
        /// Its name.
        path: Vec<u8>,
    },
}

/// A content that the repository has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// By its object name.
    Id(String),
    /// By the mark under which it was imported.
    Mark(u64),
}

impl Snapshot {
    /// Creates an empty repository.
    pub fn create(path: &Path, algorithm: Algorithm) -> Result<Self> {
        fs::create_dir_all(path).map_err(|source| Error::io(format!("create {}", path.display()), source))?;
        let format = match algorithm {
            Algorithm::Sha1 => "--object-format=sha1",
            Algorithm::Sha256 => "--object-format=sha256",
        };
        Git::within(path).run(&["init", "-q", "--bare", "--template=", format, "."], b"")?;
        Ok(Self { path: path.to_owned(), algorithm })
    }

    /// Opens an existing repository.
    pub fn open(path: &Path, algorithm: Algorithm) -> Self {
        Self { path: path.to_owned(), algorithm }
    }

    /// Returns git in this repository.
    pub fn git(&self) -> Git {
        Git::bare(&self.path)
    }

    /// Copies these objects from a repository, whose objects are in this directory. Returns the common path prefix of the
    /// pack's files.
    pub fn take(&self, from: Git, objects: &Path, ids: &HashSet<String>) -> Result<Option<PathBuf>> {
        if ids.is_empty() {
            return Ok(None);
        }
        let base = self.path.join("objects/pack/pack");
        fs::create_dir_all(self.path.join("objects/pack"))
            .map_err(|source| Error::io(format!("create {}", base.display()), source))?;
        let list: String = ids.iter().map(|id| format!("{id}\n")).collect();
        let mut arguments: Vec<std::ffi::OsString> =
            ["pack-objects", "-q", "--window=0", "--delta-base-offset"].map(Into::into).into();
        arguments.push(base.clone().into());
        // git writes a temporary pack and renames it, and the repository may be on another file system.
        let from = from.with_new_objects_in(&self.path.join("objects"), objects);
        let name = from.run(&arguments, list.as_bytes()).map_err(|error| {
            error.with_hint("`git fetch --refetch --no-filter` completes a partial clone.")
        })?;
        let mut pack = base.into_os_string();
        pack.push("-");
        pack.push(String::from_utf8_lossy(&name).trim());
        Ok(Some(pack.into()))
    }

    /// Starts to import contents.
    pub fn import(&self) -> Result<Importer> {
        Importer::of(&self.git(), &["--force"])
    }

    /// Returns the commit of a ref.
    pub fn commit(&self, name: &str) -> Result<String> {
        let line = self.git().line(&["rev-parse", "-q", "--verify", name])?;
        line.and_then(|line| String::from_utf8(line).ok()).ok_or_else(|| {
            Error::Refused("the record of the workspace on this host is damaged".to_owned()).with_hint(
                "fetch what you need with `banger vm cp`, then send the repository again with `banger vm \
                 workspace prepare --force NAME`.",
            )
        })
    }

    /// Returns a reader of objects.
    pub fn contents(&self) -> Result<Contents> {
        Contents::of(&self.git())
    }
}

/// Imports contents, and commits them.
#[derive(Debug)]
pub struct Importer {
    running: Running,
    input: BufWriter<ChildStdin>,
    marks: u64,
}

impl Importer {
    /// Imports into this repository. An existing branch can only grow, unless an option says otherwise.
    pub fn of(git: &Git, options: &[&str]) -> Result<Self> {
        let arguments = ["fast-import", "--quiet", "--done", "--date-format=raw"];
        let mut running = git.start(&[&arguments[..], options].concat())?;
        let input =
            running.child()?.stdin.take().ok_or_else(|| Error::io("run git", io::ErrorKind::Other.into()))?;
        Ok(Self { running, input: BufWriter::with_capacity(64 << 10, input), marks: 0 })
    }

    /// Imports a content of this size.
    pub fn blob(&mut self, size: u64, content: &mut impl Read) -> Result<Content> {
        self.marks += 1;
        let mark = self.marks;
        self.write(format!("blob\nmark :{mark}\ndata {size}\n").as_bytes())?;
        let copied =
            io::copy(&mut content.take(size), &mut self.input).map_err(crate::guest::agent::from_io)?;
        if copied != size {
            return Err(
                Error::Refused("a file was truncated while it was read".to_owned()).with_hint("try again.")
            );
        }
        self.write(b"\n")?;
        Ok(Content::Mark(mark))
    }

    /// Commits changes of `parent`, or of nothing, under this ref, and ends the import.
    pub fn commit(mut self, name: &str, parent: Option<&str>, changes: &[Change]) -> Result<()> {
        // A commit that is left under this ref is not a parent.
        if parent.is_none_or(|parent| parent.strip_suffix("^0") != Some(name)) {
            self.write(format!("reset {name}\n\n").as_bytes())?;
        }
        let head = format!("commit {name}\ncommitter banger <banger> 0 +0000\ndata 0\n");
        self.write(head.as_bytes())?;
        if let Some(parent) = parent {
            self.write(format!("from {parent}\n").as_bytes())?;
        }
        self.apply(changes)?;
        self.end()
    }

    /// Writes changes. Removals come first, because a directory may take the place of a file.
    pub fn apply(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            if let Change::Remove { path } = change {
                self.write(&[b"D ", quote(path).as_slice(), b"\n"].concat())?;
            }
        }
        for change in changes {
            if let Change::Put { mode, content, path } = change {
                let content = match content {
                    Content::Id(id) => id.clone(),
                    Content::Mark(mark) => format!(":{mark}"),
                };
                let line = format!("M {mode:o} {content} ");
                self.write(&[line.as_bytes(), quote(path).as_slice(), b"\n"].concat())?;
            }
        }
        Ok(())
    }

    /// Writes other commands.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.input.write_all(bytes).map_err(|source| Error::io("store a copy of the files", source))
    }

    /// Ends the import.
    pub fn end(mut self) -> Result<()> {
        let said = self.write(b"done\n").and_then(|()| {
            self.input.flush().map_err(|source| Error::io("store a copy of the files", source))
        });
        drop(self.input);
        // Git's status explains the end better than a broken pipe.
        self.running.finish().and(said)
    }
}

/// Quotes a path for fast-import, which accepts quotes around everything.
fn quote(path: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for byte in path {
        match byte {
            b'"' | b'\\' => quoted.extend([b'\\', *byte]),
            b'\n' => quoted.extend(b"\\n"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'"');
    quoted
}

/// Reads objects by name (git-cat-file(1), `--batch`).
#[derive(Debug)]
pub struct Contents {
    running: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Contents {
    /// Reads from a repository.
    pub fn of(git: &Git) -> Result<Self> {
        let mut running = git.start(&["cat-file", "--batch"])?;
        let child = running.child()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Self { running, input, output: BufReader::new(output) }),
            _ => Err(Error::io("run git", io::ErrorKind::Other.into())),
        }
    }

    /// Calls `take` with the content of an object and its size.
    pub fn read<T>(&mut self, id: &str, take: impl FnOnce(u64, &mut dyn Read) -> Result<T>) -> Result<T> {
        let failed = |source| Error::io(format!("read {id} in the repository"), source);
        self.input.write_all(format!("{id}\n").as_bytes()).map_err(failed)?;
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(failed)?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "blob", size] = fields[..] else { return Err(failed(io::ErrorKind::NotFound.into())) };
        let size: u64 = size.parse().map_err(|_| failed(io::ErrorKind::InvalidData.into()))?;
        let mut content = (&mut self.output).take(size);
        let taken = take(size, &mut content)?;
        // Skips the rest of the content, and the line feed after it.
        io::copy(&mut content, &mut io::sink()).map_err(failed)?;
        self.output.read_exact(&mut [0]).map_err(failed)?;
        Ok(taken)
    }

    /// Returns a whole content.
    pub fn bytes(&mut self, id: &str) -> Result<Vec<u8>> {
        self.read(id, |_, content| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(|source| Error::io(format!("read {id}"), source))?;
            Ok(bytes)
        })
    }

    /// Ends the reader.
    pub fn end(self) -> Result<()> {
        drop((self.input, self.output));
        self.running.finish()
    }
}
