//! Imports a large image with everything that a file system can have, and compares it, through a loop mount, with
//! what GNU tar extracts as root. Nothing but this test ever mounts an image on a host.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Write,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use banger_domain::id::{self, ImageId};
use banger_image::{
    oci::{config::ImageConfig, platform::Platform},
    packing::Packing,
};
use banger_proto::size::Bytes;
use banger_system::{
    host::storage::image_files::LocalImages,
    ports::{
        NoProgress,
        image_files::{Content, FileRange, ImageFiles, Layer},
    },
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lgetxattr,
        llistxattr, lsetxattr, makedev, mknodat, utimensat,
    },
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::scratch::{Scratch, is_root, require, run};
use crate::skip;
use crate::tars::{in_a_pipe, layer};

const IMAGE: ImageId = ImageId::from_bits(0xabc);
/// As many entries as a development image has.
const FILES: usize = 25_000;

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn own(path: &Path, user: u32, group: u32) {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    chownat(CWD, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// Makes a tree of this many files and of everything unusual.
fn grow(root: &Path, files: usize) {
    for number in 0..files {
        let directory = root.join(format!("many/{}/{}", number % 50, number % 7));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("file-{number}"));
        fs::write(&path, vec![number as u8; number * 31 % 9000]).unwrap();
        set_time(&path, 1_600_000_000 + number as i64, number as i64 * 7);
    }
    let odd = root.join("odd");
    fs::create_dir(&odd).unwrap();
    let at = |name: &str| odd.join(name);
    for (name, bits) in [("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1644), ("none", 0o000)] {
        fs::write(at(name), name).unwrap();
        own(&at(name), 1000, 100_000);
        mode(&at(name), bits);
    }
    fs::create_dir(at("sticky-directory")).unwrap();
    mode(&at("sticky-directory"), 0o3777);
    // cap_net_raw+ep, as `setcap` writes it.
    fs::write(at("capable"), "ping").unwrap();
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    lsetxattr(at("capable"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    fs::write(at("attributes"), "x").unwrap();
    for (name, length) in [("user.small", 3), ("user.large", 2500), ("trusted.other", 40), ("user.a=b%c", 5)]
    {
        lsetxattr(at("attributes"), name, &vec![7; length], XattrFlags::empty()).unwrap();
    }
    lsetxattr(at("sticky-directory"), "user.d", b"d", XattrFlags::empty()).unwrap();

    for (name, kind, major, minor) in [
        ("null", FileType::CharacterDevice, 1, 3),
        ("large-character", FileType::CharacterDevice, 4095, 1_048_575),
        ("disk", FileType::BlockDevice, 8, 0),
        ("large-disk", FileType::BlockDevice, 259, 300),
        ("fifo", FileType::Fifo, 0, 0),
    ] {
        let mode = Mode::from_raw_mode(0o640);
        mknodat(CWD, at(name), kind, mode, makedev(major, minor)).unwrap();
        own(&at(name), 0, 6);
    }
    for length in [1, 59, 60, 61, 1000, 4095] {
        std::os::unix::fs::symlink("t".repeat(length), at(&format!("link-{length}"))).unwrap();
    }
    own(&at("link-60"), 12, 34);
    set_time(&at("link-60"), 123_456_789, 987_654_321);
    for (name, seconds, nanoseconds) in [
        ("past", -1_000_000_000, 1),
        ("early", -1, 999_999_999),
        ("late", 4_102_444_800, 5),
        ("later", 10_000_000_000, 0),
    ] {
        fs::write(at(name), name).unwrap();
        set_time(&at(name), seconds, nanoseconds);
    }
    for name in [
        b"\xff\xfe not text".to_vec(),
        b"new\nline".to_vec(),
        b" ".to_vec(),
        b"-rf".to_vec(),
        b"back\\slash".to_vec(),
        b"\x01\x7f".to_vec(),
        "žluťoučký kůň 🐎".as_bytes().to_vec(),
        vec![b'n'; 255],
        vec![0xe9; 254],
    ] {
        let path = odd.join(std::ffi::OsString::from_vec(name));
        fs::write(&path, path.as_os_str().as_bytes()).unwrap();
        own(&path, 4_000_000_000, 70_000);
    }
    fs::create_dir(at("linked")).unwrap();
    fs::write(at("linked/a"), "the same").unwrap();
    for name in ["linked/b", "linked/c", "hard"] {
        fs::hard_link(at("linked/a"), at(name)).unwrap();
    }
    fs::hard_link(at("fifo"), at("fifo-too")).unwrap();
    fs::hard_link(at("link-61"), at("link-too")).unwrap();
    for (name, size, data) in [
        ("sparse", 60 << 20, vec![(0, 5), (30 << 20, 70_000), ((60 << 20) - 3, 3)]),
        ("holes-only", 100 << 20, vec![]),
        ("begins-with-a-hole", (5 << 20) + 77, vec![(4 << 20, 100)]),
        ("many-holes", 40 << 20, (0..200).map(|n| (n * 200_000, 5000)).collect()),
    ] {
        let file = File::create(at(name)).unwrap();
        file.set_len(size).unwrap();
        for (place, length) in data {
            file.write_all_at(&vec![9; length], place).unwrap();
        }
    }
    fs::write(at("empty"), "").unwrap();
    fs::write(at("block"), vec![1; 4096]).unwrap();
    fs::write(at("blocks"), vec![2; 3 << 20]).unwrap();
    let mut deep = odd.clone();
    for level in 0..60 {
        deep.push(format!("level-{level}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "deep").unwrap();
    let crowd = odd.join("crowd");
    fs::create_dir(&crowd).unwrap();
    for number in 0..6000 {
        fs::write(crowd.join(format!("a-rather-long-name-in-a-large-directory-{number}")), "").unwrap();
    }
    set_time(root, 1_500_000_000, 42);
    mode(root, 0o751);
}

/// Returns a second layer: the changes of a container, made by hand.
fn change(root: &Path) {
    fs::create_dir_all(root.join("odd")).unwrap();
    fs::create_dir_all(root.join("many/0")).unwrap();
    fs::write(root.join("odd/.wh.setuid"), "").unwrap();
    fs::write(root.join("odd/past"), "the present").unwrap();
    fs::write(root.join("many/0/.wh..wh..opq"), "").unwrap();
    fs::write(root.join("many/0/only"), "what is left").unwrap();
    fs::write(root.join("odd/linked"), "a file where a directory was").unwrap();
}

/// Applies [`change`] to extracted files.
fn apply(root: &Path, below: &Path) {
    fs::remove_file(root.join("odd/setuid")).unwrap();
    fs::remove_dir_all(root.join("many/0")).unwrap();
    fs::remove_dir_all(root.join("odd/linked")).unwrap();
    let extract =
        "tar -C \"$1\" --format=pax -cf - --exclude='.wh.*' . | tar -C \"$2\" --numeric-owner -xpf -";
    run(Command::new("sh").args(["-euc", extract, "apply"]).arg(below).arg(root));
}

fn tar(root: &Path, format: &[&str], left_out: &str) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--numeric-owner", "--sort=name", "--file=-"]).args(format);
    tar.arg(format!("--exclude={left_out}"));
    let output = tar.arg("--directory").arg(root).arg(".").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Everything about a name.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    device: u64,
    size: u64,
    attributes: BTreeMap<String, Vec<u8>>,
    content: Vec<u8>,
    /// The first name of the same file.
    twin: PathBuf,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut seen, mut first) = (BTreeMap::new(), HashMap::new());
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let below = path.strip_prefix(root).unwrap().to_owned();
        if below == Path::new("lost+found") {
            continue;
        }
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let mut content = Vec::new();
        if kind.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            paths.extend(names.into_iter().rev());
        } else if kind.is_symlink() {
            content = fs::read_link(&path).unwrap().into_os_string().into_vec();
        } else if kind.is_file() {
            let mut sha256 = <sha2::Sha256 as sha2::Digest>::new();
            std::io::copy(&mut File::open(&path).unwrap(), &mut sha256).unwrap();
            content = sha2::Digest::finalize(sha256).to_vec();
        }
        let twin = first.entry(metadata.ino()).or_insert_with(|| below.clone()).clone();
        let is_device = kind.is_char_device() || kind.is_block_device();
        let found = Seen {
            kind: format!("{kind:?}"),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            device: if is_device { metadata.rdev() } else { 0 },
            size: if kind.is_dir() { 0 } else { metadata.size() },
            attributes: attributes(&path),
            content,
            twin,
        };
        seen.insert(below, found);
    }
    seen
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let name = String::from_utf8(name.to_vec()).unwrap();
            let length = lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// Mounts the image, visible to this thread only, and lists it.
fn look_into(image: &Path, at: &Path) -> BTreeMap<PathBuf, Seen> {
    fs::create_dir_all(at).unwrap();
    run(Command::new("mount").args(["-o", "loop,ro"]).arg(image).arg(at));
    let seen = look(at);
    unmount(at, UnmountFlags::empty()).unwrap();
    seen
}

fn assert_same(found: &BTreeMap<PathBuf, Seen>, expected: &BTreeMap<PathBuf, Seen>, what: &str) {
    for (path, expected) in expected {
        assert_eq!(found.get(path), Some(expected), "{what}: {}", path.display());
    }
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(more.is_empty(), "{what}: {more:?}");
}

#[test]
fn an_image_has_what_gnu_tar_extracts() {
    require!(is_root(), "root, for owners, devices and a mount");
    require!(skip::has_device("/dev/loop-control"), "loop devices");
    // SAFETY: a mount namespace of this thread's own changes nothing about its memory or descriptors.
    #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (root, upper) = (home.path().join("root"), home.path().join("upper"));
    fs::create_dir(&root).unwrap();
    grow(&root, FILES);
    change(&upper);
    let import = |layers: Vec<Layer>| {
        let scratch = Scratch::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let images = LocalImages::new(scratch.paths.clone(), Arc::new(scratch.workers()), Bytes::gib(2));
        runtime
            .block_on(images.import(IMAGE, id::Uid(1000), Content::Layers(layers), Arc::new(NoProgress)))
            .unwrap();
        let image = scratch.paths.image(IMAGE);
        run(Command::new("e2fsck").arg("-fn").arg(&image));
        (scratch, image)
    };

    let pax = ["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*"];
    let formats: [(&[&str], &str); 4] = [
        (&pax, "pax, sparse 1.0"),
        (
            &["--format=pax", "--sparse", "--sparse-version=0.1", "--xattrs", "--xattrs-include=*"],
            "pax, sparse 0.1",
        ),
        (
            &["--format=pax", "--sparse", "--sparse-version=0.0", "--xattrs", "--xattrs-include=*"],
            "pax, sparse 0.0",
        ),
        (&["--format=gnu", "--sparse"], "gnu"),
    ];
    for (format, what) in formats {
        // The formats differ in unusual cases.
        let left_out = if format == pax { "nothing" } else { "./many" };
        let archive = tar(&root, format, left_out);
        let extracted = home.path().join("extracted");
        fs::create_dir(&extracted).unwrap();
        let mut extract = Command::new("tar");
        extract.args([
            "--extract",
            "--numeric-owner",
            "--same-permissions",
            "--xattrs",
            "--xattrs-include=*",
        ]);
        extract.args(["--file=-", "--directory"]).arg(&extracted).stdin(std::process::Stdio::piped());
        let mut extract = extract.spawn().unwrap();
        extract.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(extract.wait().unwrap().success());
        let expected = look(&extracted);
        assert!(expected.len() > if format == pax { FILES + 6000 } else { 6000 }, "{}", expected.len());

        let (scratch, image) = import(vec![in_a_pipe(layer(&archive, Packing::Gzip))]);
        assert_same(&look_into(&image, &home.path().join("mount")), &expected, what);
        drop(scratch);
        if format == pax {
            let changes = tar(&upper, &pax, "nothing");
            apply(&extracted, &upper);
            let expected = look(&extracted);
            let layers = || vec![layer(&archive, Packing::Zstd), layer(&changes, Packing::Gzip)];
            let (scratch, image) = import(layers());
            assert_same(&look_into(&image, &home.path().join("mount")), &expected, "two layers");
            let (again, second) = import(layers());
            run(Command::new("cmp").arg(&image).arg(&second));
            drop((scratch, again));
        }
        fs::remove_dir_all(&extracted).unwrap();
    }
}

/// Extracts an archive as root, and lists it.
fn extracted(archive: &[u8], at: &Path) -> BTreeMap<PathBuf, Seen> {
    fs::create_dir(at).unwrap();
    let mut extract = Command::new("tar");
    extract.args(["--extract", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]);
    extract.args(["--file=-", "--directory"]).arg(at).stdin(std::process::Stdio::piped());
    let mut extract = extract.spawn().unwrap();
    extract.stdin.take().unwrap().write_all(archive).unwrap();
    assert!(extract.wait().unwrap().success());
    let seen = look(at);
    fs::remove_dir_all(at).unwrap();
    seen
}

/// Returns the documents of an exported image in its archive, and its layer.
fn parts(archive: &File) -> (Vec<FileRange>, Vec<u8>) {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries_with_seek().unwrap() {
        let entry = entry.unwrap();
        let part = FileRange { offset: entry.raw_file_position(), length: Bytes(entry.size()) };
        files.insert(entry.path().unwrap().to_str().unwrap().to_owned(), part);
    }
    let read = |part: &FileRange| {
        let mut bytes = vec![0; usize::try_from(part.length.0).unwrap()];
        archive.read_exact_at(&mut bytes, part.offset).unwrap();
        bytes
    };
    let document = |name: &str| serde_json::from_slice::<serde_json::Value>(&read(&files[name])).unwrap();
    let place =
        |value: &serde_json::Value| format!("blobs/{}", value["digest"].as_str().unwrap().replace(':', "/"));
    let manifest = place(&document("index.json")["manifests"][0]);
    let (config, layer) = (place(&document(&manifest)["config"]), place(&document(&manifest)["layers"][0]));
    assert_eq!(files.len(), 6);
    // A program that knows only Docker archives finds the same image.
    let docker = &document("manifest.json")[0];
    assert_eq!((&docker["Config"], &docker["Layers"][0]), (&config.clone().into(), &layer.clone().into()));
    assert_eq!(docker["RepoTags"][0], "mine:latest");
    let layer_bytes = read(&files[&layer]);
    (vec![files[&manifest], files[&config], files[&layer]], layer_bytes)
}

#[test]
fn an_export_extracts_to_what_was_imported_and_is_taken_back() {
    require!(is_root(), "root, for owners and devices");
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("root");
    fs::create_dir(&root).unwrap();
    grow(&root, 500);
    let archive = tar(&root, &["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*"], "nothing");
    let expected = extracted(&archive, &home.path().join("original"));

    let scratch = Scratch::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let images = LocalImages::new(scratch.paths.clone(), Arc::new(scratch.workers()), Bytes::gib(2));
    let config =
        ImageConfig { env: vec!["A=b".to_owned()], cmd: vec!["run".to_owned()], ..ImageConfig::default() };
    let described = || ("mine".parse().unwrap(), config.clone());
    let export = |image| {
        let file = tempfile::tempfile().unwrap();
        let fd = file.try_clone().unwrap().into();
        let exported = runtime
            .block_on(images.export(image, id::Uid(1000), described(), fd, Arc::new(NoProgress)))
            .unwrap();
        assert_eq!(exported.bytes.0, file.metadata().unwrap().len());
        (exported.manifest, file)
    };
    let content = Content::Layers(vec![layer(&archive, Packing::Zstd)]);
    runtime.block_on(images.import(IMAGE, id::Uid(1000), content, Arc::new(NoProgress))).unwrap();
    let (manifest, first) = export(IMAGE);
    assert_eq!(export(IMAGE).0, manifest, "two exports of one image differ");
    let (found, exported) = parts(&first);
    assert_same(&extracted(&exported, &home.path().join("exported")), &expected, "exported");

    let again = ImageId::from_bits(0xdef);
    let host = Platform::of_host(std::env::consts::ARCH);
    let fd = || first.try_clone().unwrap().into();
    let layout = runtime.block_on(images.layout(id::Uid(1000), fd(), &found, &host)).unwrap();
    assert_eq!((layout.image.manifest, &layout.image.config), (manifest, &config));
    let content = Content::Layers(layout.layers);
    runtime.block_on(images.import(again, id::Uid(1000), content, Arc::new(NoProgress))).unwrap();
    assert_eq!(export(again).0, manifest, "an image that went out and came back is another one");

    // A wrong offset of a part is reported.
    let mut lies = found.clone();
    lies[2].offset += 512;
    let layout = runtime.block_on(images.layout(id::Uid(1000), fd(), &lies, &host)).unwrap();
    let content = Content::Layers(layout.layers);
    let other = ImageId::from_bits(0xbad);
    let error =
        runtime.block_on(images.import(other, id::Uid(1000), content, Arc::new(NoProgress))).unwrap_err();
    assert!(error.to_string().contains("a layer has the digest"), "{error}");
    for (part, length, why) in [
        (0, 1 << 40, "more than 4 MiB"),
        (0, 4 << 20, "beyond its end"),
        (2, 1 << 40, "beyond its end"),
        (1, 3, "does not match the manifest"),
        (2, 5, "do not match"),
    ] {
        let mut lies = found.clone();
        lies[part].length = Bytes(length);
        let error = runtime.block_on(images.layout(id::Uid(1000), fd(), &lies, &host)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let unwritable = File::open("/dev/null").unwrap().into();
    assert!(
        runtime
            .block_on(images.export(IMAGE, id::Uid(1000), described(), unwritable, Arc::new(NoProgress)))
            .is_err()
    );
}
