//! Checks of several commands in one guest: none starves the others.

use anyhow::{Context, Result, ensure};

use super::{Check, expect, script};
use crate::{
    host::{self, Host},
    image,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a fork bomb leaves room for another command", fork_bomb),
    ("commands may open and watch as much as services of systemd", limits),
    ("what a detached command writes is bounded, and outlives the boot", detached),
    ("a guest that stops answering is not ready, and its commands end with 125", silent),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] = &[
    ("a command that eats all memory ends alone, with and without systemd", memory_hog),
    ("systemd leaves the control groups of commands alone", systemd_leaves_groups),
];

/// Lets a command eat all memory of a guest twice while another command runs, and prints the outcome.
const HOG: &str = "
    banger vm exec -T hog -- sh -c 'until [ -e /run/enough ]; do sleep 0.2; done; echo goes on' > other &
    other=$!
    for n in 1 2; do
        status=0
        banger vm exec -T hog -- tail /dev/zero || status=$?
        echo \"hog: $status\"
    done
    banger vm exec -T hog -- touch /run/enough
    wait $other
    echo \"other: $(cat other)\"
    banger vm show --json hog | grep -o '\"ready\": *true'
    banger vm delete --force hog
    rm other";

fn memory_hog(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("minimal")?)?;
    let register = format!("banger image register --shared --name without --rootfs {}", tar.display());
    expect(&host.enter(&["sh", "-euc", &register]).output()?, 0)?;
    for image in ["", "--image without"] {
        let out = script(
            host,
            "alice",
            &format!("banger vm create --quiet --memory 512M {image} --name hog {HOG}"),
        )?;
        for expected in ["other: goes on", "\"ready\": true"] {
            ensure!(out.lines().any(|line| line == expected), "{image}: no {expected:?} in {out:?}");
        }
        ensure!(out.lines().filter(|line| *line == "hog: 137").count() == 2, "{image}: {out:?}");
    }
    expect(&host.enter(&["banger", "image", "delete", "without"]).output()?, 0)?;
    Ok(())
}

fn fork_bomb(host: &Host) -> Result<()> {
    // More processes than a guest of this size can have: the shell either fails to fork or runs out of memory first.
    let session = "
        banger vm create --quiet --memory 256M --name bomb
        banger vm exec -T bomb -- sh -c 'n=0; while [ $n -lt 8000 ]; do sleep 1000 & n=$((n + 1)); done' \
            > said 2>&1 || echo \"ended: $?\"
        grep -i -o -m 1 -e 'cannot fork' -e 'resource temporarily unavailable' said || true
        rm said
        banger vm exec -T --timeout 60 bomb -- sh -c 'echo one | cat | cat'
        banger vm stop --quiet bomb
        banger vm delete --quiet bomb";
    let out = script(host, "alice", session)?;
    let is_bounded = |line: &str| {
        ["cannot fork", "resource", "ended: 137"].iter().any(|end| line.to_lowercase().contains(end))
    };
    ensure!(out.lines().any(is_bounded) && out.lines().any(|line| line == "one"), "{out:?}");
    Ok(())
}

