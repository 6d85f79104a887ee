//! Layers of an image, the lowest first. The reference is Docker, which applies a layer as containerd and
//! `docker load` do (`pkg/archive` of Moby, the OCI image specification's "Image Layer Filesystem Changeset"), and umoci,
//! which a test can run without a daemon.

use std::{fs, path::Path, process::Command};

use super::{Expect, Is, Refused, has, is_root, skip, tree_below, tree_of};
use crate::{
    fixtures::{
        layout::{self, Layout},
        tar::Tar,
    },
    rootfs::tree::Archive,
};

struct Case {
    name: &'static str,
    build: fn() -> Vec<Vec<u8>>,
    docker: &'static str,
    umoci: Umoci,
    ours: Expect,
}

#[derive(Clone, Copy)]
enum Umoci {
    /// The same as ours.
    Same,
    /// It leaves these names.
    Tree(&'static [&'static str]),
}
use Umoci::{Same, Tree};

const CASES: &[Case] = &[
    Case {
        name: "a whiteout below a file",
        build: || vec![Tar::default().file("a", b"A").end(), Tar::default().file("a/.wh.b", b"").end()],
        docker: "hides nothing: there is nothing to remove below a file",
        umoci: Same,
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "a whiteout below a missing directory",
        build: || vec![Tar::default().file("a", b"A").end(), Tar::default().file("x/.wh.b", b"").end()],
        docker: "hides nothing",
        umoci: Same,
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "an absolute whiteout",
        build: || {
            let lower = Tar::default().dir("etc").file("etc/a", b"A").file("etc/b", b"B").end();
            vec![lower, Tar::default().file("/etc/.wh.a", b"").end()]
        },
        docker: "hides etc/a",
        umoci: Same,
        ours: Is(&["d 755 0:0 etc", "f 644 0:0 etc/b B"]),
    },
    Case {
        name: "an opaque directory",
        build: || {
            let lower = Tar::default().dir("d").file("d/a", b"A").end();
            vec![lower, Tar::default().dir("d").file("d/.wh..wh..opq", b"").file("d/b", b"B").end()]
        },
        docker: "has what its own layer has",
        umoci: Same,
        ours: Is(&["d 755 0:0 d", "f 644 0:0 d/b B"]),
    },
    Case {
        name: "metadata directories of AUFS",
        build: || {
            let layer = Tar::default()
                .file("a", b"A")
                .dir(".wh..wh.orph")
                .dir(".wh..wh.plnk")
                .file(".wh..wh.aufs", b"");
            vec![layer.end()]
        },
        docker: "leaves them out",
        umoci: Same,
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "a hard link to a file in a metadata directory of AUFS",
        build: || {
            let layer = Tar::default().dir(".wh..wh.plnk").file(".wh..wh.plnk/12.34", b"A");
            vec![layer.link(b'1', "a", ".wh..wh.plnk/12.34").end()]
        },
        docker: "keeps the file under the name of the link",
        umoci: Tree(&["d 755 0:0 .wh..wh.plnk", "f 644 0:0 .wh..wh.plnk/12.34 A", "f 644 0:0 a A"]),
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "a whiteout of nothing",
        build: || vec![Tar::default().file(".wh.", b"").end()],
        docker: "is not defined; the specification wants a name after the prefix",
        umoci: Same,
        ours: Refused("not a valid whiteout"),
    },
    Case {
        name: "a layer without bytes",
        build: || vec![Tar::default().file("a", b"A").end(), Vec::new()],
        docker: "changes nothing",
        umoci: Same,
        ours: Is(&["f 644 0:0 a A"]),
    },
    Case {
        name: "a layer behind a symbolic link to an absolute path",
        build: || {
            let lower = Tar::default().dir("etc").link(b'2', "conf", "/etc").end();
            vec![lower, Tar::default().file("conf/x", b"X").end()]
        },
        docker: "writes to etc in the image",
        umoci: Same,
        ours: Is(&["l 777 0:0 conf /etc", "d 755 0:0 etc", "f 644 0:0 etc/x X"]),
    },
];

#[test]
fn layers_are_applied_as_by_docker_or_refused() {
    for case in CASES {
        case.ours.check(case.name, tree_of(&(case.build)(), Archive::Layer));
        assert!(!case.docker.is_empty(), "{}", case.name);
    }
}

#[test]
fn umoci_does_what_the_table_says() {
    if !has("umoci") || !is_root() {
        return skip::skipped("comparing with umoci needs umoci and root");
    }
    for case in CASES {
        let home = tempfile::tempdir().unwrap();
        let (directory, out) = (home.path().join("layout"), home.path().join("out"));
        let layers = (case.build)();
        let layout: Layout = layout::of(&layers, "tag");
        layout.write(&directory);
        fs::create_dir(&out).unwrap();
        let image = format!("{}:tag", directory.display());
        let done =
            Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&out).output().unwrap();
        check_umoci(case, done.status.success(), &out, &String::from_utf8_lossy(&done.stderr));
    }
}

fn check_umoci(case: &Case, is_well: bool, out: &Path, said: &str) {
    let expect = match (case.umoci, case.ours) {
        (Tree(expect), _) | (Same, Is(expect)) => expect,
        (Same, Refused(_)) => return assert!(!is_well, "{}: umoci takes it", case.name),
    };
    assert!(is_well, "{}: {said}", case.name);
    assert_eq!(tree_below(out), expect, "{}", case.name);
}
