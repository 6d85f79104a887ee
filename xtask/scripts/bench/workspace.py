#!/usr/bin/python3
# Sends repositories into the guest and brings the work back, by banger and by hand.

import os
import random
import shutil
import subprocess
import time
from __main__ import run, runs, scp, small, ssh, timed

source = random.Random(7)
def repository(name, parts, lines):
    shutil.rmtree(name, ignore_errors=True)
    for number in range(parts * 100):
        place = f"{name}/part-{number // 100}"
        os.makedirs(place, exist_ok=True)
        with open(f"{place}/file-{number}.txt", "w") as file:
            for line in range(source.randrange(*lines)): file.write(f"{source.getrandbits(128):x} line {line}\n")
    identity = ["-c", "user.name=Alice", "-c", "user.email=alice@example.org"]
    run("git", "init", "-q", "-b", "main", name)
    run("git", "-C", name, "add", "-A")
    run("git", *identity, "-C", name, "commit", "-qm", "files")
parts = 2 if small else 50
repository("repo", parts, (20, 200))
repository("many", 2 if small else 200, (2, 40))
run(*ssh, "git config --global user.name Alice; git config --global user.email alice@example.org")
for turn in range(runs):
    run(*ssh, "rm -rf ours theirs bundle many many-by-tar; mkdir many-by-tar")
    run("banger", "vm", "exec", "-w", "/", "bench", "--", "sync")
    timed("in", ["banger", "vm", "workspace", "prepare", "-q", "bench", "repo", "--guest-path", "/root/ours"])
    run("banger", "vm", "exec", "-w", "/", "bench", "--", "sync")
    timed("in by hand",
        ["git", "-C", "repo", "bundle", "create", "-q", "../bundle", "main"],
        [*scp, "bundle", "bench.vm:bundle"],
        [*ssh, "git clone -q -b main bundle theirs"])
    # git there refreshes the index first, since the owner of the files is another one.
    status = ["sh", "-c", "[ -z \"$(git status --porcelain)\" ]"]
    mounted = ["banger", "vm", "exec", "-n", "--mount", "repo:/srv/repo", "-w", "/srv/repo", "bench", "--", *status]
    sent = ["banger", "vm", "exec", "-n", "--guest-path", "/root/ours", "bench", "--", *status]
    for command in mounted, sent: run(*command)
    timed("status mounted", mounted)
    timed("status sent", sent)
    work = f"for n in $(seq 0 {parts - 1}); do echo work >> part-$n/file-$((n * 100)).txt; echo new > part-$n/new; done"
    run(*ssh, f"cd ours && {work}; cd ../theirs && {work}; sync")
    timed("out", ["banger", "vm", "workspace", "export", "-q", "bench", "-o", "patch"])
    timed("out by hand",
        [*ssh, "cd theirs && git add -A && git commit -qm work && git bundle create -q ../back origin/main..main"],
        [*scp, "bench.vm:back", "back"],
        ["git", "-C", "repo", "fetch", "-q", "../back", "main"],
        ["sh", "-c", "git -C repo diff --binary main FETCH_HEAD > patch-by-hand"])
    same = subprocess.run(["sh", "-c", "git apply --numstat patch | sort > a; git apply --numstat patch-by-hand | sort > b; cmp a b; wc -l < a"], capture_output=True, text=True)
    assert same.stdout.strip() == str(2 * parts), same
    # One file has changed, and both sides know all others to be as they were sent.
    by_us = ["banger", "vm", "workspace", "sync", "-q", "bench", "--guest-path", "/root/ours"]
    by_hand = ["rsync", "-a", "--exclude=.git", "-e", " ".join(ssh[:-1]), "repo/", "bench.vm:ours/"]
    run(*by_hand)
    time.sleep(3)
    run(*by_us)
    with open("repo/part-1/file-107.txt", "a") as file: file.write("edited\n")
    timed("sync", by_us)
    with open("repo/part-1/file-107.txt", "a") as file: file.write("edited\n")
    timed("sync by hand", by_hand)
    # Last, since an export takes the workspace that was sent last.
    run("banger", "vm", "exec", "-w", "/", "bench", "--", "sync")
    timed("many", ["banger", "vm", "workspace", "prepare", "-q", "bench", "many", "--guest-path", "/root/many"])
    run("banger", "vm", "exec", "-w", "/", "bench", "--", "sync")
    timed("many by tar",
        ["sh", "-c", "tar -C many -cf - . | banger vm exec -w / bench -- tar -C /root/many-by-tar -xf -"])
