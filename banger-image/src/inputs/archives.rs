//! Archives of a root file system. The reference is GNU tar, and bsdtar beside it, run by root as `tar -xpf`.
//!
//! Both extract what they can and report the rest; banger refuses an archive as a whole, so that no image lacks a file
//! without a word.

use std::{fs, process::Command};

use super::{Expect, Is, Refused, has, is_root, skip, tree_below, tree_of};
use crate::{
    fixtures::tar::{Tar, sum},
    rootfs::tree::Archive,
};

struct Case {
    name: &'static str,
    build: fn() -> Vec<u8>,
    gnu: Told,
    bsd: Told,
    ours: Expect,
}

/// What a program extracts, and whether it reports an error.
#[derive(Clone, Copy)]
enum Told {
    Well(&'static [&'static str]),
    Error(&'static [&'static str]),
}
use Told::{Error, Well};

/// `lchown(2)` with this number changes nothing.
const NOBODY: &[u8] = b"4294967295";

const CASES: &[Case] = &[
    Case {
        name: "absolute names, as nix, kaniko and bootc write them",
        build: || Tar::default().dir("/").dir("/nix/").file("/nix/a", b"A").file("//b", b"B").end(),
        gnu: Well(&["f 644 0:0 b B", "d 755 0:0 nix", "f 644 0:0 nix/a A"]),
        bsd: Well(&["f 644 0:0 b B", "d 755 0:0 nix", "f 644 0:0 nix/a A"]),
        ours: Is(&["f 644 0:0 b B", "d 755 0:0 nix", "f 644 0:0 nix/a A"]),
    },
    Case {
        name: "a hard link to an absolute name",
        build: || Tar::default().file("a", b"A").link(b'1', "b", "/a").end(),
        gnu: Well(&["f 644 0:0 a A", "f 644 0:0 b A"]),
        bsd: Well(&["f 644 0:0 a A", "f 644 0:0 b A"]),
        ours: Is(&["f 644 0:0 a A", "f 644 0:0 b A"]),
    },
    Case {
        // Docker and umoci take it, too.
        name: "`..` that does not leave the root",
        build: || Tar::default().dir("etc/").file("etc/../etc/y", b"Y").end(),
        gnu: Error(&["d 755 0:0 etc"]),
        bsd: Error(&["d 755 0:0 etc"]),
        ours: Is(&["d 755 0:0 etc", "f 644 0:0 etc/y Y"]),
    },
    Case {
        name: "`..` that leaves the root",
        build: || Tar::default().file("ok", b"1").file("x/../../y", b"Y").end(),
        gnu: Error(&["f 644 0:0 ok 1"]),
        bsd: Error(&["f 644 0:0 ok 1"]),
        ours: Refused("leaves the root by `..`"),
    },
    Case {
        name: "`..` at the root of an absolute name",
        build: || Tar::default().file("ok", b"1").file("/../z", b"Z").end(),
        gnu: Error(&["f 644 0:0 ok 1"]),
        bsd: Well(&["f 644 0:0 ok 1", "f 644 0:0 z Z"]),
        ours: Refused("leaves the root by `..`"),
    },
    Case {
        name: "a hard link that leaves the root",
        build: || Tar::default().file("ok", b"1").link(b'1', "l", "../../../../etc/hostname").end(),
        gnu: Error(&["f 644 0:0 ok 1"]),
        bsd: Error(&["f 644 0:0 ok 1"]),
        ours: Refused("leaves the root by `..`"),
    },
    Case {
        name: "a file below a file",
        build: || Tar::default().file("f", b"A").file("f/x", b"B").end(),
        gnu: Error(&["f 644 0:0 f A"]),
        bsd: Error(&["f 644 0:0 f A"]),
        ours: Refused("is below f, which is not a directory"),
    },
    Case {
        name: "owner and group 4294967295 in a pax header",
        build: || Tar::default().pax(&[("uid", NOBODY), ("gid", NOBODY)]).file("a", b"A").end(),
        gnu: Well(&["f 644 0:0 a A"]),
        bsd: Well(&["f 644 0:0 a A"]),
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "owner 4294967295 in base 256",
        build: || Tar::default().raw(owned([0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), b"A").end(),
        gnu: Well(&["f 644 0:0 a A"]),
        bsd: Well(&["f 644 0:0 a A"]),
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "an owner beyond 32 bits",
        build: || Tar::default().pax(&[("uid", b"4294967296")]).file("a", b"A").end(),
        gnu: Error(&["f 644 0:0 a A"]),
        bsd: Well(&["f 644 0:0 a A"]),
        ours: Refused("an owner that Linux does not allow"),
    },
    Case {
        name: "a negative owner",
        build: || Tar::default().raw(owned([0xff; 8]), b"A").end(),
        gnu: Error(&["f 644 0:0 a A"]),
        bsd: Well(&["f 644 0:0 a A"]),
        ours: Refused("an owner that Linux does not allow"),
    },
    Case {
        name: "one zero block at the end",
        build: || [Tar::default().file("a", b"A").0, vec![0; 512]].concat(),
        gnu: Well(&["f 644 0:0 a A"]),
        bsd: Well(&["f 644 0:0 a A"]),
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "one zero block, and more files after it",
        build: || {
            [Tar::default().file("a", b"A").0, vec![0; 512], Tar::default().file("b", b"B").end()].concat()
        },
        gnu: Well(&["f 644 0:0 a A"]),
        bsd: Well(&["f 644 0:0 a A"]),
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "nothing but one zero block",
        build: || vec![0; 512],
        gnu: Well(&[]),
        bsd: Well(&[]),
        ours: Is(&[]),
    },
    Case {
        // Docker takes it as an empty layer. As a root file system it is refused: there is nothing in it.
        name: "no bytes at all",
        build: Vec::new,
        gnu: Error(&[]),
        bsd: Well(&[]),
        ours: Is(&[]),
    },
    Case {
        name: "two extended headers for one file",
        build: || {
            let first: &[(&str, &[u8])] = &[("path", b"one"), ("uid", b"7")];
            Tar::default().pax(first).pax(&[("mtime", b"5")]).file("two", b"A").end()
        },
        gnu: Well(&["f 644 0:0 two A"]),
        bsd: Error(&["f 644 0:0 two A"]),
        ours: Is(&["f 644 0:0 two A"]),
    },
    Case {
        name: "a symbolic link with permissions",
        build: || {
            let mut header = Tar::header(b"s", b'2', 0);
            header[157] = b'a';
            header[100..107].copy_from_slice(b"0000600");
            sum(&mut header);
            Tar::default().raw(header, b"").end()
        },
        gnu: Well(&["l 777 0:0 s a"]),
        bsd: Well(&["l 777 0:0 s a"]),
        ours: Is(&["l 777 0:0 s a"]),
    },
    Case {
        // GNU tar warns, bsdtar reports an error.
        name: "9 KiB in attributes of another system",
        build: || Tar::default().pax(&[("SCHILY.xattr.com.apple.x", &[b'v'; 9000])]).file("a", b"A").end(),
        gnu: Well(&["f 644 0:0 a A"]),
        bsd: Error(&["f 644 0:0 a A"]),
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "9 KiB in user attributes of a symbolic link",
        build: || Tar::default().pax(&[("SCHILY.xattr.user.x", &[b'v'; 9000])]).link(b'2', "s", "a").end(),
        gnu: Well(&["l 777 0:0 s a"]),
        bsd: Error(&["l 777 0:0 s a"]),
        ours: Is(&["l 777 0:0 s a"]),
    },
    Case {
        // The file would lack the attribute, which may decide who may do what with it.
        name: "5 KiB in user attributes of a file",
        build: || Tar::default().pax(&[("SCHILY.xattr.user.x", &[b'v'; 5000])]).file("a", b"A").end(),
        gnu: Well(&["f 644 0:0 a A"]),
        bsd: Error(&["f 644 0:0 a A"]),
        ours: Refused("more extended attributes than fit"),
    },
    Case {
        name: "300 user attributes of a file",
        build: || {
            let names: Vec<String> = (0..300).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
            let records: Vec<(&str, &[u8])> =
                names.iter().map(|name| (name.as_str(), b"a value of 20 bytes.".as_slice())).collect();
            Tar::default().pax(&records).file("a", b"A").end()
        },
        gnu: Well(&["f 644 0:0 a A"]),
        bsd: Error(&["f 644 0:0 a A"]),
        ours: Refused("more than 256 extended attributes"),
    },
];

/// Returns the header of the file `a` with one byte, whose owner field has these bytes.
fn owned(owner: [u8; 8]) -> [u8; 512] {
    let mut header = Tar::header(b"a", b'0', 1);
    header[108..116].copy_from_slice(&owner);
    sum(&mut header);
    header
}

#[test]
fn root_file_systems_are_read_as_by_tar_or_refused() {
    for case in CASES {
        case.ours.check(case.name, tree_of(&[(case.build)()], Archive::Whole));
    }
}

/// Compares a column of the table with the program.
fn compare(program: &str, arguments: &[&str], told: impl Fn(&Case) -> Told) {
    if !has(program) || !is_root() {
        return skip::skipped(&format!("comparing with {program} needs {program} and root"));
    }
    for case in CASES {
        let home = tempfile::tempdir().unwrap();
        let (archive, out) = (home.path().join("a.tar"), home.path().join("out"));
        fs::write(&archive, (case.build)()).unwrap();
        fs::create_dir(&out).unwrap();
        let done = Command::new(program)
            .args(arguments)
            .arg("-xpf")
            .arg(&archive)
            .current_dir(&out)
            .output()
            .unwrap();
        let (is_well, expect) = match told(case) {
            Well(expect) => (true, expect),
            Error(expect) => (false, expect),
        };
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(
            (done.status.success(), tree_below(&out)),
            (is_well, owned_lines(expect)),
            "{}: {said}",
            case.name
        );
    }
}

fn owned_lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

#[test]
fn gnu_tar_does_what_the_table_says() {
    compare("tar", &["--xattrs", "--xattrs-include=*"], |case| case.gnu);
}

#[test]
fn bsdtar_does_what_the_table_says() {
    compare("bsdtar", &[], |case| case.bsd);
}
