//! Packs whole trees and extracts them again, entry by entry, and extracts hostile archives.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use banger_copy::{
    Access, Error, Names, Notes, Owner, Ownership, Packer, Result, Rules, Target, receive, unpack,
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tar::{EntryType, Header};

const OURS: Rules = Rules {
    owner: Owner::Caller,
    access: Access::WITHOUT_SETUID_BITS,
    through_links: false,
    names: Names::Any,
};

fn untrusted(umask: u32) -> Rules {
    Rules { owner: Owner::Caller, access: Access::untrusted(umask), through_links: false, names: Names::Any }
}

/// What a copy preserves of an entry: its mode, its time, its content or target, whether it is sparse, and the first
/// of its names.
type Preserved = (u32, i64, Vec<u8>, bool, Option<PathBuf>);

fn look(root: &Path) -> BTreeMap<PathBuf, Preserved> {
    let mut kept = BTreeMap::new();
    let mut names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let (mut content, mut first) = (Vec::new(), None);
        if found.is_dir() {
            let mut below: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort_by(|a, b| b.cmp(a));
            waiting.extend(below);
        } else if found.is_symlink() {
            content = fs::read_link(&path).unwrap().into_os_string().as_bytes().to_vec();
        } else if found.len() < 1 << 20 {
            content = fs::read(&path).unwrap();
        }
        if found.is_file() && found.nlink() > 1 {
            first = Some(names.entry(found.ino()).or_insert(name.clone()).clone());
        }
        let sparse = found.is_file() && found.blocks() * 512 + (64 << 10) < found.len();
        kept.insert(name, (found.mode(), found.mtime(), content, sparse, first));
    }
    kept
}

