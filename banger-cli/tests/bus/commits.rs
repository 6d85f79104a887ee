//! Commits that come back from a sandbox, with git on both sides and the real agent on this host.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{host::Ended, workspace::Bench};

const MAIN: &str = "refs/banger/box/main";

fn fetch(bench: &Bench, more: &[&str]) -> Ended {
    bench.banger(&[&["vm", "workspace", "fetch", "box"][..], more].concat())
}

fn fetched(bench: &Bench, more: &[&str]) -> String {
    let ended = fetch(bench, &[&["-q"], more].concat());
    assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{ended:?}");
    ended.output
}

fn prepared() -> Bench {
    let bench = Bench::new();
    bench.prepared(&[]);
    bench
}

/// Commits a file in the sandbox.
fn commit(bench: &Bench, name: &str, author: &str) {
    fs::write(bench.guest.join(name), name).unwrap();
    bench.guest_git(&["add", name]);
    bench.guest_git(&["commit", "-qm", &format!("add {name}"), "--author", author]);
}

fn id(bench: &Bench, revision: &str) -> String {
    bench.git(&["rev-parse", revision]).trim().to_owned()
}

fn guest_id(bench: &Bench, revision: &str) -> String {
    bench.guest_git(&["rev-parse", revision]).trim().to_owned()
}

/// Writes an object of any content in the sandbox, and returns its name.
fn object(bench: &Bench, kind: &str, content: &[u8]) -> String {
    let mut git = Command::new("git")
        .args([
            "-C",
            bench.guest.to_str().unwrap(),
            "hash-object",
            "-w",
            "--literally",
            "--stdin",
            "-t",
            kind,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    git.stdin.take().unwrap().write_all(content).unwrap();
    let output = git.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Returns all files of the repository's objects, and its refs.
fn state(bench: &Bench) -> (Vec<PathBuf>, String) {
    let mut files = Vec::new();
    let mut waiting = vec![bench.repo.join(".git/objects")];
    while let Some(directory) = waiting.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                waiting.push(path.clone());
            }
            files.push(path);
        }
    }
    files.sort();
    (files, bench.git(&["for-each-ref"]))
}

