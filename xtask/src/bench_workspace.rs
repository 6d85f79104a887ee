//! `cargo xtask bench workspace`: a repository of 5,000 files into a guest, and work in it back, beside what is done
//! by hand with `git bundle`, `scp` and `ssh`, whose connection is open already.

use anyhow::Result;

use crate::{
    bench::Report,
    bench_guest::{self, Comparison},
};

const SCRIPT: &str = r#"
import random, shutil
shutil.rmtree("repo", ignore_errors=True)
source = random.Random(7)
for number in range(5000):
    place = f"repo/part-{number // 100}"
    os.makedirs(place, exist_ok=True)
    with open(f"{place}/file-{number}.txt", "w") as file:
        for line in range(source.randrange(20, 200)): file.write(f"{source.getrandbits(128):x} line {line}\n")
identity = ["-c", "user.name=Alice", "-c", "user.email=alice@example.org"]
run("git", "init", "-q", "-b", "main", "repo")
run("git", "-C", "repo", "add", "-A")
run("git", *identity, "-C", "repo", "commit", "-qm", "files")
run(*ssh, "git config --global user.name Alice; git config --global user.email alice@example.org")
for turn in range(runs):
    run(*ssh, "rm -rf ours theirs bundle")
    run("banger", "vm", "exec", "-w", "/", "bench", "--", "sync")
    timed("in", ["banger", "vm", "workspace", "prepare", "-q", "bench", "repo", "--guest-path", "/root/ours"])
    run("banger", "vm", "exec", "-w", "/", "bench", "--", "sync")
    timed("in by hand",
        ["git", "-C", "repo", "bundle", "create", "-q", "../bundle", "main"],
        [*scp, "bundle", "bench.vm:bundle"],
        [*ssh, "git clone -q -b main bundle theirs"])
    work = "for n in $(seq 0 49); do echo work >> part-$n/file-$((n * 100)).txt; echo new > part-$n/new; done"
    run(*ssh, f"cd ours && {work}; cd ../theirs && {work}; sync")
    timed("out", ["banger", "vm", "workspace", "export", "-q", "bench", "-o", "patch"])
    timed("out by hand",
        [*ssh, "cd theirs && git add -A && git commit -qm work && git bundle create -q ../back origin/main..main"],
        [*scp, "bench.vm:back", "back"],
        ["git", "-C", "repo", "fetch", "-q", "../back", "main"],
        ["sh", "-c", "git -C repo diff --binary main FETCH_HEAD > patch-by-hand"])
    same = subprocess.run(["sh", "-c", "git apply --numstat patch | sort > a; git apply --numstat patch-by-hand | sort > b; cmp a b; wc -l < a"], capture_output=True, text=True)
    assert same.stdout.strip() == "100", same
"#;

/// Measures both ways.
pub fn run(runs: u32) -> Result<Vec<Report>> {
    bench_guest::run(
        runs,
        SCRIPT,
        &[
            Comparison {
                name: "workspace, in",
                ours: ("in", "banger vm workspace prepare"),
                peers: ("in by hand", "git bundle, scp, git clone there"),
            },
            Comparison {
                name: "workspace, out",
                ours: ("out", "banger vm workspace export -o"),
                peers: ("out by hand", "git commit and bundle there, scp, git fetch, git diff"),
            },
        ],
    )
}