fn at(path: &Path, time: i64) {
    let time = Timespec { tv_sec: time, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Creates a tree with everything that a copy preserves, and nothing else.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    let long = "l".repeat(200);
    for (name, content) in [
        (OsStr::new("file"), &b"content"[..]),
        (OsStr::new("empty"), b""),
        (OsStr::new("dir/sub/odd\nname"), b"x"),
        (OsStr::from_bytes(b"dir/\xff\xfe"), b"bytes"),
        (OsStr::from_bytes(&[&b"dir/\xff"[..], &b"n".repeat(250)].concat()), b"long"),
        (OsStr::new(&long), b"long"),
    ] {
        fs::write(root.join(name), content).unwrap();
    }
    fs::hard_link(root.join("file"), root.join("dir/second")).unwrap();
    for (name, target) in [
        ("link", "file"),
        ("away", "/etc/../etc//passwd"),
        ("gone", "./nowhere/"),
        ("far", &"./x/".repeat(40)),
    ] {
        symlink(target, root.join(name)).unwrap();
        at(&root.join(name), 1_111_111_111);
    }
    let holes = File::create(root.join("holes")).unwrap();
    holes.set_len(300 << 20).unwrap();
    holes.write_all_at(b"begin", 0).unwrap();
    holes.write_all_at(b"middle", 100 << 20).unwrap();
    File::create(root.join("hole")).unwrap().set_len(5 << 20).unwrap();
    let islands = File::create(root.join("islands")).unwrap();
    (0..60).for_each(|n| islands.write_all_at(b"island", n << 20).unwrap());
    for (name, mode) in [
        ("file", 0o640),
        ("empty", 0o400),
        ("dir/sub", 0o2750),
        ("dir", 0o1777),
        ("holes", 0o600),
        ("", 0o555),
    ] {
        let path = if name.is_empty() { root.to_owned() } else { root.join(name) };
        at(&path, 1_000_000_000 + i64::from(mode));
        chmod(&path, mode);
    }
}

fn packed(path: &Path, name: Option<&str>) -> (Vec<u8>, Vec<String>) {
    let mut packer = Packer::new(Vec::new(), Ownership::Root);
    packer.add(path, name.map(OsStr::new)).unwrap();
    let (bytes, notes) = packer.finish().unwrap();
    (bytes, notes.into_lines())
}

#[test]
fn a_tree_is_the_same_on_the_other_side_entry_by_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    tree(&from);
    let (bytes, notes) = packed(&from, Some("t"));
    assert_eq!(notes, Vec::<String>::new());
    assert!(bytes.len() < 2 << 20, "holes were sent: {} bytes", bytes.len());
    let target = Target::of(&to, Some(OsStr::new("t")));
    assert_eq!(receive(bytes.as_slice(), Some(OsStr::new("t")), &target, OURS).unwrap(), Notes::default());
    assert_eq!(look(&to), look(&from));
    let mut middle = [0; 6];
    File::open(to.join("holes")).unwrap().read_exact_at(&mut middle, 100 << 20).unwrap();
    let mut island = [0; 6];
    File::open(to.join("islands")).unwrap().read_exact_at(&mut island, 59 << 20).unwrap();
    assert_eq!((&middle, &island), (b"middle", b"island"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something temporary_name is left");
    [from, to].iter().for_each(|path| chmod(path, 0o755));
}

/// GNU tar defines the format, so it checks both directions.
#[test]
fn gnu_tar_reads_what_we_write_and_we_read_what_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (from, theirs) = (dir.path().join("from"), dir.path().join("theirs"));
    tree(&from);
    let run = |command: &mut std::process::Command| assert!(command.status().unwrap().success());
    let (bytes, _) = packed(&from, None);
    fs::write(dir.path().join("a.tar"), bytes).unwrap();
    fs::create_dir(&theirs).unwrap();
    let tar = || std::process::Command::new("tar");
    run(tar().args(["-xpf", "a.tar", "--no-same-owner", "-C", "theirs"]).current_dir(dir.path()));
    let inner = |path: &Path| {
        let mut kept = look(path);
        // The archive of a directory's content does not contain the directory.
        kept.remove(Path::new(""));
        kept
    };
    assert_eq!(inner(&theirs), inner(&from));
    for format in ["gnu", "pax"] {
        run(tar().args(["-cSf", "b.tar", "--format", format, "-C", "from", "."]).current_dir(dir.path()));
        let archive = File::open(dir.path().join("b.tar")).unwrap();
        let ours = dir.path().join(format);
        unpack(archive, &ours, false, OURS).unwrap();
        assert_eq!(inner(&ours), inner(&from), "{format}");
    }
    let old = ["-cSf", "b.tar", "--format", "pax", "--sparse-version", "0.1", "-C", "from", "holes"];
    run(tar().args(old).current_dir(dir.path()));
    let archive = File::open(dir.path().join("b.tar")).unwrap();
    let error = unpack(archive, &dir.path().join("old"), false, OURS).unwrap_err();
    assert!(error.to_string().contains("--sparse-version=1.0"), "{error}");
    chmod(&from, 0o755);
}

#[test]
fn files_that_cannot_be_copied_are_noted() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(dir.path().join("sock")).unwrap();
    rustix::fs::mknodat(CWD, dir.path().join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    symlink("nowhere", dir.path().join("link")).unwrap();
    let (_, notes) = packed(dir.path(), Some("t"));
    let path = dir.path().display();
    assert_eq!(
        notes,
        [
            format!("{path}/pipe is a fifo, and was not copied"),
            format!("{path}/sock is a socket, and was not copied"),
        ]
    );
    let (_, notes) = packed(&dir.path().join("link"), Some("link"));
    assert_eq!(
        notes,
        [format!("{path}/link is a symbolic link and was copied as one; -L copies its target")]
    );
    let mut packer = Packer::new(Vec::new(), Ownership::Root);
    for name in ["pipe", "sock"] {
        let error = packer.add(&dir.path().join(name), Some(OsStr::new("x"))).unwrap_err();
        assert!(matches!(error, Error::Special { .. }), "{error}");
    }
}

#[test]
fn links_are_followed_on_request_and_never_in_cycles() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(dir.path().join("outside"), "outside").unwrap();
    symlink("../outside", from.join("link")).unwrap();
    symlink("..", from.join("sub/up")).unwrap();
    symlink("nowhere", from.join("gone")).unwrap();
    symlink("sub", from.join("way")).unwrap();
    let mut packer = Packer::new(Vec::new(), Ownership::Root).follow_links(true);
    packer.add(&from, Some(OsStr::new("t"))).unwrap();
    let (bytes, notes) = packer.finish().unwrap();
    let from = from.display();
    assert_eq!(
        notes.into_lines(),
        [
            format!("{from}/gone points to nothing, and was not copied"),
            format!("{from}/sub/up points to a directory above it, and was not copied"),
            format!("{from}/way/up points to a directory above it, and was not copied"),
        ]
    );
    let to = dir.path().join("to");
    receive(bytes.as_slice(), Some(OsStr::new("t")), &Target::of(&to, Some(OsStr::new("t"))), OURS).unwrap();
    assert_eq!(fs::read(to.join("link")).unwrap(), b"outside");
    assert!(fs::symlink_metadata(to.join("way")).unwrap().is_dir());
}

#[test]
fn a_copy_goes_where_cp_would_put_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("there")).unwrap();
    symlink("there", path("way")).unwrap();
    fs::write(path("file"), "").unwrap();
    let name = Some(OsStr::new("n"));
    for (to, expect) in [
        ("there", "there/n"),
        ("there/", "there/n"),
        ("there/.", "there/n"),
        ("way", "way/n"),
        ("file", "file"),
        ("new", "new"),
        ("new/", "new/n"),
        ("new/deep", "new/deep"),
    ] {
        assert_eq!(Target::of(&path(to), name).path(), path(expect), "{to}");
    }
    assert_eq!(Target::of(&path("new"), None).path(), path("new"));
    assert_eq!(Target::of(Path::new("x"), name).path(), Path::new("./x"));
}