/// Checks that a fetch fails with this message, and leaves no object and no ref.
fn assert_refused(bench: &Bench, expect: &str) {
    let before = state(bench);
    let ended = fetch(bench, &["-q"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.errors.starts_with(&format!("error: {expect}")), "{ended:?}");
    assert_eq!(state(bench), before, "{expect}");
}

#[test]
fn commits_come_back_with_their_authors_and_merges() {
    let bench = prepared();
    commit(&bench, "one", "Eve <eve@example.org>");
    bench.guest_git(&["switch", "-qc", "side"]);
    commit(&bench, "two", "Max <max@example.org>");
    bench.guest_git(&["switch", "-q", "main"]);
    commit(&bench, "three", "Ann <ann@example.org>");
    bench.guest_git(&["merge", "-q", "--no-ff", "-m", "both", "side"]);
    let (head, work) = (id(&bench, "HEAD"), bench.git(&["status", "--porcelain"]));

    let ended = fetch(&bench, &[]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(ended.output, format!("{MAIN}: 4 new commits\nrefs/banger/box/side: 2 new commits\n"));
    assert!(ended.errors.contains(&format!("merge {MAIN}` merges what came back.\n")), "{ended:?}");
    for branch in ["main", "side"] {
        assert_eq!(id(&bench, &format!("refs/banger/box/{branch}")), guest_id(&bench, branch));
    }
    let log = |revision: &str| bench.git(&["log", "--format=%an|%ae|%s|%P", revision]);
    assert!(
        log(MAIN).contains("Eve|eve@example.org|add one|") && log(MAIN).contains("|second|"),
        "{}",
        log(MAIN)
    );
    // Nothing else has changed, and the host's history goes on with it.
    assert_eq!((id(&bench, "HEAD"), bench.git(&["status", "--porcelain"])), (head, work));
    bench.git(&["fsck", "--strict", "--full"]);
    bench.git(&["merge", "-q", "--ff-only", MAIN]);
    assert_eq!(id(&bench, "HEAD"), guest_id(&bench, "main"));

    // Once more: only what is new, and an amended commit.
    let ended = fetch(&bench, &[]);
    assert_eq!((ended.status, ended.output.as_str()), (0, ""), "{ended:?}");
    assert!(ended.errors.ends_with("there are no new commits in the sandbox.\n"), "{ended:?}");
    bench.guest_git(&["commit", "-q", "--amend", "-m", "amended"]);
    let (old, new) = (id(&bench, MAIN), guest_id(&bench, "main"));
    let moved = format!("{}...{} (forced update)", &old[..12], &new[..12]);
    assert_eq!(fetched(&bench, &[]), format!("{MAIN}: 1 new commit, {moved}\n"));
    assert_eq!((id(&bench, MAIN), id(&bench, &format!("{MAIN}@{{1}}"))), (new, old));
    // Nothing takes the place of what was fetched.
    bench.guest_git(&["branch", "-qm", "side", "side/deeper"]);
    assert_refused(
        &bench,
        "cannot fetch the commits: refs/banger/box/side/deeper cannot exist beside refs/banger/box/side.\nhint: `git ",
    );
}

#[test]
fn work_of_another_sandbox_with_the_same_name_is_not_overwritten() {
    let bench = prepared();
    commit(&bench, "one", "Eve <eve@example.org>");
    bench.git(&["update-ref", MAIN, "HEAD"]);
    assert_eq!(fetched(&bench, &[]), "refs/banger/box-2/main: 1 new commit\n");
    assert_eq!(id(&bench, MAIN), id(&bench, "HEAD"));
    // It remains the name, also when the repository was sent again.
    bench.git(&["update-ref", "-d", MAIN]);
    commit(&bench, "two", "Eve <eve@example.org>");
    assert_eq!(fetched(&bench, &[]), "refs/banger/box-2/main: 1 new commit\n");
}

#[test]
fn a_branch_is_created_and_uncommitted_files_are_named() {
    let bench = prepared();
    commit(&bench, "one", "Eve <eve@example.org>");
    fs::write(bench.guest.join("left"), "x").unwrap();
    let ended = bench.banger(&["vm", "workspace", "export", "box", "--commits", "--branch", "work"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(id(&bench, "work"), guest_id(&bench, "HEAD"));
    assert!(ended.errors.contains("switch work` checks the new branch out.\n"), "{ended:?}");
    assert!(
        ended.errors.contains("note: 1 file in the sandbox is not committed and stayed there: left; "),
        "{ended:?}"
    );
    let before = state(&bench);
    for (name, expect) in [
        ("work", "error: the branch work already exists.\nhint: choose another name"),
        ("-x", "error: -x is not a valid name for a branch."),
    ] {
        let ended = fetch(&bench, &[&format!("--branch={name}")]);
        assert!(ended.status == 1 && ended.errors.starts_with(expect), "{ended:?}");
    }
    assert_eq!(state(&bench), before);
    // A commit without a branch.
    bench.guest_git(&["switch", "-q", "--detach"]);
    commit(&bench, "two", "Eve <eve@example.org>");
    let json: Value = serde_json::from_str(&fetched(&bench, &["--json"])).unwrap();
    assert_eq!(json["current"], "refs/banger/box/HEAD");
    assert_eq!(json["uncommitted"], serde_json::json!(["left"]));
    assert_eq!(id(&bench, "refs/banger/box/HEAD"), guest_id(&bench, "HEAD"));
}

#[test]
fn every_kind_of_repository_gets_its_commits_back() {
    // All of its history, and a second branch.
    let bench = Bench::new();
    bench.git(&["branch", "other", "HEAD~1"]);
    bench.prepared(&["--mode", "full-copy"]);
    commit(&bench, "one", "Eve <eve@example.org>");
    assert_eq!(fetched(&bench, &[]), format!("{MAIN}: 1 new commit\nrefs/banger/box/other: 0 new commits\n"));

    // An older revision, while the host goes on.
    let bench = Bench::new();
    bench.prepared(&["--branch", "attempt", "--from", "HEAD~1"]);
    commit(&bench, "one", "Eve <eve@example.org>");
    bench.git(&["commit", "-q", "--allow-empty", "-m", "third"]);
    assert_eq!(fetched(&bench, &[]), "refs/banger/box/attempt: 1 new commit\n");
    assert_eq!(
        bench.git(&["merge-base", "HEAD", "refs/banger/box/attempt"]),
        bench.git(&["rev-parse", "HEAD~2"])
    );

    // A shallow clone on the host.
    let bench = Bench::new();
    let (full, repo) = (bench.host.path("full"), bench.repo.clone());
    fs::rename(&repo, &full).unwrap();
    let url = format!("file://{}", full.display());
    bench.git_in(Path::new("/"), &["clone", "-q", "--depth", "1", &url, repo.to_str().unwrap()]);
    bench.prepared(&[]);
    commit(&bench, "one", "Eve <eve@example.org>");
    assert_eq!(fetched(&bench, &[]), format!("{MAIN}: 1 new commit\n"));
    bench.git(&["fsck", "--strict"]);
}

#[test]
fn commits_that_fit_nothing_are_refused_and_leave_nothing() {
    let bench = prepared();
    let tree = bench.guest_git(&["write-tree"]);
    let header = |parent: &str| {
        format!(
            "tree {tree}{parent}author E <e@example.org> 1 +0000\ncommitter E <e@example.org> 1 +0000\n\nx\n"
        )
    };
    let main = guest_id(&bench, "main");
    let point = |commit: &str| bench.guest_git(&["update-ref", "refs/heads/main", commit]);

    // A parent that only the sandbox claims to have had.
    let orphan = object(&bench, "commit", header(&format!("parent {}\n", "1".repeat(40))).as_bytes());
    let shallow = bench.guest.join(".git/shallow");
    let old = fs::read_to_string(&shallow).unwrap();
    fs::write(&shallow, format!("{old}{orphan}\n")).unwrap();
    point(&orphan);
    assert_refused(
        &bench,
        "cannot fetch the commits: they build on others that are neither in the sandbox nor in the repository.",
    );
    point(&main);
    fs::write(&shallow, old).unwrap();

    // A file that would be git's own.
    let blob = object(&bench, "blob", b"x");
    let entry = [&b"100644 .git\0"[..], &hex(&blob)].concat();
    let evil = object(&bench, "tree", &entry);
    let commit = object(&bench, "commit", header("").replace(tree.trim(), &evil).as_bytes());
    point(&commit);
    assert_refused(&bench, "cannot fetch the commits: an object in the sandbox is not valid: ");
    point(&main);

    // A tag that a branch of the sandbox names.
    bench.guest_git(&["tag", "-am", "x", "annotated"]);
    let tag = guest_id(&bench, "annotated");
    fs::write(bench.guest.join(".git/refs/heads/odd"), format!("{tag}\n")).unwrap();
    assert_refused(&bench, "cannot fetch the commits: a branch of the sandbox is a tag, and no commit.");
    fs::remove_file(bench.guest.join(".git/refs/heads/odd")).unwrap();

    // A branch of the host is in the way, or its ref is locked.
    let before = state(&bench);
    let ended = fetch(&bench, &["-q", "--branch", "main/x"]);
    let expect = "error: the branch main/x cannot exist beside the branch main.";
    assert!(ended.status == 1 && ended.errors.starts_with(expect), "{ended:?}");
    assert_eq!(state(&bench), before);
    bench.guest_git(&["commit", "-q", "--allow-empty", "-m", "more"]);
    let lock = bench.repo.join(".git/refs/banger/box");
    fs::create_dir_all(&lock).unwrap();
    fs::write(lock.join("main.lock"), "").unwrap();
    assert_refused(&bench, "cannot store the branches of the sandbox: ");
    fs::remove_file(lock.join("main.lock")).unwrap();
    point(&main);

    // Too many branches.
    let updates: String = (0..300).map(|n| format!("create refs/heads/b{n} {main}\n")).collect();
    let list = bench.host.path("updates");
    fs::write(&list, updates).unwrap();
    let git = ["-C", bench.guest.to_str().unwrap(), "update-ref", "--stdin"];
    let ended = Command::new("git").args(git).stdin(fs::File::open(list).unwrap()).status().unwrap();
    assert!(ended.success());
    assert_refused(&bench, "cannot fetch the commits: the sandbox has more than 256 branches.");

    // No repository at all.
    fs::remove_dir_all(bench.guest.join(".git")).unwrap();
    assert_refused(&bench, "cannot fetch the commits: git in the sandbox refuses: ");
}

#[test]
fn a_huge_object_is_refused_and_leaves_nothing() {
    let bench = prepared();
    let huge = fs::File::create(bench.guest.join("huge")).unwrap();
    huge.set_len(300 << 20).unwrap();
    bench.guest_git(&["-c", "core.compression=1", "add", "huge"]);
    bench.guest_git(&["commit", "-qm", "huge"]);
    assert_refused(
        &bench,
        "cannot fetch the commits: an object is larger than 256 MiB.\nhint: `banger vm cp`",
    );
}

#[test]
fn a_commit_that_the_host_has_lost_is_explained() {
    let bench = prepared();
    commit(&bench, "one", "Eve <eve@example.org>");
    bench.git(&["commit", "-q", "--amend", "-m", "another"]);
    bench.git(&[
        "-c",
        "gc.reflogExpire=now",
        "-c",
        "gc.reflogExpireUnreachable=now",
        "gc",
        "-q",
        "--prune=now",
    ]);
    let ended = fetch(&bench, &["-q"]);
    assert!(
        ended.errors.contains(" no longer has the commit ") && ended.errors.contains("--apply"),
        "{ended:?}"
    );
}

fn hex(id: &str) -> Vec<u8> {
    (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()).collect()
}
