//! Level 4: the installed product in the private host, with guests that boot.

use std::process::Output;

use anyhow::{Context, Result, ensure};

use crate::{
    host::{self, Host},
    run::say,
    test::Tally,
    try_it,
};

type Check = fn(&Host) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("a command runs in a fresh sandbox and its status comes back", command_status),
    ("input, output and errors are separate and exact", streams),
    ("members of the group need no prompt and others are told what to do", polkit),
    ("other users neither see nor stop a sandbox", privacy),
    ("a stop loses nothing that was written", stop_keeps_data),
    ("a killed service finds its sandboxes again and streams go on", killed_service),
    ("nothing is left behind", nothing_left),
];

/// Runs the checks, one after the other, in one private host that begins with nothing.
pub fn run() -> Result<Tally> {
    let host = host::up(&host::Up { fresh: true })?;
    let tally = check_all(&host);
    host::down()?;
    tally
}

fn check_all(host: &Host) -> Result<Tally> {
    try_it::provide(host)?;
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        match check(host) {
            Ok(()) => {
                say(&format!("PASS {name}"));
                tally.passed += 1;
            }
            Err(error) => {
                say(&format!("FAIL {name}: {error:#}"));
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

/// Runs a command of a user without input; the tests look at everything that comes of it.
fn as_user(host: &Host, user: &str, words: &[&str]) -> Result<Output> {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let mut session = host.session(user, false, &words)?;
    session.stdin(std::process::Stdio::null()).output().context("cannot run in the private host")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn expect(output: &Output, status: i32) -> Result<String> {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(
        output.status.code() == Some(status),
        "{} instead of {status}; it said {out:?} and {err:?}",
        output.status
    );
    Ok(out)
}

fn command_status(host: &Host) -> Result<()> {
    let script = "uname -s; id -un; exit 42";
    let output = as_user(host, "alice", &["banger", "vm", "run", "--rm", "--", "sh", "-c", script])?;
    let out = expect(&output, 42)?;
    ensure!(out == "Linux\nroot", "{out:?}");
    Ok(())
}

fn streams(host: &Host) -> Result<()> {
    let script = "echo hello | banger vm run --rm -- sh -c 'cat; echo error >&2'";
    let output = as_user(host, "alice", &["sh", "-c", script])?;
    let out = expect(&output, 0)?;
    ensure!(out == "hello", "{out:?}");
    ensure!(text(&output.stderr).lines().any(|line| line == "error"), "{:?}", text(&output.stderr));
    Ok(())
}

fn polkit(host: &Host) -> Result<()> {
    let refused = as_user(host, "carol", &["banger", "vm", "run", "--rm", "--", "true"])?;
    let message = text(&refused.stderr);
    ensure!(!refused.status.success(), "carol may run sandboxes");
    ensure!(message.contains("group banger"), "carol is not told what to do: {message:?}");
    expect(&as_user(host, "bob", &["banger", "vm", "run", "--rm", "--", "true"])?, 0)?;
    Ok(())
}

fn privacy(host: &Host) -> Result<()> {
    expect(&as_user(host, "alice", &["banger", "vm", "create", "--name", "secret", "--no-start"])?, 0)?;
    let seen = expect(&as_user(host, "bob", &["banger", "vm", "list", "--json"])?, 0)?;
    ensure!(seen == "[]", "bob sees {seen}");
    let stopped = as_user(host, "bob", &["banger", "vm", "delete", "alice/secret"])?;
    ensure!(!stopped.status.success(), "bob may delete it");
    expect(&as_user(host, "alice", &["banger", "vm", "delete", "secret"])?, 0)?;
    Ok(())
}

fn stop_keeps_data(host: &Host) -> Result<()> {
    let alice = |words: &[&str]| as_user(host, "alice", words).and_then(|output| expect(&output, 0));
    alice(&["banger", "vm", "create", "--name", "keep"])?;
    let write = "mkdir /root/many && for n in $(seq 1000); do echo $n > /root/many/$n; done";
    alice(&["banger", "vm", "exec", "keep", "--", "sh", "-c", write])?;
    alice(&["banger", "vm", "stop", "keep"])?;
    alice(&["banger", "vm", "start", "keep"])?;
    let sum =
        alice(&["banger", "vm", "exec", "keep", "--", "sh", "-c", "cat /root/many/* | sort -n | md5sum"])?;
    alice(&["banger", "vm", "delete", "--force", "keep"])?;
    let expected = text(&host.enter(&["sh", "-c", "seq 1000 | md5sum"]).output()?.stdout);
    ensure!(sum == expected, "the files are not as they were: {sum:?}");
    Ok(())
}

fn killed_service(host: &Host) -> Result<()> {
    let script = "
        set -e
        banger vm create --name steady
        before=$(banger vm show steady --json | grep boot_id)
        banger vm exec steady -- sh -c 'sleep 8; echo done' > /tmp/streamed &
        exec=$!
        sleep 2
        touch /tmp/kill-now
        while [ -e /tmp/kill-now ]; do sleep 0.1; done
        wait $exec
        cat /tmp/streamed
        after=$(banger vm show steady --json | grep boot_id)
        [ \"$before\" = \"$after\" ] && echo same
        banger vm delete --force steady";
    // The service is killed from outside of the session, as soon as that asks for it.
    let killer = "
        for n in $(seq 1200); do [ -e /tmp/kill-now ] && break; sleep 0.1; done
        systemctl kill --signal=KILL --kill-whom=main banger-system.service
        rm -f /tmp/kill-now";
    let mut killer = host.enter(&["sh", "-c", killer]).spawn().context("cannot start the killer")?;
    let session = as_user(host, "alice", &["sh", "-c", script]);
    killer.wait()?;
    let out = expect(&session?, 0)?;
    ensure!(out.contains("done") && out.contains("same"), "{out:?}");
    Ok(())
}

/// What the host has that belongs to no machine.
fn nothing_left(host: &Host) -> Result<()> {
    let look = "
        systemctl list-units --all --plain --no-legend 'banger-vm-*'
        pgrep -l qemu-system || true
        pgrep -l banger-shim || true
        ls /var/lib/banger/vms /run/banger/vm";
    let left = text(&host.enter(&["sh", "-c", look]).output()?.stdout);
    let left: Vec<&str> = left.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
