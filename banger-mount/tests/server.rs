//! A server and what a guest may send it, against a directory of the test.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    cell::Cell,
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use banger_mount::{HEADER, Limits, Options, Server, Violation};
use banger_proto::guest::mount::{MAX_IO, Owner};
use rustix::{
    fs::{CWD, FileType, Mode},
    io::Errno,
};
use tempfile::TempDir;

const ROOT: u64 = 1;
const OWNER: Owner = Owner { uid: 1234, gid: 4321 };
/// Every opcode that is served after the first message, and the length of its body; names are `x`.
const BODIES: [(u32, usize); 28] = [
    (1, 2),
    (2, 8),
    (3, 16),
    (4, 88),
    (5, 0),
    (6, 4),
    (8, 18),
    (9, 10),
    (10, 2),
    (11, 2),
    (12, 12),
    (13, 10),
    (14, 8),
    (15, 40),
    (16, 40),
    (17, 0),
    (18, 24),
    (20, 16),
    (27, 8),
    (28, 40),
    (29, 24),
    (30, 16),
    (35, 18),
    (42, 8),
    (44, 40),
    (45, 20),
    (38, 0),
    (99, 0),
];

#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn new() -> Self {
        Self::default()
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn name(mut self, name: &str) -> Self {
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

fn message(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let body = Body(body.to_vec());
    let header = Body::new().u32((HEADER + body.0.len()) as u32).u32(opcode).u64(unique).u64(node);
    header.u64(0).u64(0).bytes(&body.0).0
}

/// The kernel of a guest.
struct Guest {
    dir: TempDir,
    server: Server,
    unique: Cell<u64>,
}

impl Guest {
    fn new() -> Self {
        Self::with(false, Limits { nodes: 1000, handles: 100, held: 100 })
    }

    fn with(read_only: bool, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(dir.path(), read_only, limits);
        Self { dir, server, unique: Cell::new(1) }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn call(&self, opcode: u32, node: u64, body: Body) -> Result<Vec<u8>, Errno> {
        self.unique.set(self.unique.get() + 1);
        let answer = self.server.answer(&message(opcode, self.unique.get(), node, &body.0)).unwrap().unwrap();
        assert_eq!(u32_at(&answer, 0) as usize, answer.len());
        assert_eq!(u64_at(&answer, 8), self.unique.get());
        match u32_at(&answer, 4) as i32 {
            0 => Ok(answer[16..].to_vec()),
            error => {
                assert_eq!(answer.len(), 16);
                Err(Errno::from_raw_os_error(-error))
            }
        }
    }

    /// Returns the number and the mode of an entry.
    fn lookup(&self, parent: u64, name: &str) -> Result<(u64, u32), Errno> {
        let found = self.call(1, parent, Body::new().name(name))?;
        Ok((u64_at(&found, 0), u32_at(&found, 40 + 60)))
    }

    fn forget(&self, node: u64, times: u64) {
        assert_eq!(self.server.answer(&message(2, 9, node, &times.to_ne_bytes())), Ok(None));
    }

    fn open(&self, node: u64, flags: u32) -> Result<u64, Errno> {
        self.call(14, node, Body::new().u32(flags).u32(0)).map(|opened| u64_at(&opened, 0))
    }

    fn release(&self, node: u64, handle: u64) -> Result<(), Errno> {
        self.call(18, node, Body::new().u64(handle).u64(0).u64(0)).map(drop)
    }

    fn create(&self, parent: u64, name: &str, flags: u32, mode: u32) -> Result<(u64, u64), Errno> {
        let created = self.call(35, parent, Body::new().u32(flags).u32(mode).u32(0).u32(0).name(name))?;
        Ok((u64_at(&created, 0), u64_at(&created, 128)))
    }

    fn read(&self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.call(15, node, reading(handle, offset, size))
    }

    fn write(&self, node: u64, handle: u64, offset: u64, flags: u32, bytes: &[u8]) -> Result<u32, Errno> {
        let body =
            Body::new().u64(handle).u64(offset).u32(bytes.len() as u32).u32(flags).u64(0).u64(0).bytes(bytes);
        self.call(16, node, body).map(|written| u32_at(&written, 0))
    }

    /// Returns the names in a directory, read with this much room at a time, and the numbers that came with them.
    fn list(&self, node: u64, room: u32, plus: bool) -> Vec<(String, u64)> {
        let handle = u64_at(&self.call(27, node, Body::new().u64(0)).unwrap(), 0);
        let (mut names, mut offset) = (Vec::new(), 0);
        let entry = if plus { 128 } else { 0 };
        loop {
            let opcode = if plus { 44 } else { 28 };
            let read = self.call(opcode, node, reading(handle, offset, room)).unwrap();
            assert!(read.len() <= room as usize);
            if read.is_empty() {
                self.call(29, node, Body::new().u64(handle).u64(0).u64(0)).unwrap();
                return names;
            }
            let mut at = 0;
            while at < read.len() {
                let number = if plus { u64_at(&read, at) } else { 0 };
                let dirent = at + entry;
                offset = u64_at(&read, dirent + 8);
                let length = u32_at(&read, dirent + 16) as usize;
                let name = String::from_utf8(read[dirent + 24..dirent + 24 + length].to_vec()).unwrap();
                if !name.starts_with('.') {
                    names.push((name, number));
                }
                at = (dirent + 24 + length).next_multiple_of(8);
            }
        }
    }
}

fn serve(path: &Path, read_only: bool, limits: Limits) -> Server {
    let root = banger_mount::open(path).unwrap();
    let server = Server::new(root, Options { read_only, owner: OWNER, limits }).unwrap();
    let answer = server.answer(&init(7, 40)).unwrap().unwrap();
    assert_eq!((u32_at(&answer, 16), u32_at(&answer, 20), u32_at(&answer, 36)), (7, 31, MAX_IO as u32));
    assert_eq!(answer.len(), 16 + 64);
    server
}

fn init(major: u32, minor: u32) -> Vec<u8> {
    message(26, 1, 0, &Body::new().u32(major).u32(minor).u32(1 << 20).u32(!0).0)
}

fn reading(handle: u64, offset: u64, size: u32) -> Body {
    Body::new().u64(handle).u64(offset).u32(size).u32(0).u64(0).u64(0)
}

/// A change of attributes: which ones, the handle, the size, the mode and the owner.
fn setting(valid: u32, handle: u64, size: u64, mode: u32, owner: (u32, u32)) -> Body {
    let body = Body::new().u32(valid).u32(0).u64(handle).u64(size).u64(0).u64(0).u64(0).u64(0);
    body.u32(0).u32(0).u32(0).u32(mode).u32(0).u32(owner.0).u32(owner.1).u32(0)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn kind(mode: u32) -> FileType {
    FileType::from_raw_mode(mode)
}

#[test]
fn files_are_created_written_read_and_removed() {
    let guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "a", libc_flags::RDWR, 0o640).unwrap();
    assert_eq!(guest.write(node, handle, 3, 0, b"hello"), Ok(5));
    assert_eq!(guest.read(node, handle, 0, 100), Ok(b"\0\0\0hello".to_vec()));
    assert_eq!(guest.read(node, handle, 100, 100), Ok(Vec::new()));
    guest.call(20, node, Body::new().u64(handle).u32(1).u32(0)).unwrap();
    guest.release(node, handle).unwrap();
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"\0\0\0hello");
    // Truncated by name, and by a handle.
    guest.call(4, node, setting(8, 0, 4, 0, (0, 0))).unwrap();
    let handle = guest.open(node, libc_flags::WRONLY).unwrap();
    guest.call(4, node, setting(8 | 64, handle, 2, 0, (0, 0))).unwrap();
    assert_eq!(fs::metadata(guest.path("a")).unwrap().len(), 2);
    assert_eq!(guest.read(node, handle, 0, 1), Err(Errno::BADF));
    let directory = u64_at(&guest.call(9, ROOT, Body::new().u32(0o755).u32(0).name("d")).unwrap(), 0);
    guest.call(13, directory, Body::new().u64(node).name("twin")).unwrap();
    assert_eq!(fs::metadata(guest.path("d/twin")).unwrap().nlink(), 2);
    guest.call(6, directory, Body::new().name("link").name("../a")).unwrap();
    assert_eq!(fs::read_link(guest.path("d/link")).unwrap(), Path::new("../a"));
    assert_eq!(guest.call(11, ROOT, Body::new().name("d")), Err(Errno::NOTEMPTY));
    for name in ["twin", "link"] {
        guest.call(10, directory, Body::new().name(name)).unwrap();
    }
    guest.call(11, ROOT, Body::new().name("d")).unwrap();
    assert!(!guest.path("d").exists());
    assert_eq!(guest.call(17, ROOT, Body::new()).unwrap().len(), 80);
}

/// Flags of open(2), as a guest sends them.
mod libc_flags {
    pub const WRONLY: u32 = 1;
    pub const RDWR: u32 = 2;
    pub const EXCL: u32 = 0o200;
    pub const TRUNC: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("d/sub")).unwrap();
    let long = "x".repeat(256);
    for name in ["", ".", "..", "d/sub", "/etc", "../x", &long] {
        let expect = if name.len() == 256 { Errno::NAMETOOLONG } else { Errno::INVAL };
        let named = |body: Body| body.name(name);
        for (opcode, body) in [
            (1, named(Body::new())),
            (6, named(Body::new()).name("target")),
            (8, named(Body::new().u32(0o100_644).u32(0).u64(0))),
            (9, named(Body::new().u64(0))),
            (10, named(Body::new())),
            (11, named(Body::new())),
            (12, named(Body::new().u64(ROOT)).name("new")),
            (12, named(Body::new().u64(ROOT).name("d"))),
            (13, named(Body::new().u64(ROOT))),
            (35, named(Body::new().u64(0).u64(0))),
            (45, named(Body::new().u64(ROOT).u64(0)).name("new")),
        ] {
            assert_eq!(guest.call(opcode, ROOT, body), Err(expect), "{opcode} {name}");
        }
    }
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 1);
}

