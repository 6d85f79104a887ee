//! Copies into, out of and between sandboxes, with the real agent on this host.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::process::Signal;

use crate::host::{Host, until};

fn host() -> Host {
    let host = Host::new();
    for name in ["box", "box-2"] {
        let created = host.banger(&["vm", "create", "-q", "--name", name, "--image", "debian"]);
        assert_eq!(created.status, 0, "{created:?}");
    }
    host
}

/// Returns a directory as a path in the sandbox and on the host.
fn directory(host: &Host, name: &str) -> (String, PathBuf) {
    let path = host.path(name);
    (format!("box:{}", path.display()), path)
}

fn copy(host: &Host, arguments: &[&str]) {
    let ended = host.banger(&[&["vm", "cp", "-q"], arguments].concat());
    assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{arguments:?}: {ended:?}");
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn permissions_times_links_and_holes_survive_both_directions() {
    let host = host();
    let source = host.path("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    fs::hard_link(source.join("file"), source.join("dir/second")).unwrap();
    symlink("/nowhere", source.join("link")).unwrap();
    let holes = fs::File::create(source.join("holes")).unwrap();
    holes.set_len(300 << 20).unwrap();
    holes.write_all_at(b"data", 200 << 20).unwrap();
    for (name, mode) in [("dir", 0o3755), ("file", 0o640)] {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(source.join("dir")).unwrap().set_modified(past).unwrap();
    let (there, inside) = directory(&host, "there");
    let back = host.path("back");
    copy(&host, &["-a", source.to_str().unwrap(), &there]);
    copy(&host, &["-r", &there, back.to_str().unwrap()]);
    for side in [inside, back] {
        let found = |name: &str| fs::symlink_metadata(side.join(name)).unwrap();
        assert_eq!((mode(side.join("dir")), mode(side.join("file"))), (0o3755, 0o640));
        assert_eq!(found("dir").mtime(), 1_000_000_000);
        assert_eq!(found("file").ino(), found("dir/second").ino());
        assert_eq!(fs::read_link(side.join("link")).unwrap().to_str(), Some("/nowhere"));
        assert!(found("holes").len() == 300 << 20 && found("holes").blocks() < 1000, "{:?}", found("holes"));
        let mut data = [0; 4];
        fs::File::open(side.join("holes")).unwrap().read_exact_at(&mut data, 200 << 20).unwrap();
        assert_eq!(&data, b"data");
    }
}

#[test]
fn copies_on_the_host_respect_the_umask() {
    let host = host();
    let (there, inside) = directory(&host, "there");
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("run"), "x").unwrap();
    for (name, mode) in [("", 0o2777), ("run", 0o6777)] {
        fs::set_permissions(inside.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let back = host.path("back");
    let command = host.command(&["vm", "cp", "-q", &there, back.to_str().unwrap()]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "umask 027; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(shell.stdin(Stdio::null()).status().unwrap().success());
    assert_eq!((mode(&back), mode(back.join("run"))), (0o2750, 0o750));
}

#[test]
fn a_hostile_guest_writes_nothing_outside_of_its_copy() {
    let host = host();
    let place = host.path("place");
    fs::create_dir_all(place.join("old")).unwrap();
    // Into a new directory, and into an existing one.
    for to in [place.join("new"), place.join("old/"), place.clone()] {
        let ended = host.banger(&["vm", "cp", "-q", "web:/hostile", to.to_str().unwrap()]);
        assert_eq!(ended.status, 1, "{ended:?}");
        assert!(ended.errors.contains("up is not a directory"), "{ended:?}");
    }
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    assert_eq!(fs::read_dir(place.join("old")).unwrap().count(), 0);
}

#[test]
fn files_without_a_length_are_copied_both_ways() {
    let host = host();
    let (there, inside) = directory(&host, "version");
    let version = text("/proc/version");
    copy(&host, &["/proc/version", &there]);
    assert_eq!(text(inside), version);
    let back = host.path("back");
    copy(&host, &["box:/proc/version", back.to_str().unwrap()]);
    assert_eq!(text(back), version);
}

#[test]
fn sockets_are_noted_and_devices_refused() {
    let host = host();
    let source = host.path("source");
    fs::create_dir(&source).unwrap();
    let _socket = UnixListener::bind(source.join("sock")).unwrap();
    let (there, inside) = directory(&host, "there");
    let (from, back) = (source.to_str().unwrap(), host.path("back"));
    let note = format!("note: {from}/sock is a socket, and was not copied.\n");
    let ended = host.banger(&["vm", "cp", from, &there]);
    assert!(ended.status == 0 && ended.errors.ends_with(&note), "{ended:?}");
    let ended = host.banger(&["vm", "cp", &format!("box:{from}"), back.to_str().unwrap()]);
    assert!(ended.status == 0 && ended.errors.ends_with(&note), "{ended:?}");
    assert!(inside.is_dir() && back.is_dir());
    for arguments in [["/dev/null", there.as_str()], ["box:/dev/null", from]] {
        let ended = host.banger(&["vm", "cp", "-q", arguments[0], arguments[1]]);
        let expect = "error: /dev/null is a device: only files, directories and symbolic links are copied.\n";
        assert_eq!((ended.status, ended.errors.as_str()), (1, expect), "{arguments:?}");
    }
}

#[test]
fn links_are_kept_both_ways_unless_followed() {
    let host = host();
    fs::write(host.path("file"), "content").unwrap();
    symlink("file", host.path("link")).unwrap();
    let link = host.path("link");
    let link = link.to_str().unwrap();
    let there = |name: &str| directory(&host, name);
    let is_link = |path: &Path| fs::symlink_metadata(path).unwrap().is_symlink();

    let (kept, inside) = there("kept");
    let ended = host.banger(&["vm", "cp", link, &kept]);
    assert!(ended.errors.contains("link is a symbolic link and was copied as one; -L copies"), "{ended:?}");
    assert!(is_link(&inside));
    let (followed, inside) = there("followed");
    copy(&host, &["-L", link, &followed]);
    assert_eq!((is_link(&inside), text(&inside).as_str()), (false, "content"));

    let out = host.path("out");
    let ended = host.banger(&["vm", "cp", &format!("box:{link}"), out.to_str().unwrap()]);
    assert!(is_link(&out));
    assert!(
        ended.errors.ends_with(&format!("note: {} is a symbolic link to file.\n", out.display())),
        "{ended:?}"
    );
    let out = host.path("out-followed");
    copy(&host, &["-L", &format!("box:{link}"), out.to_str().unwrap()]);
    assert_eq!((is_link(&out), text(&out).as_str()), (false, "content"));
}

#[test]
fn several_sources_and_contents_go_where_cp_puts_them() {
    let host = host();
    let source = host.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), "a").unwrap();
    fs::write(source.join("b"), "b").unwrap();
    let path = |name: &str| source.join(name).to_str().unwrap().to_owned();
    let (there, inside) = directory(&host, "there");
    copy(&host, &[&path("a"), &path("b"), &there]);
    assert_eq!((text(inside.join("a")), text(inside.join("b"))), ("a".into(), "b".into()));
    copy(&host, &[&path("."), &format!("{there}/content")]);
    assert_eq!(text(inside.join("content/b")), "b");

    let back = host.path("back");
    let back = back.to_str().unwrap();
    copy(&host, &[&format!("{there}/a"), &format!("{there}/b"), back]);
    copy(&host, &[&format!("{there}/content/."), back]);
    assert_eq!(fs::read_dir(back).unwrap().count(), 2);
    // A new one is unchanged; an existing one gets more files.
    copy(&host, &[&format!("{there}/content"), back]);
    assert_eq!(text(format!("{back}/content/a")), "a");
}

#[test]
fn a_path_in_a_sandbox_is_relative_to_a_home() {
    let host = host();
    // The agent's guest is this host, where root has a home: this uses a unique name there.
    let name = format!("banger-test-{}", std::process::id());
    let home = Path::new("/root").join(&name);
    if fs::create_dir(&home).is_err() {
        println!("skipped: /root cannot be written");
        return;
    }
    let file = host.path("file");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    copy(&host, &[file, &format!("box:{name}/one")]);
    copy(&host, &[file, &format!("box:~/{name}/two")]);
    copy(&host, &[file, &format!("box:~root/{name}/")]);
    let back = host.path("back");
    copy(&host, &[&format!("box:{name}"), back.to_str().unwrap()]);
    let found = fs::read_dir(&back).unwrap().count();
    fs::remove_dir_all(&home).unwrap();
    assert_eq!(found, 3);
    let ended = host.banger(&["vm", "cp", "-q", file, "box:~nobody-here/x"]);
    assert_eq!((ended.status, ended.errors.as_str()), (1, "error: there is no user nobody-here.\n"));
}

#[test]
fn a_copy_goes_from_one_sandbox_to_another() {
    let host = host();
    let (there, inside) = directory(&host, "there");
    fs::create_dir_all(inside.join("sub")).unwrap();
    fs::write(inside.join("sub/file"), "x").unwrap();
    let _socket = UnixListener::bind(inside.join("sock")).unwrap();
    let target = host.path("target");
    let ended = host.banger(&["vm", "cp", &there, &format!("box-2:{}", target.display())]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.errors.ends_with("sock is a socket, and was not copied.\n"), "{ended:?}");
    assert_eq!(text(target.join("sub/file")), "x");
    let ended = host.banger(&["vm", "cp", "-q", "box:/nowhere/x", "box-2:/tmp/"]);
    assert!(ended.status == 1 && ended.errors.starts_with("error: cannot read /nowhere/x"), "{ended:?}");
}

#[test]
fn an_archive_may_be_compressed_and_keeps_its_owners() {
    let host = host();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o600);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1);
    archive.append_data(&mut header, "a/b", &b"hello"[..]).unwrap();
    let plain = archive.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    for (name, bytes) in [("plain", plain.clone()), ("gzip", gzip.finish().unwrap()), ("zstd", zstd)] {
        let (there, inside) = directory(&host, name);
        fs::write(host.path("in.tar"), bytes).unwrap();
        let input = fs::File::open(host.path("in.tar")).unwrap();
        let ended = host.banger_with(&["vm", "cp", "-q", "-", &there], input);
        assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{name}");
        assert_eq!(text(inside.join("a/b")), "hello");
        let found = fs::metadata(inside.join("a/b")).unwrap();
        assert_eq!((found.uid(), found.gid()), (7, 8));
    }
    let (there, inside) = directory(&host, "given");
    let input = fs::File::open(host.path("in.tar")).unwrap();
    assert_eq!(host.banger_with(&["vm", "cp", "-q", "--chown", "42:43", "-", &there], input).status, 0);
    assert_eq!(fs::metadata(inside.join("a/b")).unwrap().uid(), 42);
}

#[test]
fn an_interrupted_copy_into_a_sandbox_leaves_nothing() {
    let host = host();
    let place = host.path("place");
    fs::create_dir(&place).unwrap();
    let source = host.path("big");
    // Real data, because holes would be sent at once.
    let mut file = fs::File::create(&source).unwrap();
    (0..256).for_each(|_| file.write_all(&[1; 1 << 20]).unwrap());
    let to = format!("box:{}/file", place.display());
    let running = host.start(&["vm", "cp", "-q", source.to_str().unwrap(), &to]);
    until("the copy has begun", || fs::read_dir(&place).unwrap().count() == 1);
    running.signal(Signal::INT);
    let ended = running.end();
    assert_eq!(ended.status, 130, "{ended:?}");
    until("the agent has cleared away", || fs::read_dir(&place).unwrap().count() == 0);
}

#[test]
fn an_impossible_copy_is_refused() {
    let host = host();
    for (arguments, expect) in [
        (&["a", "b"][..], "error: none of the paths is in a sandbox.\nhint: "),
        (&["-", "a", "box:/tmp"], "error: cannot copy an archive together with other paths.\nhint: "),
        (&["box:/", "/tmp/x"], "error: cannot copy all of /.\nhint: "),
        (&["--chown", "ann", "box:/a", "b"], "error: `--chown` works only for copies into a sandbox.\n"),
        (&["--chown", "nobody-here", "/etc/hosts", "box:/tmp/"], "error: there is no user nobody-here.\n"),
        (&["/nowhere", "box:/tmp/"], "error: cannot read /nowhere.\n"),
        (&["box:/nowhere/x", "/tmp/"], "error: cannot read /nowhere/x: "),
        (&["nope:/a", "/tmp/"], "error: there is no sandbox nope.\nhint: "),
        (&["/etc/hosts", "box:/etc/hosts/x"], "error: cannot write /etc/hosts: "),
    ] {
        let ended = host.banger(&[&["vm", "cp", "-q"], arguments].concat());
        assert_ne!(ended.status, 0, "{arguments:?}");
        assert!(ended.errors.starts_with(expect), "{arguments:?}: {ended:?}");
    }
}