fn entry(
    archive: &mut tar::Builder<Vec<u8>>,
    kind: u8,
    name: &[u8],
    mode: u32,
    target: &str,
    content: &[u8],
) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(EntryType::new(kind));
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.set_link_name_literal(target).unwrap();
    header.set_cksum();
    archive.append(&header, content).unwrap();
}

type Line<'a> = (u8, &'a str, u32, &'a str, &'a [u8]);

fn archive(lines: &[Line<'_>]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (kind, name, mode, target, content) in lines {
        entry(&mut archive, *kind, name.as_bytes(), *mode, target, content);
    }
    archive.into_inner().unwrap()
}

fn received(dir: &Path, lines: &[Line<'_>], rules: Rules) -> Result<Vec<String>> {
    let top = Some(OsStr::new("t"));
    let target = Target::of(&dir.join("t"), top);
    receive(archive(lines).as_slice(), top, &target, rules).map(Notes::into_lines)
}

#[test]
fn a_hostile_archive_does_no_harm() {
    let top: Line<'_> = (b'5', "t/", 0o755, "", b"");
    let attacks: &[(&str, &[Line<'_>])] = &[
        ("a step up", &[top, (b'0', "t/../../out", 0o644, "", b"x")]),
        ("another name", &[top, (b'0', "other", 0o644, "", b"x")]),
        ("an absolute name", &[top, (b'0', "/out", 0o644, "", b"x")]),
        ("no top", &[(b'0', "t/x", 0o644, "", b"x")]),
        ("two tops", &[(b'0', "t", 0o644, "", b"x"), (b'0', "t/x", 0o644, "", b"x")]),
        ("through a link", &[top, (b'2', "t/l", 0o777, "..", b""), (b'0', "t/l/out", 0o644, "", b"x")]),
        (
            "through an absolute link",
            &[top, (b'2', "t/l", 0o777, "/tmp", b""), (b'5', "t/l/out", 0o755, "", b"")],
        ),
        (
            "a directory that is a link",
            &[top, (b'2', "t/l", 0o777, "..", b""), (b'5', "t/l", 0o755, "", b"")],
        ),
        ("a name of a file outside", &[top, (b'1', "t/l", 0o644, "t/../../secret", b"")]),
        ("a name of an absolute file", &[top, (b'1', "t/l", 0o644, "/secret", b"")]),
        (
            "a name of a file behind a link",
            &[top, (b'2', "t/l", 0o777, "..", b""), (b'1', "t/x", 0o644, "t/l/secret", b"")],
        ),
        (
            "a name of a link",
            &[top, (b'2', "t/l", 0o777, "../secret", b""), (b'1', "t/x", 0o644, "t/l", b"")],
        ),
        ("nothing", &[]),
        ("a hard link first", &[(b'1', "t", 0o644, "t", b"")]),
    ];
    for (attack, lines) in attacks {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let result = received(&inner, lines, untrusted(0o022));
        assert!(result.is_err(), "{attack}: {result:?}");
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 0, "{attack}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{attack}");
        assert_eq!(fs::metadata(dir.path().join("secret")).unwrap().nlink(), 1, "{attack}");
    }
}

#[test]
fn existing_links_are_followed_only_if_trusted_and_never_out() {
    for (through, to, expect) in [
        (true, "real", Some("real/x")),
        (false, "real", None),
        (true, "../outside", None),
        (true, "/tmp", None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir_all(inner.join("real")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink(to, inner.join("l")).unwrap();
        let rules = Rules { through_links: through, ..OURS };
        let bytes = archive(&[(b'0', "l/x", 0o644, "", b"x")]);
        let unpacked = unpack(bytes.as_slice(), &inner, false, rules);
        assert_eq!(unpacked.is_ok(), expect.is_some(), "{to}: {unpacked:?}");
        assert_eq!(expect.is_some_and(|path| inner.join(path).exists()), expect.is_some());
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }
}

#[test]
fn files_of_a_repository_are_refused_where_git_would_trust_them() {
    let rules = Rules { names: Names::NoGit, ..OURS };
    for (name, fits) in [
        ("t/x", true),
        ("t/.gitignore", true),
        ("t/x.git", true),
        ("t/.git", false),
        ("t/.git/hooks/pre-commit", false),
        ("t/sub/.GIT/config", false),
    ] {
        for (names, fits) in [(Names::NoGit, fits), (Names::Any, true)] {
            let dir = tempfile::tempdir().unwrap();
            let lines: &[Line<'_>] = &[(b'5', "t", 0o755, "", b""), (b'0', name, 0o755, "", b"x")];
            let received = received(dir.path(), lines, Rules { names, ..rules });
            assert_eq!(received.is_ok(), fits, "{name} {names:?}: {received:?}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), usize::from(fits), "{name}");
        }
    }
}

#[test]
fn an_untrusted_sender_grants_no_permissions() {
    let dir = tempfile::tempdir().unwrap();
    let lines: &[Line<'_>] = &[
        (b'5', "t", 0o7777, "", b""),
        (b'0', "t/run", 0o7777, "", b"x"),
        (b'3', "t/device", 0o666, "", b""),
        (b'6', "t/pipe", 0o666, "", b""),
        (b'Z', "t/strange", 0o666, "", b"strange"),
    ];
    let notes = received(dir.path(), lines, untrusted(0o027)).unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("t"), mode("t/run")), (0o3750, 0o1750));
    assert_eq!(fs::read_dir(dir.path().join("t")).unwrap().count(), 1);
    let kinds: Vec<_> = notes.iter().map(|note| note.rsplit_once("/t/").unwrap().1).collect();
    assert_eq!(
        kinds,
        [
            "device is a device, and was not copied",
            "pipe is a fifo, and was not copied",
            "strange is a file of an unknown kind, and was not copied",
        ]
    );
}

#[test]
fn an_existing_directory_keeps_its_content_and_gets_new_files() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("t");
    fs::create_dir_all(there.join("sub")).unwrap();
    fs::write(there.join("mine"), "mine").unwrap();
    fs::write(there.join("both"), "old").unwrap();
    symlink("mine", there.join("link")).unwrap();
    chmod(&there, 0o700);
    let lines: &[Line<'_>] = &[
        (b'5', "t", 0o755, "", b""),
        (b'0', "t/both", 0o644, "", b"new"),
        (b'0', "t/link", 0o644, "", b"file"),
        (b'0', "t/sub/x", 0o644, "", b"x"),
        (b'1', "t/again", 0o644, "t/both", b""),
    ];
    let target = Target { directory: dir.path().to_owned(), name: Some("t".into()) };
    let receive_again = || receive(archive(lines).as_slice(), Some(OsStr::new("t")), &target, OURS).unwrap();
    // Repeating changes nothing.
    receive_again();
    receive_again();
    let read = |name: &str| fs::read_to_string(there.join(name)).unwrap();
    assert_eq!([read("mine"), read("both"), read("link"), read("sub/x")], ["mine", "new", "file", "x"]);
    assert_eq!(fs::metadata(&there).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(there.join("again")).unwrap().nlink(), 2);
    assert_eq!(fs::read_dir(&there).unwrap().count(), 5);

    for (kind, name, expect) in [(b'5', "both", "is not a directory"), (b'0', "sub", "is a directory")] {
        let name = format!("t/{name}");
        let lines: &[Line<'_>] = &[(b'5', "t", 0o755, "", b""), (kind, &name, 0o644, "", b"")];
        let error = receive(archive(lines).as_slice(), Some(OsStr::new("t")), &target, OURS).unwrap_err();
        assert!(error.to_string().ends_with(expect), "{error}");
    }
    assert_eq!(fs::read_dir(&there).unwrap().count(), 5);
}

/// A reader that fails at the end.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(io::Error::new(io::ErrorKind::ConnectionReset, "hung up")),
            count => Ok(count),
        }
    }
}

#[test]
fn an_incomplete_copy_gets_no_name() {
    let lines: &[Line<'_>] = &[(b'5', "t", 0o755, "", b""), (b'0', "t/x", 0o644, "", &[1; 4000])];
    let file: &[Line<'_>] = &[(b'0', "t", 0o644, "", &[1; 4000])];
    for lines in [lines, file] {
        let bytes = archive(lines);
        // The last one is a whole archive without an end marker from its sender.
        for cut in [600, 1500, bytes.len() - 1600, bytes.len()] {
            let dir = tempfile::tempdir().unwrap();
            let top = Some(OsStr::new("t"));
            let target = Target::of(&dir.path().join("t"), top);
            let error = receive(Broken(&bytes[..cut]), top, &target, OURS).unwrap_err();
            let Error::Stream(source) = error else { panic!("{error:?}") };
            assert_eq!(source.to_string(), "hung up");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{cut}");
        }
    }
}

#[test]
fn errors_of_archives_are_readable() {
    let dir = tempfile::tempdir().unwrap();
    let mut garbage = vec![b'x'; 4096];
    garbage[..8].copy_from_slice(b"\x1b[31mred");
    let error = unpack(garbage.as_slice(), dir.path(), false, OURS).unwrap_err();
    assert_eq!(error.to_string(), "the archive is damaged: it is not a tar archive, or ends too early");
    let mut file = File::create(dir.path().join("f")).unwrap();
    file.write_all(b"f").unwrap();
}