#[test]
fn links_are_text_and_lead_nowhere_on_the_host() {
    let guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), guest.path("directory")).unwrap();
    symlink(outside.path().join("secret"), guest.path("file")).unwrap();
    symlink("/proc/self/cwd", guest.path("magic")).unwrap();
    for name in ["directory", "file", "magic"] {
        let (node, mode) = guest.lookup(ROOT, name).unwrap();
        assert_eq!(kind(mode), FileType::Symlink);
        let target = guest.call(5, node, Body::new()).unwrap();
        assert_eq!(target, fs::read_link(guest.path(name)).unwrap().as_os_str().as_encoded_bytes());
        assert_eq!(guest.lookup(node, "secret"), Err(Errno::NOTDIR));
        assert_eq!(guest.open(node, 0), Err(Errno::ACCESS));
        assert!(guest.call(27, node, Body::new().u64(0)).is_err());
        assert_eq!(guest.call(4, node, setting(1, 0, 0, 0o777, (0, 0))), Err(Errno::OPNOTSUPP));
        assert_eq!(guest.call(4, node, setting(8, 0, 0, 0, (0, 0))), Err(Errno::ACCESS));
        assert!(guest.create(node, "new", libc_flags::RDWR, 0o644).is_err());
        assert_eq!(guest.create(ROOT, name, libc_flags::RDWR | libc_flags::TRUNC, 0o644), Err(Errno::ACCESS));
        // The times of the link itself.
        guest.call(4, node, setting(16 | 32, 0, 0, 0, (0, 0))).unwrap();
    }
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert!(fs::metadata(outside.path().join("secret")).unwrap().mtime() > 0);
    assert_eq!(fs::symlink_metadata(guest.path("file")).unwrap().mtime(), 0);
    // A directory that becomes a link while the guest knows it is the same directory still.
    fs::create_dir(guest.path("d")).unwrap();
    let (node, _) = guest.lookup(ROOT, "d").unwrap();
    fs::rename(guest.path("d"), guest.path("e")).unwrap();
    symlink(outside.path(), guest.path("d")).unwrap();
    assert_eq!(guest.lookup(node, "secret").map(|(node, _)| node), Ok(0));
}