fn systemd_leaves_groups(host: &Host) -> Result<()> {
    let session = "
        banger vm create --quiet --name groups
        run() { banger vm exec -T groups -- sh -c \"$1\"; }
        for n in $(seq 300); do run 'systemctl is-active -q multi-user.target' && break; sleep 0.2; done
        run 'cat /proc/self/cgroup; exec sleep 1000' > first &
        running=$!
        for n in $(seq 100); do [ -s first ] && break; sleep 0.1; done
        cat first
        run 'systemctl daemon-reload; systemd-run --quiet --wait true; systemctl start --no-block systemd-tmpfiles-clean'
        run 'cd /sys/fs/cgroup/banger/sessions; cat cgroup.controllers; cat memory.max; cat /proc/self/cgroup'
        run 'for n in /sys/fs/cgroup/banger/sessions/[0-9]*; do cat $n/cgroup.procs | wc -l; done' | tr '\\n' ' '
        run 'for p in $(cat /sys/fs/cgroup/banger/agent/cgroup.procs); do cat /proc/$p/oom_score_adj; done'
        run 'cat /proc/self/oom_score_adj; systemctl show -p MemoryCurrent init.scope'
        kill $running; wait $running || true
        banger vm delete --force groups
        rm first";
    let out = script(host, "alice", session)?;
    let groups = out.lines().filter(|line| line.starts_with("0::/banger/sessions/")).count();
    ensure!(groups == 2, "{out:?}");
    for expected in ["-900", "0"] {
        ensure!(out.lines().any(|line| line.ends_with(expected)), "no {expected:?} in {out:?}");
    }
    let controllers = out.lines().any(|line| line.contains("memory") && line.contains("pids"));
    ensure!(controllers, "{out:?}");
    Ok(())
}

fn limits(host: &Host) -> Result<()> {
    let session = "
        banger vm create --quiet --memory 512M --name limits
        run() { banger vm exec -T \"$@\"; }
        run limits -- sh -c 'ulimit -Sn; ulimit -Hn'
        run limits -- cat /proc/sys/fs/inotify/max_user_instances
        run limits -- sh -c 'stat -c \"%n %U %a\" $XDG_RUNTIME_DIR'
        run --user nobody limits -- sh -c 'stat -c \"%n %U %a\" $XDG_RUNTIME_DIR; touch $XDG_RUNTIME_DIR/x && echo written'
        watches=$(run limits -- cat /proc/sys/fs/inotify/max_user_watches)
        [ $watches -gt 60000 ] && echo watches
        banger vm delete --force limits";
    let out = script(host, "alice", session)?;
    for expected in
        ["1024", "524288", "/run/user/0 root 700", "/run/user/65534 nobody 700", "written", "watches"]
    {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn detached(host: &Host) -> Result<()> {
    // More than twice the limit of kept output.
    let session = "
        banger vm create --quiet --name apart
        first=$(banger vm exec -d apart -- sh -c 'head -c 40000000 /dev/zero | tr \\\\0 x; echo; echo last; exit 3')
        banger vm logs --exec=$first -f apart 2> note | tail -n 1
        [ $(banger vm logs --exec=$first apart 2> note | wc -c) -le 16777216 ] && echo bounded
        cat note
        second=$(banger vm exec -d apart -- sleep 1000)
        banger vm commands apart | tail -n 1
        banger vm commands --stop $second apart
        banger vm restart --quiet apart
        banger vm commands apart
        banger vm logs --exec=$first -n 1 apart
        banger vm delete --force apart";
    let out = script(host, "alice", session)?;
    ensure!(out.lines().filter(|line| *line == "last").count() == 2, "{out:?}");
    for expected in ["bounded", "bytes were cut here", "running", "exited 3", "killed by signal 15"] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn silent(host: &Host) -> Result<()> {
    let session = "
        rm -f /tmp/stop-it /tmp/go-on
        banger vm create --quiet --name quiet
        banger vm exec -T quiet -- sh -c 'echo up; exec sleep 1000' > up 2> said &
        client=$!
        for n in $(seq 100); do [ -s up ] && break; sleep 0.1; done
        touch /tmp/stop-it
        status=0; wait $client || status=$?
        echo \"client: $status\"
        cat said
        ready() { banger vm show --json quiet | grep -o '\"ready\": *[a-z]*'; }
        await() { for n in $(seq 240); do ready | grep -q $1 && break; sleep 0.5; done; echo \"ready: $(ready)\"; }
        await false
        touch /tmp/go-on
        await true
        banger vm exec -T quiet -- echo still there
        banger vm delete --force quiet";
    let stopper = "
        for n in $(seq 1200); do [ -e /tmp/stop-it ] && break; sleep 0.1; done
        vmm=$(pgrep -f '^/usr/bin/qemu-system.* -name banger-quiet')
        kill -STOP $vmm
        for n in $(seq 3000); do [ -e /tmp/go-on ] && break; sleep 0.1; done
        kill -CONT $vmm";
    let mut stopper = host.enter(&["sh", "-c", stopper]).spawn().context("cannot stop the VMM")?;
    let session = script(host, "alice", session);
    stopper.wait()?;
    let out = session?;
    for expected in
        ["client: 125", "said nothing for 30 seconds", "\"ready\": false", "\"ready\": true", "still there"]
    {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
