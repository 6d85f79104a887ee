//! Local edits that follow a repository into a sandbox, with the real agent on this host.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
};

use rustix::process::Signal;

use crate::{host::Ended, workspace::Bench};

fn sync(bench: &Bench, more: &[&str]) -> Ended {
    bench.banger(&[&["vm", "workspace", "sync", "box"][..], more].concat())
}

fn synced(bench: &Bench, more: &[&str]) -> String {
    let ended = sync(bench, &[&["-q"], more].concat());
    assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{ended:?}");
    ended.output
}

/// Saves a file as most editors do, so that nobody sees a part of it.
fn save(bench: &Bench, name: &str, text: &str) {
    let (new, old) = (bench.host.path("saved"), bench.repo.join(name));
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::metadata(&old).unwrap().permissions()).unwrap();
    fs::rename(new, old).unwrap();
}

fn prepared() -> Bench {
    let bench = Bench::new();
    bench.prepared(&[]);
    bench
}

#[test]
fn only_what_has_another_content_or_mode_is_sent() {
    let bench = prepared();
    let path = |name: &str| bench.repo.join(name);
    // As `touch` does, and an editor that saves the same text.
    let text = fs::read(path("lines")).unwrap();
    fs::write(path("lines"), &text).unwrap();
    let ended = sync(&bench, &[]);
    assert_eq!((ended.status, ended.output.as_str()), (0, ""), "{ended:?}");
    assert_eq!(ended.errors, "nothing has changed on the host.\n");

    fs::write(path("src/main.rs"), "fn main() { edited() }\n").unwrap();
    fs::set_permissions(path("lines"), Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(path("run.sh")).unwrap();
    fs::rename(path("link"), path("moved")).unwrap();
    bench.git(&["add", "moved"]);
    fs::write(path("untracked"), "stays").unwrap();
    assert_eq!(
        synced(&bench, &[]),
        "sent 3 files: lines, moved, src/main.rs\nremoved 2 files: link, run.sh\n"
    );
    fs::remove_file(path("untracked")).unwrap();
    bench.assert_same();
    assert_eq!(synced(&bench, &[]), "");
    let json = synced(&bench, &["--json"]);
    assert!(json.contains("\"sent\":[]") && json.ends_with("}\n") && json.lines().count() == 1, "{json}");
}

#[test]
fn a_file_that_changed_on_both_sides_is_overwritten_only_by_force() {
    let bench = prepared();
    for (directory, text) in [(&bench.repo, "host\n"), (&bench.guest, "sandbox\n")] {
        fs::write(directory.join("lines"), text).unwrap();
    }
    fs::write(bench.repo.join("src/main.rs"), "edited\n").unwrap();
    fs::write(bench.guest.join("new"), "work\n").unwrap();
    let ended = sync(&bench, &["-q"]);
    assert_eq!((ended.status, ended.output.as_str()), (1, ""), "{ended:?}");
    assert!(
        ended.errors.contains("have changed on the host and in the sandbox: lines.\nhint: "),
        "{ended:?}"
    );
    assert!(ended.errors.contains("`banger vm workspace sync --force box` overwrites it"), "{ended:?}");
    let there = |name: &str| fs::read_to_string(bench.guest.join(name)).unwrap();
    assert_eq!((there("lines"), there("src/main.rs")), ("sandbox\n".into(), "fn main() {}\n".into()));
    assert_eq!(synced(&bench, &["--force"]), "sent 2 files: lines, src/main.rs\n");
    assert_eq!((there("lines"), there("src/main.rs")), ("host\n".into(), "edited\n".into()));
    assert_eq!(there("new"), "work\n");
}

#[test]
fn edits_are_sent_as_they_are_made() {
    let bench = prepared();
    let path = |name: &str| bench.repo.join(name);
    let mut watching = bench.host.start(&["vm", "workspace", "sync", "-q", "--watch", "box"]);
    for number in 0..3 {
        if number == 0 {
            save(&bench, "lines", "edit 0\n");
        } else {
            // In place, in one step.
            let mut file = File::options().write(true).open(path("lines")).unwrap();
            file.write_all(format!("edit {number}\n").as_bytes()).unwrap();
        }
        assert_eq!(watching.next_output(), "sent 1 file: lines");
        assert_eq!(fs::read_to_string(bench.guest.join("lines")).unwrap(), format!("edit {number}\n"));
    }
    // In a directory that is new, by a program that replaces files.
    fs::create_dir(path("src/new")).unwrap();
    fs::write(path("src/new/x.tmp"), "x\n").unwrap();
    fs::rename(path("src/new/x.tmp"), path("src/new/x")).unwrap();
    bench.git(&["add", "src/new/x"]);
    assert_eq!(watching.next_output(), "sent 1 file: src/new/x");
    save(&bench, "src/new/x", "y\n");
    assert_eq!(watching.next_output(), "sent 1 file: src/new/x");
    // A conflict is reported, and ends nothing.
    fs::write(bench.guest.join("run.sh"), "work\n").unwrap();
    save(&bench, "run.sh", "edit\n");
    assert!(watching.next_error().contains("have changed on the host and in the sandbox: run.sh"));
    fs::write(bench.guest.join("run.sh"), "edit\n").unwrap();
    fs::remove_file(path("src/new/x")).unwrap();
    assert_eq!(watching.next_output(), "sent 1 file: run.sh");
    assert_eq!(watching.next_output(), "removed 1 file: src/new/x");
    watching.signal(Signal::INT);
    let ended = watching.end();
    assert_eq!(ended.status, 0, "{ended:?}");
    bench.assert_same();
}

#[test]
fn a_watch_stays_with_its_workspace() {
    let bench = prepared();
    let mut watching = bench.host.start(&["vm", "workspace", "sync", "-q", "--watch", "box"]);
    save(&bench, "lines", "first\n");
    assert_eq!(watching.next_output(), "sent 1 file: lines");
    let other = bench.guest.with_file_name("other");
    let path = other.to_str().unwrap();
    let repo = bench.repo.to_str().unwrap();
    let ended = bench.banger(&["vm", "workspace", "prepare", "-q", "--guest-path", path, "box", repo]);
    assert_eq!(ended.status, 0, "{ended:?}");
    save(&bench, "lines", "second\n");
    assert_eq!(watching.next_output(), "sent 1 file: lines");
    let there = |directory: &std::path::Path| fs::read_to_string(directory.join("lines")).unwrap();
    assert_eq!((there(&bench.guest), there(&other)), ("second\n".into(), "first\n".into()));
    watching.signal(Signal::INT);
    assert_eq!(watching.end().status, 0);
}

#[test]
fn a_directory_in_the_sandbox_at_the_name_of_a_new_file_is_a_conflict() {
    let bench = prepared();
    fs::create_dir(bench.guest.join("new")).unwrap();
    fs::write(bench.guest.join("new/work"), "work\n").unwrap();
    fs::write(bench.repo.join("new"), "edit\n").unwrap();
    bench.git(&["add", "new"]);
    let ended = sync(&bench, &[]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert_eq!(fs::read_to_string(bench.guest.join("new/work")).unwrap(), "work\n");
}

#[test]
fn a_revision_that_was_sent_does_not_follow_the_work_tree() {
    let bench = Bench::new();
    bench.prepared(&["--branch", "attempt", "--from", "HEAD~1"]);
    let ended = sync(&bench, &[]);
    assert_eq!(ended.status, 1);
    assert!(
        ended
            .errors
            .starts_with("error: cannot send changes of the work tree: box has the files of a revision."),
        "{ended:?}"
    );
}