#[test]
fn other_file_systems_below_are_not_entered() {
    let server = serve(Path::new("/"), true, Limits { nodes: 10, handles: 10, held: 10 });
    let answer = server.answer(&message(1, 2, ROOT, b"proc\0")).unwrap().unwrap();
    assert_eq!(u32_at(&answer, 4) as i32, -Errno::XDEV.raw_os_error());
    assert!(banger_mount::open(Path::new("/proc")).unwrap_err().to_string().contains("no files of users"));
    assert!(banger_mount::open(Path::new("/proc/self/fd")).is_err());
}

#[test]
fn special_files_are_neither_opened_nor_created() {
    let guest = Guest::new();
    rustix::fs::mknodat(CWD, guest.path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("socket")).unwrap();
    for (name, expect) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        let (node, mode) = guest.lookup(ROOT, name).unwrap();
        assert_eq!(kind(mode), expect);
        // A FIFO would block for ever.
        assert_eq!(guest.open(node, 0), Err(Errno::ACCESS));
        assert_eq!(guest.create(ROOT, name, libc_flags::WRONLY, 0o644), Err(Errno::ACCESS));
        assert_eq!(guest.call(13, ROOT, Body::new().u64(node).name("new")), Err(Errno::PERM));
    }
    for kind in [0o010_000, 0o020_000, 0o060_000, 0o140_000, 0o040_000, 0, !0] {
        let body = Body::new().u32(kind | 0o666).u32(0x103).u64(0).name("new");
        assert_eq!(guest.call(8, ROOT, body), Err(Errno::PERM), "{kind:o}");
    }
    guest.call(8, ROOT, Body::new().u32(0o107_644).u32(0).u64(0).name("file")).unwrap();
    assert_eq!(fs::metadata(guest.path("file")).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn nothing_gets_more_rights() {
    let guest = Guest::new();
    let (node, _) = guest.create(ROOT, "a", libc_flags::RDWR, 0o7755).unwrap();
    let mode = || fs::metadata(guest.path("a")).unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o755);
    guest.call(4, node, setting(1, 0, 0, 0o107_711, (0, 0))).unwrap();
    assert_eq!(mode(), 0o711);
    let directory = u64_at(&guest.call(9, ROOT, Body::new().u32(0o7755).u32(0).name("d")).unwrap(), 0);
    guest.call(4, directory, setting(1, 0, 0, 0o7755, (0, 0))).unwrap();
    assert_eq!(fs::metadata(guest.path("d")).unwrap().mode() & 0o4000, 0);
    // Attributes show the owner, not the user of the test.
    let attributes = guest.call(3, node, Body::new().u64(0).u64(0)).unwrap();
    assert_eq!((u32_at(&attributes, 16 + 68), u32_at(&attributes, 16 + 72)), (OWNER.uid, OWNER.gid));
    // Owners stay, whatever the guest says.
    let owner = || fs::metadata(guest.path("a")).map(|found| (found.uid(), found.gid())).unwrap();
    let before = owner();
    for valid in [2, 4, 6] {
        let attributes = guest.call(4, node, setting(valid, 0, 0, 0, (77, 77))).unwrap();
        assert_eq!((u32_at(&attributes, 16 + 68), u32_at(&attributes, 16 + 72)), (OWNER.uid, OWNER.gid));
    }
    assert_eq!((owner(), mode()), (before, 0o711));
    // Attributes with names, locks and everything else.
    for opcode in
        [0, 7, 19, 21, 22, 23, 24, 25, 31, 32, 33, 34, 36, 37, 39, 40, 41, 43, 46, 47, 48, 4096, u32::MAX]
    {
        assert_eq!(guest.call(opcode, ROOT, Body::new().u64(!0)), Err(Errno::NOSYS), "{opcode}");
    }
}

