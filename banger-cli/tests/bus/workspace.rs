//! Repositories sent into a sandbox and back, with the real agent on this host.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::host::{Ended, Host};

/// A host with a sandbox, a repository, and a path for it in the sandbox.
pub struct Bench {
    pub host: Host,
    pub repo: PathBuf,
    pub guest: PathBuf,
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self::empty();
        let path = |name: &str| bench.repo.join(name);
        fs::create_dir(path("src")).unwrap();
        fs::write(path("src/main.rs"), "fn main() {}\n").unwrap();
        fs::write(path("run.sh"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(path("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("src/main.rs", path("link")).unwrap();
        symlink("/etc/./..//etc/passwd", path("out")).unwrap();
        fs::write(path("odd\nname \"x\""), "odd").unwrap();
        fs::write(path("lines"), (1..=40).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
        fs::write(bench.repo.join(OsStr::from_bytes(b"\xff\xfe")), [0, 159, 146, 150]).unwrap();
        fs::write(path(".gitignore"), "target/\n*.log\n").unwrap();
        bench.git(&["add", "-A"]);
        bench.git(&["commit", "-qm", "first"]);
        fs::write(path("lines"), (1..=41).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
        bench.git(&["commit", "-qam", "second"]);
        bench
    }

    fn empty() -> Self {
        let host = Host::new();
        let created = host.banger(&["vm", "create", "-q", "--name", "box", "--image", "debian"]);
        assert_eq!(created.status, 0, "{created:?}");
        let repo = host.path("repo");
        fs::create_dir(&repo).unwrap();
        let guest = host.path("guest").join("repo");
        let bench = Self { host, repo, guest };
        bench.git(&["init", "-q", "-b", "main"]);
        bench
    }

    pub fn git_in(&self, directory: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .arg("-C")
            .arg(directory)
            .args([
                "-c",
                "user.name=Ann",
                "-c",
                "user.email=ann@example.org",
                "-c",
                "protocol.file.allow=always",
            ])
            .args(arguments)
            .env("HOME", self.host.home())
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        self.git_in(&self.repo, arguments)
    }

    pub fn guest_git(&self, arguments: &[&str]) -> String {
        self.git_in(&self.guest, arguments)
    }

    pub fn banger(&self, arguments: &[&str]) -> Ended {
        self.host.banger(arguments)
    }

    pub fn prepare(&self, more: &[&str]) -> Ended {
        let arguments =
            ["vm", "workspace", "prepare", "-q", "box", self.repo.to_str().unwrap(), "--guest-path"];
        self.banger(&[&arguments[..], &[self.guest.to_str().unwrap()], more].concat())
    }

    pub fn prepared(&self, more: &[&str]) {
        let ended = self.prepare(more);
        assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{ended:?}");
    }

    fn export(&self, more: &[&str]) -> Ended {
        self.banger(&[&["vm", "workspace", "export", "-q", "box"][..], more].concat())
    }

    fn exported(&self, more: &[&str]) -> String {
        let ended = self.export(more);
        assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{ended:?}");
        ended.output
    }

    pub fn assert_same(&self) {
        assert_eq!(tree(&self.repo), tree(&self.guest));
    }
}

/// Returns everything below a directory except `.git`: names, kinds, executable bits and contents.
fn tree(directory: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut tree = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(place) = waiting.pop() {
        for entry in fs::read_dir(&place).unwrap().map(Result::unwrap) {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let name = path.strip_prefix(directory).unwrap().to_owned();
            if entry.file_name() == ".git" {
                continue;
            } else if metadata.is_dir() {
                waiting.push(path);
            } else if metadata.is_symlink() {
                let target = fs::read_link(path).unwrap().into_os_string().as_bytes().to_vec();
                tree.push((name, "link".into(), target));
            } else {
                let kind = if metadata.permissions().mode() & 0o100 == 0 { "file" } else { "program" };
                tree.push((name, kind.into(), fs::read(path).unwrap()));
            }
        }
    }
    tree.sort();
    tree
}

#[test]
fn a_repository_arrives_unchanged_and_git_agrees() {
    let bench = Bench::new();
    bench.prepared(&[]);
    bench.assert_same();
    assert_eq!(bench.guest_git(&["status", "--short"]), "");
    assert_eq!(bench.guest_git(&["rev-parse", "HEAD"]), bench.git(&["rev-parse", "HEAD"]));
    assert_eq!(bench.guest_git(&["branch", "--show-current"]), "main\n");
    assert_eq!(bench.guest_git(&["log", "--oneline"]).lines().count(), 1);
    bench.guest_git(&["fsck", "--strict"]);
    fs::write(bench.guest.join("new"), "x").unwrap();
    bench.guest_git(&["add", "new"]);
    bench.guest_git(&["commit", "-qm", "in the sandbox"]);
}

#[test]
fn a_repository_on_another_file_system_is_sent() {
    let mut bench = Bench::new();
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(elsewhere.path()), device(&bench.repo), "this test needs two file systems");
    let repo = elsewhere.path().join("repo");
    bench.git_in(elsewhere.path(), &["clone", "-q", bench.repo.to_str().unwrap(), repo.to_str().unwrap()]);
    bench.repo = repo;
    fs::write(bench.repo.join("staged"), "staged").unwrap();
    bench.git(&["add", "staged"]);
    bench.prepared(&[]);
    bench.assert_same();
    bench.guest_git(&["fsck", "--strict"]);
    assert_eq!(bench.guest_git(&["status", "--short"]), "A  staged\n");
}

#[test]
fn local_changes_are_sent_and_untracked_files_are_not() {
    let bench = Bench::new();
    let path = |name: &str| bench.repo.join(name);
    fs::write(path("lines"), "changed\n").unwrap();
    fs::write(path("staged"), "staged\n").unwrap();
    bench.git(&["add", "staged"]);
    fs::remove_file(path("run.sh")).unwrap();
    fs::write(path("secret"), "untracked").unwrap();
    fs::create_dir(path("target")).unwrap();
    fs::write(path("target/x"), "ignored").unwrap();
    let arguments = ["vm", "workspace", "prepare", "box", bench.repo.to_str().unwrap(), "--guest-path"];
    let ended = bench.banger(&[&arguments[..], &[bench.guest.to_str().unwrap()]].concat());
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.errors.contains("note: 1 file is untracked and not sent"), "{ended:?}");
    assert_eq!(bench.guest_git(&["status", "--short"]), " M lines\n D run.sh\nA  staged\n");
    assert!(!bench.guest.join("secret").exists() && !bench.guest.join("target").exists());
    bench.prepared(&["--force", "--include-untracked"]);
    assert!(bench.guest.join("secret").exists() && !bench.guest.join("target").exists());
}

#[test]
fn a_dry_run_lists_what_would_be_sent_and_touches_nothing() {
    let bench = Bench::new();
    let ended = bench.prepare(&["--dry-run"]);
    let lines: Vec<_> = ended.output.lines().collect();
    assert!(lines.contains(&"src/main.rs") && lines.contains(&r#""odd\nname \"x\"""#), "{ended:?}");
    assert_eq!(lines.len(), 8);
    assert!(!bench.guest.exists());
    let json: Value = serde_json::from_str(&bench.prepare(&["--dry-run", "--json"]).output).unwrap();
    assert_eq!((json["files"].as_array().unwrap().len(), &json["branch"]), (8, &"refs/heads/main".into()));
    let calls = bench.host.all_calls();
    assert!(!calls.contains(&"OpenAgent".to_owned()), "{calls:?}");
    let repo = bench.repo.to_str().unwrap();
    assert_eq!(bench.banger(&["vm", "run", "--dry-run", repo]).output, ended.output);
}

#[test]
fn a_command_runs_in_the_directory_that_was_named() {
    let bench = Bench::new();
    let (src, guest) = (bench.repo.join("src"), bench.guest.to_str().unwrap());
    let run = ["vm", "run", "-q", "--rm", "--name", "box-2", "--image", "debian", "--guest-path", guest];
    let ended =
        bench.banger(&[&run[..], &[src.to_str().unwrap(), "--", "sh", "-c", "pwd; exit 42"]].concat());
    assert_eq!((ended.status, ended.output), (42, format!("{guest}/src\n")));
}

#[test]
fn every_kind_of_head_and_work_tree_is_sent() {
    // Before the first commit.
    let bench = Bench::empty();
    fs::write(bench.repo.join("a"), "a").unwrap();
    bench.git(&["add", "a"]);
    bench.prepared(&[]);
    assert_eq!(bench.guest_git(&["status", "--short"]), "A  a\n");
    assert_eq!(bench.exported(&[]), "");

    // A detached HEAD.
    let bench = Bench::new();
    bench.git(&["checkout", "-q", "--detach", "HEAD~1"]);
    bench.prepared(&[]);
    assert_eq!(bench.guest_git(&["status", "--short"]), "");
    assert_eq!(bench.guest_git(&["branch", "--show-current"]), "");

    // A linked work tree.
    let bench = Bench::new();
    let linked = bench.host.path("linked");
    bench.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().unwrap()]);
    let arguments = ["vm", "workspace", "prepare", "-q", "box", linked.to_str().unwrap(), "--guest-path"];
    let ended = bench.banger(&[&arguments[..], &[bench.guest.to_str().unwrap()]].concat());
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(bench.guest_git(&["status", "--short", "--branch"]), "## side\n");
    fs::write(bench.guest.join("lines"), "work\n").unwrap();
    bench.exported(&["--apply"]);
    assert_eq!(fs::read_to_string(linked.join("lines")).unwrap(), "work\n");

    // A sparse checkout.
    let bench = Bench::new();
    bench.git(&["sparse-checkout", "set", "--no-cone", "/lines"]);
    bench.prepared(&[]);
    assert_eq!(bench.guest_git(&["status", "--short"]), "");
    assert!(!bench.guest.join("src").exists());
    assert_eq!(bench.exported(&[]), "");
}

#[test]
fn a_branch_starts_at_a_revision_with_its_files() {
    let bench = Bench::new();
    fs::write(bench.repo.join("lines"), "local\n").unwrap();
    bench.prepared(&["--branch", "attempt", "--from", "HEAD~1"]);
    assert_eq!(bench.guest_git(&["status", "--short", "--branch"]), "## attempt\n");
    assert!(fs::read_to_string(bench.guest.join("lines")).unwrap().ends_with("line 40\n"));
    assert_eq!(bench.git(&["branch"]), "* main\n");
    let ended = bench.prepare(&["--force", "--branch", "a..b"]);
    assert!(ended.errors.starts_with("error: a..b is not a valid name for a branch."), "{ended:?}");
    let ended = bench.prepare(&["--force", "--branch", "x", "--from", "nowhere"]);
    assert!(ended.errors.starts_with("error: there is no commit nowhere in "), "{ended:?}");
}

#[test]
fn filtered_contents_arrive_as_in_the_work_tree() {
    let bench = Bench::new();
    bench.git(&["config", "filter.swap.clean", "tr a-z A-Z"]);
    bench.git(&["config", "filter.swap.smudge", "tr A-Z a-z"]);
    fs::write(bench.repo.join(".gitattributes"), "*.big filter=swap\n").unwrap();
    fs::write(bench.repo.join("x.big"), "content").unwrap();
    bench.git(&["add", "-A"]);
    bench.git(&["commit", "-qm", "filtered"]);
    // As git leaves it after a status.
    bench.git(&["status", "--short"]);
    bench.prepared(&[]);
    assert_eq!(fs::read_to_string(bench.guest.join("x.big")).unwrap(), "content");
    assert_eq!(bench.guest_git(&["status", "--short"]), "");
    assert_eq!(bench.exported(&[]), "");
}

#[test]
fn submodules_need_a_full_copy() {
    let bench = Bench::new();
    let other = bench.host.path("other");
    fs::create_dir(&other).unwrap();
    bench.git_in(&other, &["init", "-q", "-b", "main"]);
    fs::write(other.join("inner"), "inner").unwrap();
    bench.git_in(&other, &["add", "-A"]);
    bench.git_in(&other, &["commit", "-qm", "inner"]);
    bench.git(&["submodule", "--quiet", "add", other.to_str().unwrap(), "sub"]);
    bench.git(&["commit", "-qm", "with a submodule"]);
    let ended = bench.prepare(&[]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.starts_with("error: cannot send the submodule sub.\nhint: `--mode full-copy`"));
    bench.prepared(&["--mode", "full_copy"]);
    bench.assert_same();
    assert_eq!(bench.guest_git(&["status", "--short"]), "");
    assert_eq!(bench.guest_git(&["log", "--oneline"]).lines().count(), 3);
    fs::write(bench.guest.join("sub/inner"), "changed").unwrap();
    assert!(bench.exported(&[]).contains("b/sub/inner"));
}

#[test]
fn other_directories_are_refused_before_a_sandbox_is_created() {
    let bench = Bench::new();
    let place = |name: &str| bench.host.path(name).to_str().unwrap().to_owned();
    fs::create_dir(bench.host.path("plain")).unwrap();
    bench.git(&["clone", "-q", "--bare", ".", &place("bare.git")]);
    fs::write(bench.host.path("file"), "").unwrap();
    let made = bench.host.calls("CreateVM").len();
    for (path, expect) in [
        ("plain", "is not in a git repository.\nhint: `git init`"),
        ("bare.git", "is a bare repository: it has no files.\nhint: clone it"),
        ("file", "is not a directory.\nhint: "),
        ("nowhere", "error: cannot read "),
        ("repo/.git", "is inside the `.git` directory of a repository.\nhint: "),
    ] {
        let ended = bench.banger(&["vm", "run", "--rm", &place(path), "--", "true"]);
        assert_ne!(ended.status, 0);
        assert!(ended.errors.contains(expect), "{path}: {ended:?}");
    }
    assert_eq!(bench.host.calls("CreateVM").len(), made);
    let ended = bench.banger(&["vm", "run", "--rm", "--include-untracked", "--", "true"]);
    assert!(ended.status == 2 && ended.errors.contains("`banger vm run . …`"), "{ended:?}");
}

#[test]
fn nothing_that_a_repository_configures_is_run() {
    let bench = Bench::new();
    let trap = bench.host.path("trap");
    fs::write(&trap, format!("#!/bin/sh\ntouch {}\nexit 1\n", bench.host.path("sprung").display())).unwrap();
    fs::set_permissions(&trap, fs::Permissions::from_mode(0o755)).unwrap();
    let trap = trap.to_str().unwrap();
    fs::write(bench.repo.join(".gitattributes"), "* filter=evil diff=evil merge=evil\n").unwrap();
    bench.git(&["add", "-A"]);
    bench.git(&["commit", "-qm", "attributes"]);
    for key in [
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "core.editor",
        "diff.external",
        "diff.evil.command",
        "diff.evil.textconv",
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.evil.process",
        "merge.evil.driver",
        "core.alternateRefsCommand",
        "uploadpack.packObjectsHook",
        "credential.helper",
        "core.gitProxy",
    ] {
        bench.git(&["config", key, trap]);
    }
    for hook in
        ["post-index-change", "reference-transaction", "pre-auto-gc", "post-checkout", "fsmonitor-watchman"]
    {
        fs::copy(trap, bench.repo.join(".git/hooks").join(hook)).unwrap();
    }
    fs::write(bench.repo.join("lines"), "changed\n").unwrap();
    bench.prepared(&["--include-untracked"]);
    fs::write(bench.guest.join("run.sh"), "changed\n").unwrap();
    bench.exported(&["--stat"]);
    bench.git(&["config", "user.name", "Ann"]);
    bench.git(&["config", "user.email", "ann@example.org"]);
    bench.exported(&["--branch", "work"]);
    bench.guest_git(&["commit", "-qam", "in the sandbox"]);
    bench.exported(&["--commits", "--branch", "commits"]);
    bench.exported(&["--apply", "--merge"]);
    fs::write(bench.repo.join("lines"), "changed again\n").unwrap();
    bench.banger(&["vm", "exec", "--auto-prepare", "box", "--", "true"]);
    assert!(!bench.host.path("sprung").exists());
}

#[test]
fn work_in_the_sandbox_comes_back_and_nothing_changes_there() {
    let bench = Bench::new();
    bench.prepared(&[]);
    let path = |name: &str| bench.guest.join(name);
    // Committed in the sandbox, and not committed.
    fs::write(path("committed"), "in a commit\n").unwrap();
    bench.guest_git(&["add", "committed"]);
    bench.guest_git(&["commit", "-qm", "work"]);
    fs::write(path("staged"), [0u8, 1, 2, 255]).unwrap();
    bench.guest_git(&["add", "staged"]);
    fs::write(path("src/main.rs"), "fn main() { work() }\n").unwrap();
    fs::remove_file(path("run.sh")).unwrap();
    fs::remove_file(path("link")).unwrap();
    fs::create_dir(path("link")).unwrap();
    fs::write(path("link/is a directory"), "x").unwrap();
    fs::set_permissions(path("lines"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path("new \"odd\"\n"), "odd").unwrap();
    fs::create_dir(path("target")).unwrap();
    fs::write(path("target/debug"), "ignored").unwrap();
    fs::write(path("build.log"), "ignored").unwrap();
    let before = (
        fs::read(path(".git/index")).unwrap(),
        bench.guest_git(&["for-each-ref"]),
        bench.guest_git(&["status", "--porcelain"]),
        tree(&bench.guest),
    );
    let patch = bench.exported(&[]);
    assert!(patch.contains("GIT binary patch") && !patch.contains("build.log"), "{patch}");
    let file = bench.host.path("work.patch");
    bench.exported(&["-o", file.to_str().unwrap()]);
    bench.git(&["apply", "--check", file.to_str().unwrap()]);
    assert!(bench.exported(&["--stat"]).contains("8 files changed"), "{}", bench.exported(&["--stat"]));
    bench.exported(&["--apply"]);
    assert_eq!(
        before,
        (
            fs::read(path(".git/index")).unwrap(),
            bench.guest_git(&["for-each-ref"]),
            bench.guest_git(&["status", "--porcelain"]),
            tree(&bench.guest),
        )
    );
    fs::remove_dir_all(path("target")).unwrap();
    fs::remove_file(path("build.log")).unwrap();
    bench.assert_same();
    // Both sides are equal now.
    assert_eq!(bench.exported(&[]), "");
    // Still, everything differs from the commit.
    assert!(bench.exported(&["--base-commit", "HEAD"]).contains("in a commit"));
}

#[test]
fn a_patch_brings_a_clone_to_the_state_of_the_sandbox() {
    let bench = Bench::new();
    bench.prepared(&[]);
    fs::write(bench.guest.join("lines"), "one\n").unwrap();
    fs::write(bench.guest.join("bin"), [0u8; 100]).unwrap();
    let clone = bench.host.path("clone");
    bench.git(&["clone", "-q", ".", clone.to_str().unwrap()]);
    let file = bench.host.path("work.patch");
    bench.exported(&["-o", file.to_str().unwrap()]);
    bench.git_in(&clone, &["apply", file.to_str().unwrap()]);
    assert_eq!(tree(&clone), tree(&bench.guest));
    let json: Value = serde_json::from_str(&bench.exported(&["--json"])).unwrap();
    assert_eq!(json["files"][0]["path"], "bin");
    assert_eq!(json["files"][0]["status"], "added");
    assert_eq!(json["files"][1]["status"], "modified");
}

#[test]
fn a_changed_work_tree_is_left_alone_unless_merged() {
    let bench = Bench::new();
    bench.prepared(&[]);
    let edit = |place: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(place.join("lines")).unwrap();
        fs::write(place.join("lines"), text.replace(from, to)).unwrap();
    };
    edit(&bench.guest, "line 2\n", "line two\n");
    edit(&bench.repo, "line 30\n", "line thirty\n");
    let ended = bench.export(&["--apply"]);
    assert_eq!(ended.status, 1);
    assert!(
        ended.errors.contains("has changes that were neither sent nor committed, as in lines.\nhint: "),
        "{ended:?}"
    );
    assert!(ended.errors.contains("`banger vm workspace export box --apply --merge`"), "{ended:?}");
    bench.exported(&["--apply", "--merge"]);
    let merged = fs::read_to_string(bench.repo.join("lines")).unwrap();
    assert!(merged.contains("line two\n") && merged.contains("line thirty\n"), "{merged}");

    // A conflict leaves everything unchanged, including other files.
    edit(&bench.guest, "line 10\n", "line ten\n");
    fs::write(bench.guest.join("another"), "x").unwrap();
    edit(&bench.repo, "line 10\n", "line TEN\n");
    let before = tree(&bench.repo);
    // The option's earlier name.
    let ended = bench.export(&["--apply", "--force"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.contains("in different ways: lines.\nhint: nothing was touched"), "{ended:?}");
    assert_eq!(before, tree(&bench.repo));
}

#[test]
fn work_goes_to_a_branch_and_the_work_tree_stays() {
    let bench = Bench::new();
    bench.prepared(&[]);
    fs::write(bench.guest.join("lines"), "work\n").unwrap();
    fs::write(bench.guest.join("new"), "new\n").unwrap();
    bench.git(&["config", "user.name", "Ann"]);
    bench.git(&["config", "user.email", "ann@example.org"]);
    let before = tree(&bench.repo);
    bench.exported(&["--branch", "work", "-m", "from a sandbox"]);
    assert_eq!(before, tree(&bench.repo));
    assert_eq!(bench.git(&["log", "-1", "--format=%an %s", "work"]), "Ann from a sandbox\n");
    assert_eq!(bench.git(&["diff", "--name-status", "main", "work"]), "M\tlines\nA\tnew\n");
    assert_eq!(bench.git(&["status", "--short"]), "");
    let ended = bench.export(&["--branch", "work"]);
    assert!(ended.errors.starts_with("error: the branch work already exists."), "{ended:?}");
}

#[test]
fn links_of_a_sandbox_lead_nowhere_when_its_work_is_applied() {
    let bench = Bench::new();
    fs::create_dir(bench.repo.join("dir")).unwrap();
    fs::write(bench.repo.join("dir/x"), "x").unwrap();
    bench.git(&["add", "-A"]);
    bench.git(&["commit", "-qm", "dir"]);
    bench.prepared(&[]);
    let outside = bench.host.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("x"), "mine").unwrap();
    // On the host, the directory has become a link to another one; in the sandbox, the file in it has changed.
    fs::remove_dir_all(bench.repo.join("dir")).unwrap();
    symlink(&outside, bench.repo.join("dir")).unwrap();
    fs::write(bench.guest.join("dir/x"), "from the sandbox").unwrap();
    fs::write(bench.guest.join("dir/y"), "from the sandbox").unwrap();
    let ended = bench.export(&["--apply", "--merge"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert_eq!(fs::read_to_string(outside.join("x")).unwrap(), "mine");
    assert!(!outside.join("y").exists());
}

#[test]
fn existing_files_are_not_replaced_without_force() {
    let bench = Bench::new();
    bench.prepared(&[]);
    fs::write(bench.guest.join("work"), "x").unwrap();
    let ended = bench.prepare(&[]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.contains("there is something already.\nhint: `--force`"), "{ended:?}");
    assert!(bench.guest.join("work").exists());
    bench.prepared(&["--force"]);
    assert!(!bench.guest.join("work").exists());
}

#[test]
fn a_sandbox_without_a_workspace_says_so() {
    let bench = Bench::new();
    let ended = bench.export(&[]);
    assert_eq!(ended.status, 1);
    assert!(
        ended.errors.starts_with(
            "error: you sent no repository to box.\nhint: `banger vm workspace prepare box PATH`"
        )
    );
    bench.prepared(&[]);
    fs::remove_dir_all(&bench.guest).unwrap();
    let ended = bench.export(&[]);
    assert!(ended.errors.contains("there is no workspace at "), "{ended:?}");
}

#[test]
fn commands_run_in_the_workspace_and_only_changes_are_sent() {
    let bench = Bench::new();
    bench.prepared(&[]);
    let exec = |arguments: &[&str]| bench.banger(&[&["vm", "exec"], arguments].concat());
    assert_eq!(exec(&["box", "--", "pwd"]).output, format!("{}\n", bench.guest.display()));
    assert_eq!(exec(&["-w", "/", "box", "--", "pwd"]).output, "/\n");
    let stamp = |name: &str| fs::metadata(bench.guest.join(name)).unwrap().modified().unwrap();
    let before = stamp("src/main.rs");

    fs::write(bench.repo.join("lines"), "later\n").unwrap();
    fs::remove_file(bench.repo.join("run.sh")).unwrap();
    bench.git(&["commit", "-qam", "third"]);
    let ended = exec(&["box", "--", "true"]);
    assert!(ended.errors.starts_with("warning: ") && ended.errors.contains("has moved from"), "{ended:?}");
    assert!(
        ended.errors.contains("2 files differ: lines, run.sh; `banger vm exec --auto-prepare box`"),
        "{ended:?}"
    );
    fs::write(bench.guest.join("kept"), "work in the sandbox").unwrap();
    let ended = exec(&["--auto-prepare", "box", "--", "cat", "lines"]);
    assert_eq!((ended.output.as_str(), ended.errors.as_str()), ("later\n", ""), "{ended:?}");
    assert!(!bench.guest.join("run.sh").exists() && bench.guest.join("kept").exists());
    assert_eq!(stamp("src/main.rs"), before);
    assert_eq!(exec(&["box", "--", "true"]).errors, "");
    let patch = bench.exported(&[]);
    assert!(patch.contains("b/kept") && !patch.contains("lines"), "{patch}");

    // Files that have changed on both sides are not overwritten.
    fs::write(bench.repo.join("lines"), "here\n").unwrap();
    fs::write(bench.guest.join("lines"), "there\n").unwrap();
    let ended = exec(&["--auto-prepare", "box", "--", "true"]);
    assert_eq!(ended.status, 125);
    assert!(
        ended.errors.starts_with(
            "error: cannot send changes: the same files have changed on the host and in the sandbox: lines.\n"
        ),
        "{ended:?}"
    );
    assert_eq!(fs::read_to_string(bench.guest.join("lines")).unwrap(), "there\n");
}

#[test]
fn tools_are_checked_before_a_sandbox_is_created() {
    let bench = Bench::new();
    fs::write(bench.repo.join(".tool-versions"), "node 22\n").unwrap();
    bench.git(&["add", "-A"]);
    bench.git(&["commit", "-qm", "tools"]);
    let (repo, guest) = (bench.repo.to_str().unwrap(), bench.guest.to_str().unwrap());
    let made = bench.host.calls("CreateVM").len();
    let run = ["vm", "run", "-d", "--name", "box-2", "--image", "debian", "--guest-path", guest, repo];
    let ended = bench.banger(&run);
    assert_eq!(ended.status, 125);
    assert!(
        ended.errors.starts_with("error: the repository asks for tools in .tool-versions, and "),
        "{ended:?}"
    );
    assert!(
        ended.errors.contains(
            "hint: `--nat` gives it internet access, `--egress packages` only the package registries; `--no"
        ),
        "{ended:?}"
    );
    assert_eq!(bench.host.calls("CreateVM").len(), made);
    assert_eq!(bench.banger(&[&run[..], &["-q", "--no-bootstrap"]].concat()).output, "box-2\n");
}

#[test]
fn work_is_applied_to_an_unchanged_tree_whatever_is_committed() {
    let bench = Bench::new();
    let here = |name: &str| bench.repo.join(name);
    fs::write(here("lines"), "changed\n").unwrap();
    fs::write(here("staged"), "staged\n").unwrap();
    bench.git(&["add", "staged"]);
    fs::remove_file(here("run.sh")).unwrap();
    bench.git(&["rm", "-q", "--cached", "link"]);
    bench.prepared(&["--include-untracked"]);
    fs::write(bench.guest.join("lines"), "changed\nand worked on\n").unwrap();
    fs::write(bench.guest.join("new"), "new\n").unwrap();
    bench.exported(&["--apply"]);
    bench.assert_same();
    // Nothing of it is committed, but both sides have it.
    fs::write(bench.guest.join("new"), "newer\n").unwrap();
    fs::write(bench.guest.join("staged"), "worked on\n").unwrap();
    bench.exported(&["--apply"]);
    bench.assert_same();
    // A change on the host only, in a file that the sandbox has not changed.
    fs::write(here("src/main.rs"), "mine\n").unwrap();
    fs::write(bench.guest.join("new"), "newest\n").unwrap();
    let ended = bench.export(&["--apply"]);
    assert!(ended.status == 1 && ended.errors.contains("as in src/main.rs.\n"), "{ended:?}");
    // Once it is committed, it cannot be lost.
    bench.git(&["commit", "-qam", "mine"]);
    bench.exported(&["--apply"]);
    assert_eq!(fs::read_to_string(here("new")).unwrap(), "newest\n");
    assert_eq!(fs::read_to_string(here("src/main.rs")).unwrap(), "mine\n");
}

#[test]
fn no_branch_is_created_without_changes() {
    let bench = Bench::new();
    bench.git(&["config", "user.name", "Ann"]);
    bench.git(&["config", "user.email", "ann@example.org"]);
    fs::write(bench.repo.join("lines"), "local\n").unwrap();
    bench.prepared(&[]);
    let refused = |what: &str| {
        let ended = bench.export(&["--branch", "work"]);
        assert_eq!(ended.status, 1, "{what}: {ended:?}");
        assert!(ended.errors.starts_with("error: there is nothing to commit on work: "), "{what}: {ended:?}");
        assert_eq!(bench.git(&["branch", "--list", "work"]), "", "{what}");
    };
    refused("nothing has changed");
    fs::write(bench.guest.join("lines"), "work\n").unwrap();
    bench.exported(&["--apply"]);
    refused("it was applied");
    // The sandbox has reverted a local change of the host.
    bench.guest_git(&["checkout", "-q", "HEAD", "--", "lines"]);
    refused("it is what the commit has");
    fs::write(bench.guest.join("lines"), "more work\n").unwrap();
    bench.exported(&["--branch", "work"]);
    assert_eq!(bench.git(&["diff", "--name-only", "main", "work"]), "lines\n");
}

#[test]
fn an_uncommitted_edit_is_reported_or_sent() {
    let bench = Bench::new();
    bench.prepared(&[]);
    let exec = |arguments: &[&str]| bench.banger(&[&["vm", "exec"], arguments].concat());
    assert_eq!(exec(&["box", "--", "true"]).errors, "");
    // With the same length, so only the times differ.
    fs::write(bench.repo.join("src/main.rs"), "fn main() [];").unwrap();
    let ended = exec(&["box", "--", "true"]);
    assert_eq!(ended.status, 0);
    assert_eq!(
        ended.errors,
        format!(
            "warning: {} has changed since it was sent: 1 file differs: src/main.rs; `banger vm exec \
             --auto-prepare box` sends what has changed.\n",
            bench.repo.display()
        )
    );
    // A file that only looks different is read, and found to be the same.
    let text = fs::read(bench.repo.join("lines")).unwrap();
    fs::write(bench.repo.join("lines"), text).unwrap();
    assert!(exec(&["box", "--", "true"]).errors.contains(" 1 file differs: "));

    let settings = bench.host.home().join(".config/banger");
    fs::create_dir_all(&settings).unwrap();
    fs::write(settings.join("config.toml"), "auto_prepare = true\n").unwrap();
    assert!(exec(&["--no-auto-prepare", "box", "--", "true"]).errors.contains("src/main.rs"));
    let ended = exec(&["box", "--", "cat", "src/main.rs"]);
    assert_eq!((ended.output.as_str(), ended.errors.as_str()), ("fn main() [];", ""), "{ended:?}");
    // A file becomes a directory, and a directory a file; one is new; one came from the sandbox.
    fs::write(bench.guest.join("came"), "there\n").unwrap();
    bench.exported(&["--apply"]);
    fs::write(bench.repo.join("came"), "here\n").unwrap();
    fs::remove_file(bench.repo.join("run.sh")).unwrap();
    fs::create_dir(bench.repo.join("run.sh")).unwrap();
    fs::write(bench.repo.join("run.sh/inner"), "inner").unwrap();
    fs::remove_dir_all(bench.repo.join("src")).unwrap();
    fs::write(bench.repo.join("src"), "a file").unwrap();
    bench.git(&["add", "run.sh", "src"]);
    let ended = exec(&["box", "--", "cat", "came", "run.sh/inner", "src"]);
    assert_eq!((ended.output.as_str(), ended.errors.as_str()), ("here\ninnera file", ""), "{ended:?}");
    bench.assert_same();
    assert_eq!(bench.exported(&[]), "");
}

#[test]
fn untracked_files_are_sent_by_name_and_ignored_ones_do_not_come_back() {
    let bench = Bench::new();
    let here = |name: &str| bench.repo.join(name);
    fs::write(here(".gitignore"), ".env*\n*.log\n").unwrap();
    bench.git(&["commit", "-qam", "ignored"]);
    for name in [".env", ".env.local", "src/.env", "src/notes", "other", "build.log"] {
        fs::write(here(name), format!("{name} here\n")).unwrap();
    }
    let ended = bench.prepare(&["--include", "*.nothing"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.contains("matches `--include *.nothing`.\nhint: "), "{ended:?}");
    bench.prepared(&["--include", "*.env", "--include", "src/notes"]);
    let there = |name: &str| fs::read_to_string(bench.guest.join(name)).ok();
    assert_eq!(there("src/.env").as_deref(), Some("src/.env here\n"));
    assert_eq!((there(".env.local"), there("other"), there("build.log")), (None, None, None));
    assert_eq!(bench.guest_git(&["status", "--short"]), "?? src/notes\n");

    fs::write(bench.guest.join(".env"), "PASSWORD=there\n").unwrap();
    fs::write(bench.guest.join(".gitignore"), "").unwrap();
    fs::write(bench.guest.join("src/notes"), "work\n").unwrap();
    for options in [&[][..], &["--base-commit", "HEAD"]] {
        let patch = bench.exported(options);
        assert!(
            patch.contains("b/src/notes") && !patch.contains(".env h") && !patch.contains("PASS"),
            "{patch}"
        );
    }
    bench.exported(&["--apply"]);
    assert_eq!(fs::read_to_string(here(".env")).unwrap(), ".env here\n");
    // No copy of a password is stored.
    let state = bench.host.home().join(".local/state/banger/workspaces");
    let kept = Command::new("grep").args(["-ral", ".env here"]).arg(&state).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&kept.stdout), "");

    // They are tracked like any other file.
    fs::write(here("src/.env"), "newer\n").unwrap();
    let exec = |arguments: &[&str]| bench.banger(&[&["vm", "exec"], arguments].concat());
    assert!(exec(&["box", "--", "true"]).errors.contains("1 file differs: src/.env; "));
    let ended = exec(&["--auto-prepare", "box", "--", "cat", "src/.env"]);
    assert_eq!((ended.output.as_str(), ended.errors.as_str()), ("newer\n", ""), "{ended:?}");
    // Once it is tracked, it is a file like any other.
    bench.git(&["add", "-f", "src/.env"]);
    exec(&["--auto-prepare", "box", "--", "true"]);
    fs::write(bench.guest.join("src/.env"), "work\n").unwrap();
    assert!(bench.exported(&[]).contains("b/src/.env"));
}

#[test]
fn a_merge_in_progress_is_sent_and_a_rebase_is_reported() {
    let bench = Bench::new();
    bench.git(&["checkout", "-q", "-b", "side", "HEAD~1"]);
    fs::write(bench.repo.join("lines"), "side\n").unwrap();
    bench.git(&["commit", "-qam", "side"]);
    bench.git(&["checkout", "-q", "main"]);
    let merge = |arguments: &[&str]| {
        let ended = Command::new("git")
            .arg("-C")
            .arg(&bench.repo)
            .args(["-c", "user.name=Ann", "-c", "user.email=ann@example.org"])
            .args(arguments)
            .env("HOME", bench.host.home())
            .output();
        assert!(!ended.unwrap().status.success(), "{arguments:?} does not stop");
    };
    merge(&["merge", "side"]);
    bench.prepared(&[]);
    assert_eq!(bench.guest_git(&["status", "--short"]), "UU lines\n");
    bench.guest_git(&["fsck", "--strict"]);
    fs::write(bench.guest.join("lines"), "both\n").unwrap();
    bench.guest_git(&["commit", "-qa", "--no-edit"]);
    assert_eq!(
        bench.guest_git(&["log", "-1", "--format=%P %s"]),
        format!(
            "{} {} Merge branch 'side'\n",
            bench.git(&["rev-parse", "HEAD"]).trim(),
            bench.git(&["rev-parse", "side"]).trim()
        )
    );
    bench.exported(&["--apply"]);
    assert_eq!(fs::read_to_string(bench.repo.join("lines")).unwrap(), "both\n");
    assert_eq!(bench.git(&["status", "--short"]), "UU lines\n");

    bench.git(&["merge", "--abort"]);
    merge(&["cherry-pick", "side"]);
    bench.prepared(&["--force"]);
    fs::write(bench.guest.join("lines"), "picked\n").unwrap();
    bench.guest_git(&["commit", "-qa", "--no-edit"]);
    assert_eq!(bench.guest_git(&["log", "-1", "--format=%s"]), "side\n");

    bench.git(&["cherry-pick", "--abort"]);
    merge(&["rebase", "side"]);
    let arguments =
        ["vm", "workspace", "prepare", "box", bench.repo.to_str().unwrap(), "--force", "--guest-path"];
    let ended = bench.banger(&[&arguments[..], &[bench.guest.to_str().unwrap()]].concat());
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.errors.contains("note: the rebase in progress is not sent"), "{ended:?}");
    assert_eq!(bench.guest_git(&["status", "--short"]), "UU lines\n");
    bench.prepared(&["--force", "--mode", "full-copy"]);
    fs::write(bench.guest.join("lines"), "rebased\n").unwrap();
    bench.guest_git(&["add", "lines"]);
    bench.guest_git(&["-c", "core.editor=true", "rebase", "--continue"]);
    assert_eq!(bench.guest_git(&["log", "-1", "--format=%s"]), "second\n");
}