#[test]
fn files_of_others_belong_to_nobody() {
    let guest = Guest::new();
    fs::write(guest.path("a"), "").unwrap();
    if rustix::fs::chown(
        guest.path("a"),
        Some(rustix::fs::Uid::from_raw(77)),
        Some(rustix::fs::Gid::from_raw(77)),
    )
    .is_err()
    {
        return println!("skipped: only root gives files away");
    }
    let found = guest.call(1, ROOT, Body::new().name("a")).unwrap();
    assert_eq!((u32_at(&found, 40 + 68), u32_at(&found, 40 + 72)), (65534, 65534));
}

#[test]
fn a_read_only_server_changes_nothing() {
    let guest = Guest::with(true, Limits { nodes: 100, handles: 10, held: 10 });
    fs::write(guest.path("a"), "kept").unwrap();
    fs::create_dir(guest.path("d")).unwrap();
    let (node, _) = guest.lookup(ROOT, "a").unwrap();
    let before = fs::metadata(guest.path("a")).unwrap();
    for (opcode, at, body) in [
        (4, node, setting(1, 0, 0, 0, (0, 0))),
        (4, node, setting(8, 0, 0, 0, (0, 0))),
        (4, node, setting(32 | 256, 0, 0, 0, (0, 0))),
        (6, ROOT, Body::new().name("new").name("x")),
        (8, ROOT, Body::new().u32(0o100_644).u32(0).u64(0).name("new")),
        (9, ROOT, Body::new().u64(0o755).name("new")),
        (10, ROOT, Body::new().name("a")),
        (11, ROOT, Body::new().name("d")),
        (12, ROOT, Body::new().u64(ROOT).name("a").name("new")),
        (13, ROOT, Body::new().u64(node).name("new")),
        (14, node, Body::new().u32(libc_flags::WRONLY).u32(0)),
        (14, node, Body::new().u32(libc_flags::RDWR).u32(0)),
        (14, node, Body::new().u32(libc_flags::TRUNC).u32(0)),
        (35, ROOT, Body::new().u64(0).u64(0).name("new")),
        (45, ROOT, Body::new().u64(ROOT).u64(0).name("a").name("new")),
    ] {
        assert_eq!(guest.call(opcode, at, body), Err(Errno::ROFS), "{opcode}");
    }
    let handle = guest.open(node, 0).unwrap();
    assert_eq!(guest.write(node, handle, 0, 0, b"x"), Err(Errno::ROFS));
    assert_eq!(guest.read(node, handle, 0, 10), Ok(b"kept".to_vec()));
    let after = fs::metadata(guest.path("a")).unwrap();
    assert_eq!((before.mtime_nsec(), before.ctime_nsec()), (after.mtime_nsec(), after.ctime_nsec()));
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 2);
}

#[test]
fn wrong_lengths_end_the_mount() {
    let guest = Guest::new();
    for (opcode, length) in BODIES {
        let body = body_of(length);
        if opcode == 99 {
            continue;
        }
        assert!(guest.server.answer(&message(opcode, 7, ROOT, &body)).is_ok(), "{opcode}");
        let longer = [&body[..], &[0]].concat();
        assert_eq!(
            guest.server.answer(&message(opcode, 7, ROOT, &longer)),
            Err(Violation::Body(opcode)),
            "{opcode}"
        );
        if let Some((_, shorter)) = body.split_last() {
            let answer = guest.server.answer(&message(opcode, 7, ROOT, shorter));
            assert_eq!(answer, Err(Violation::Body(opcode)), "{opcode}");
        }
    }
    let message = message(3, 7, ROOT, &[0; 16]);
    for (wrong, length) in [(&message[..39], 39), (&[][..], 0), (&message[..50], 50)] {
        assert_eq!(guest.server.answer(wrong), Err(Violation::Length(length)));
    }
    // A count of what is forgotten that does not fit.
    let forget = Body::new().u32(!0).u32(0).u64(5).u64(1);
    assert_eq!(guest.server.answer(&self::message(42, 7, 0, &forget.0)), Err(Violation::Body(42)));
}

/// Returns a body of this length that ends in names, if its length is no multiple of four bytes.
fn body_of(length: usize) -> Vec<u8> {
    let names: &[u8] = match (length % 8, length) {
        (_, 4) => b"x\0x\0",
        (4, _) => b"x\0x\0",
        (2, _) => b"x\0",
        _ => b"",
    };
    [&vec![0; length - names.len()][..], names].concat()
}

#[test]
fn a_connection_begins_once_and_with_a_version_that_is_known() {
    let new = || {
        let root = banger_mount::open(&std::env::temp_dir()).unwrap();
        let limits = Limits { nodes: 10, handles: 10, held: 10 };
        Server::new(root, Options { read_only: true, owner: OWNER, limits }).unwrap()
    };
    assert_eq!(new().answer(&message(3, 1, ROOT, &[0; 16])), Err(Violation::Order(3)));
    assert_eq!(new().answer(&message(2, 1, ROOT, &[0; 8])), Err(Violation::Order(2)));
    for (major, minor) in [(6, 31), (7, 30), (8, 0), (0, 0)] {
        assert_eq!(new().answer(&init(major, minor)), Err(Violation::Version(major, minor)));
    }
    let server = new();
    assert!(server.answer(&init(7, 31)).is_ok());
    assert_eq!(server.answer(&init(7, 31)), Err(Violation::Order(26)));
}

#[test]
fn numbers_that_were_not_given_are_refused() {
    let guest = Guest::new();
    fs::write(guest.path("a"), "abc").unwrap();
    fs::write(guest.path("b"), "abc").unwrap();
    for node in [0, 2, 77, u64::MAX] {
        assert_eq!(guest.call(3, node, Body::new().u64(0).u64(0)), Err(Errno::STALE));
        assert_eq!(guest.lookup(node, "a"), Err(Errno::STALE));
        guest.forget(node, u64::MAX);
    }
    let ((a, _), (b, _)) = (guest.lookup(ROOT, "a").unwrap(), guest.lookup(ROOT, "b").unwrap());
    let handle = guest.open(a, 0).unwrap();
    assert_eq!(guest.read(b, handle, 0, 3), Err(Errno::BADF), "a handle of another file");
    assert_eq!(guest.read(a, handle + 1, 0, 3), Err(Errno::BADF));
    assert_eq!(guest.call(28, a, reading(handle, 0, 4096)), Err(Errno::NOTDIR));
    guest.release(a, handle).unwrap();
    assert_eq!(guest.read(a, handle, 0, 3), Err(Errno::BADF));
    assert_eq!(guest.release(a, handle), Err(Errno::BADF));
    let directory = u64_at(&guest.call(27, ROOT, Body::new().u64(0)).unwrap(), 0);
    assert_eq!(guest.write(ROOT, directory, 0, 0, b"x"), Err(Errno::BADF));
    assert_eq!(guest.open(ROOT, 0), Err(Errno::ISDIR));
    assert_eq!(guest.open(a, 3), Err(Errno::INVAL));
    // A file that the guest's kernel has forgotten, and the directory itself, which it cannot.
    guest.forget(a, 1);
    assert_eq!(guest.open(a, 0), Err(Errno::STALE));
    guest.forget(ROOT, u64::MAX);
    assert!(guest.lookup(ROOT, "a").is_ok());
}

#[test]
fn sizes_and_positions_are_bounded() {
    let guest = Guest::new();
    let (node, handle) = guest.create(ROOT, "a", libc_flags::RDWR, 0o644).unwrap();
    assert_eq!(guest.read(node, handle, 0, MAX_IO as u32 + 1), Err(Errno::INVAL));
    assert_eq!(guest.read(node, handle, 0, u32::MAX), Err(Errno::INVAL));
    assert!(guest.read(node, handle, u64::MAX, 1).is_err());
    assert!(guest.write(node, handle, u64::MAX, 0, b"x").is_err());
    assert!(guest.write(node, handle, i64::MAX as u64, 0, b"x").is_err());
    assert_eq!(guest.write(node, handle, 0, 0, &vec![7; MAX_IO]), Ok(MAX_IO as u32));
    assert!(guest.call(4, node, setting(8, 0, u64::MAX, 0, (0, 0))).is_err());
    let directory = u64_at(&guest.call(27, ROOT, Body::new().u64(0)).unwrap(), 0);
    assert_eq!(guest.call(28, ROOT, reading(directory, 0, u32::MAX)), Err(Errno::INVAL));
    assert!(guest.call(28, ROOT, reading(directory, u64::MAX, 4096)).is_err());
    // The length of the data is that in the message, or the mount ends.
    let body = Body::new().u64(handle).u64(0).u32(3).u32(0).u64(0).u64(0).bytes(b"more");
    assert_eq!(guest.server.answer(&message(16, 9, node, &body.0)), Err(Violation::Body(16)));
    let nanoseconds = Body::new().u32(32).u32(0).u64(0).u64(0).u64(0).u64(0).u64(5).u64(0);
    let nanoseconds = nanoseconds.u32(0).u32(1_000_000_000).u32(0).u32(0).u32(0).u64(0).u32(0);
    assert_eq!(guest.call(4, node, nanoseconds), Err(Errno::INVAL));
}

#[test]
fn numbers_handles_and_descriptors_are_bounded_and_come_back() {
    let limits = Limits { nodes: 21, handles: 3, held: 4 };
    let guest = Guest::with(false, limits);
    fs::create_dir(guest.path("d")).unwrap();
    for number in 0..40 {
        fs::write(guest.path(&format!("d/{number}")), format!("{number}")).unwrap();
    }
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let (directory, _) = guest.lookup(ROOT, "d").unwrap();
    let nodes: Vec<u64> = (0..19).map(|n| guest.lookup(directory, &n.to_string()).unwrap().0).collect();
    assert!(descriptors() <= before + limits.held, "{} after {before}", descriptors());
    assert_eq!(guest.lookup(directory, "30"), Err(Errno::NFILE));
    assert_eq!(guest.create(directory, "new", libc_flags::WRONLY, 0o644), Err(Errno::NFILE));
    assert!(!guest.path("d/new").exists());
    // What is known already needs no room, and descriptors that were closed are opened again.
    assert_eq!(guest.lookup(directory, "7").unwrap().0, nodes[7]);
    for (number, node) in nodes.iter().enumerate().take(3) {
        let handle = guest.open(*node, 0).unwrap();
        assert_eq!(guest.read(*node, handle, 0, 9), Ok(number.to_string().into_bytes()));
        if number > 0 {
            guest.release(*node, handle).unwrap();
        }
    }
    let open: Vec<u64> = (0..2).map(|_| guest.open(nodes[1], 0).unwrap()).collect();
    assert_eq!(guest.open(nodes[2], 0), Err(Errno::NFILE));
    guest.release(nodes[1], open[0]).unwrap();
    assert!(guest.open(nodes[2], 0).is_ok());
    // It was looked up twice.
    guest.forget(nodes[7], 1);
    assert_eq!(guest.lookup(directory, "30"), Err(Errno::NFILE));
    guest.forget(nodes[7], 1);
    assert!(guest.lookup(directory, "30").is_ok());
    let forget = Body::new().u32(2).u32(0).u64(nodes[8]).u64(1).u64(nodes[9]).u64(9);
    assert_eq!(guest.server.answer(&message(42, 9, 0, &forget.0)), Ok(None));
    assert!(guest.lookup(directory, "31").is_ok() && guest.lookup(directory, "32").is_ok());
}

#[test]
fn a_file_that_has_become_another_one_is_not_taken_for_it() {
    let guest = Guest::with(false, Limits { nodes: 100, handles: 10, held: 1 });
    for name in ["a", "b", "c"] {
        fs::write(guest.path(name), name).unwrap();
    }
    let (a, _) = guest.lookup(ROOT, "a").unwrap();
    // Their descriptors take the place of the first one.
    for name in ["b", "c", "b", "c"] {
        guest.lookup(ROOT, name).unwrap();
    }
    fs::rename(guest.path("b"), guest.path("a")).unwrap();
    assert_eq!(guest.open(a, 0), Err(Errno::STALE));
    assert_ne!(guest.lookup(ROOT, "a").unwrap().0, a);
}

#[test]
fn a_file_is_followed_when_it_moves() {
    let guest = Guest::with(false, Limits { nodes: 100, handles: 10, held: 1 });
    fs::create_dir_all(guest.path("d/e")).unwrap();
    fs::write(guest.path("d/e/a"), "a").unwrap();
    fs::write(guest.path("b"), "b").unwrap();
    let (d, _) = guest.lookup(ROOT, "d").unwrap();
    let (e, _) = guest.lookup(d, "e").unwrap();
    let (a, _) = guest.lookup(e, "a").unwrap();
    let (b, _) = guest.lookup(ROOT, "b").unwrap();
    let renamed = |from: (u64, &str), to: (u64, &str), flags: u32| {
        let body = Body::new().u64(to.0).u32(flags).u32(0).name(from.1).name(to.1);
        guest.call(45, from.0, body).map(drop)
    };
    assert_eq!(renamed((e, "a"), (ROOT, "b"), 1), Err(Errno::EXIST));
    assert_eq!(renamed((e, "a"), (ROOT, "b"), 4), Err(Errno::INVAL));
    assert_eq!(renamed((ROOT, "d"), (e, "x"), 0), Err(Errno::INVAL), "below itself");
    renamed((e, "a"), (ROOT, "b"), 2).unwrap();
    renamed((ROOT, "d"), (ROOT, "f"), 0).unwrap();
    let content = |node: u64| guest.open(node, 0).and_then(|handle| guest.read(node, handle, 0, 9));
    assert_eq!((content(a), content(b)), (Ok(b"a".to_vec()), Ok(b"b".to_vec())));
    assert!(guest.path("f/e/a").exists());
    guest.call(12, ROOT, Body::new().u64(e).name("b").name("moved")).unwrap();
    assert_eq!(content(a), Ok(b"a".to_vec()));
}

#[test]
fn a_directory_is_read_completely_in_small_pieces() {
    let guest = Guest::new();
    let mut expect: Vec<String> =
        (0..50).map(|number| format!("{number}{}", "x".repeat(number * 4))).collect();
    for name in &expect {
        fs::write(guest.path(name), "").unwrap();
    }
    expect.sort();
    for (room, plus) in [(600, false), (600, true), (MAX_IO as u32, false), (MAX_IO as u32, true)] {
        let mut found = guest.list(ROOT, room, plus);
        found.sort();
        let names: Vec<&String> = found.iter().map(|(name, _)| name).collect();
        assert_eq!(names, expect.iter().collect::<Vec<_>>(), "{room}");
        for (name, node) in found {
            match plus {
                true => assert_eq!(guest.lookup(ROOT, &name).unwrap().0, node, "{name}"),
                false => assert_eq!(node, 0),
            }
        }
    }
    // Without room for its number, a file still has its name.
    let small = Guest::with(false, Limits { nodes: 1, handles: 2, held: 2 });
    fs::write(small.path("a"), "").unwrap();
    assert_eq!(small.list(ROOT, 4096, true), [("a".to_owned(), 0)]);
}

#[test]
fn what_is_appended_goes_to_the_end() {
    let guest = Guest::new();
    fs::write(guest.path("log"), "one\n").unwrap();
    let (node, _) = guest.lookup(ROOT, "log").unwrap();
    let handle = guest.open(node, libc_flags::WRONLY | libc_flags::APPEND).unwrap();
    // The guest does not know about this line yet.
    fs::File::options().append(true).open(guest.path("log")).unwrap().write_all(b"two\n").unwrap();
    guest.write(node, handle, 4, 0, b"three\n").unwrap();
    assert_eq!(fs::read_to_string(guest.path("log")).unwrap(), "one\ntwo\nthree\n");
    // A page that was mapped has its place.
    guest.write(node, handle, 0, 1, b"ONE").unwrap();
    assert_eq!(fs::read_to_string(guest.path("log")).unwrap(), "ONE\ntwo\nthree\n");
}

#[test]
fn a_file_that_is_there_already_is_opened_unless_it_must_be_new() {
    let guest = Guest::new();
    fs::write(guest.path("a"), "old").unwrap();
    fs::set_permissions(guest.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(guest.create(ROOT, "a", libc_flags::RDWR | libc_flags::EXCL, 0o644), Err(Errno::EXIST));
    let (node, handle) = guest.create(ROOT, "a", libc_flags::RDWR, 0o644).unwrap();
    assert_eq!(guest.read(node, handle, 0, 9), Ok(b"old".to_vec()));
    guest.create(ROOT, "a", libc_flags::RDWR | libc_flags::TRUNC, 0o644).unwrap();
    let now = fs::metadata(guest.path("a")).unwrap();
    assert_eq!((now.len(), now.mode() & 0o777), (0, 0o600));
    assert_eq!(guest.lookup(ROOT, "missing"), Ok((0, 0)));
    // A file that was removed is still read by who has it open.
    fs::remove_file(guest.path("a")).unwrap();
    guest.write(node, handle, 0, 0, b"new").unwrap();
    let attributes = guest.call(3, node, Body::new().u32(1).u32(0).u64(handle)).unwrap();
    assert_eq!(u64_at(&attributes, 16 + 8), 3);
}

#[test]
fn an_open_that_fails_leaves_no_number() {
    let guest = Guest::with(false, Limits { nodes: 2, handles: 1, held: 2 });
    fs::create_dir(guest.path("d")).unwrap();
    fs::write(guest.path("a"), "").unwrap();
    assert_eq!(guest.create(ROOT, "d", libc_flags::WRONLY, 0o644), Err(Errno::ISDIR));
    // There is room for one.
    assert!(guest.lookup(ROOT, "a").is_ok());
}

#[test]
fn a_full_table_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "").unwrap();
    for number in [9, 6] {
        let (told, heard) = std::sync::mpsc::channel();
        let options =
            Options { read_only: false, owner: OWNER, limits: Limits { nodes: 2, handles: 1, held: 2 } };
        let server = Server::new(banger_mount::open(dir.path()).unwrap(), options).unwrap();
        let server = server.when_full(move || told.send(()).unwrap());
        let ask = |opcode, body: Body| server.answer(&message(opcode, 2, ROOT, &body.0)).unwrap().unwrap();
        server.answer(&init(7, 40)).unwrap();
        assert_eq!(u32_at(&ask(1, Body::new().name("a")), 4), 0);
        assert!(heard.try_recv().is_err());
        fs::write(dir.path().join("b"), "").unwrap();
        for _ in 0..2 {
            // One is found, the other one would be created.
            let answer = match number {
                9 => ask(9, Body::new().u32(0o755).u32(0).name("new")),
                _ => ask(1, Body::new().name("b")),
            };
            assert_eq!(u32_at(&answer, 4) as i32, -Errno::NFILE.raw_os_error());
        }
        assert_eq!(heard.try_iter().count(), 1);
    }
}

#[test]
fn a_request_that_finds_no_room_changes_nothing() {
    let guest = Guest::with(false, Limits { nodes: 2, handles: 1, held: 2 });
    fs::write(guest.path("a"), "kept").unwrap();
    let (node, _) = guest.lookup(ROOT, "a").unwrap();
    let handle = guest.open(node, 0).unwrap();
    assert_eq!(guest.open(node, libc_flags::WRONLY | libc_flags::TRUNC), Err(Errno::NFILE));
    assert_eq!(guest.read(node, handle, 0, 9), Ok(b"kept".to_vec()));
    assert_eq!(guest.call(9, ROOT, Body::new().u32(0o755).u32(0).name("new")), Err(Errno::NFILE));
    assert_eq!(guest.call(6, ROOT, Body::new().name("new").name("x")), Err(Errno::NFILE));
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 1);
    guest.release(node, handle).unwrap();
    assert!(guest.open(node, libc_flags::WRONLY | libc_flags::TRUNC).is_ok());
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"");
}
