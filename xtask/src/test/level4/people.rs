//! Checks of authorisation: members of the group, other users, administrators, and desktop programs.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use policy::{Decision, Group, Session, decide};

use super::{Check, as_user, expect, run_as, run_as_root, sh, sh_as_root, text};
use crate::host::Host;

#[path = "../../../../banger-system/tests/private_bus/policy.rs"]
#[expect(clippy::unwrap_used, clippy::panic, dead_code, reason = "it is shared with a test")]
mod policy;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a real polkit decides by the packaged policy as the table of callers says", policy_is_followed),
    ("members of the group need no prompt and others get a hint", polkit),
    ("an administrator is asked for a password and then served", password),
    ("other users neither see nor stop a sandbox", privacy),
    ("two users work at once", at_once),
    ("doctor changes nothing of what is kept", doctor),
    ("doctor --fix removes what a deleted sandbox has left, for an administrator", fix),
    ("busctl creates and shows a sandbox", busctl),
    ("a desktop's client sees its user's sandboxes and no others", desktop),
    ("machinectl lists a sandbox while it runs, and not its name", machines),
];

fn policy_is_followed(host: &Host) -> Result<()> {
    let ask = script!("level4/people/permissions.sh");
    let actions: Vec<&str> = include_str!("../../../../polkit/dev.banger.Manager1.policy")
        .split("<action id=\"")
        .skip(1)
        .filter_map(|part| part.split('"').next())
        .collect();
    ensure!(actions.len() >= 8, "the policy has only {actions:?}");
    for (user, group) in [("alice", Group::Member), ("carol", Group::Other)] {
        let said = run_as(host, user, &ask)?;
        for action in &actions {
            let word = match decide(action, Session::Elsewhere, group) {
                Decision::Yes => "yes",
                Decision::No => "no",
                Decision::Password => "auth",
            };
            let line = format!("\"{action}\" \"{word}\"");
            ensure!(said.contains(&line), "{user}: no {line} in {said:?}");
        }
    }
    let root = run_as_root(host, &ask)?;
    ensure!(actions.iter().all(|action| root.contains(&format!("\"{action}\" \"yes\""))), "root: {root:?}");
    Ok(())
}

fn polkit(host: &Host) -> Result<()> {
    let refused = as_user(host, "carol", &["banger", "vm", "run", "--rm", "--", "true"])?;
    let message = text(&refused.stderr);
    ensure!(!refused.status.success(), "carol may run sandboxes");
    ensure!(message.contains("group banger"), "carol gets no hint: {message:?}");
    expect(&as_user(host, "bob", &["banger", "vm", "run", "--rm", "--", "true"])?, 0)?;
    Ok(())
}

fn password(host: &Host) -> Result<()> {
    let out = run_as(host, "dave", &script!("level4/people/password.sh" uses "wait.sh"))?;
    ensure!(out.contains("Password") && out.contains("root"), "{out:?}");
    let quiet = as_user(host, "dave", &["banger", "vm", "run", "--rm", "--", "true"])?;
    ensure!(!quiet.status.success(), "dave needs no password");
    Ok(())
}

fn privacy(host: &Host) -> Result<()> {
    sh(host, "alice", "banger vm create --name secret --no-start")?;
    let seen = sh(host, "bob", "banger vm list --json")?;
    let others = ["stop", "delete", "start", "exec", "logs"].map(|verb| {
        let status = as_user(host, "bob", &["banger", "vm", verb, "alice/secret", "--", "true"]);
        status.map(|output| (verb, output.status.success()))
    });
    sh(host, "alice", "banger vm delete secret")?;
    ensure!(seen == "[]", "bob sees {seen}");
    for other in others {
        let (verb, may) = other?;
        ensure!(!may, "bob may {verb} it");
    }
    Ok(())
}

fn at_once(host: &Host) -> Result<()> {
    let run = |user: &str| {
        let command = ["banger", "vm", "run", "--rm", "--name", "same", "--", "echo", user];
        let mut session = host.session(user, false, &command.map(str::to_owned))?;
        session.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        session.spawn().context("cannot run in the private host")
    };
    let users = ["alice", "bob"];
    let both = users.map(run);
    for (user, child) in users.into_iter().zip(both) {
        let out = expect(&child?.wait_with_output()?, 0)?;
        ensure!(out == user, "{user} got {out:?}");
    }
    Ok(())
}

fn doctor(host: &Host) -> Result<()> {
    let look = || run_as_root(host, &script!("level4/people/state.sh"));
    sh(host, "alice", "banger vm create --no-start --name still")?;
    let before = look()?;
    let said = sh(host, "alice", "banger doctor --json || true")?;
    let after = look()?;
    sh(host, "alice", "banger vm delete still")?;
    ensure!(said.contains("\"status\""), "{said:?}");
    ensure!(before == after && before.lines().count() > 5, "doctor changed something:\n{before}\n{after}");
    Ok(())
}

fn fix(host: &Host) -> Result<()> {
    // As after a deletion that was interrupted, with its record lost.
    let id = "00000000000000000000000000decade";
    sh_as_root(host, &format!("mkdir -p /var/lib/banger/vms/{id}"))?;
    let refused = as_user(host, "alice", &["banger", "doctor", "--fix"])?;
    let message = text(&refused.stderr);
    ensure!(!refused.status.success() && message.contains("administrator"), "alice: {message:?}");
    let done = format!("FIXED leftovers: removed the disks of the deleted sandbox {id}");
    let said = sh_as_root(host, "banger doctor --fix || true")?;
    ensure!(said.contains(&done), "nothing was removed: {said}");
    let again = sh_as_root(host, "banger doctor --fix || true; ls /var/lib/banger/vms")?;
    ensure!(!again.contains(id), "it is still there, or removed twice: {again}");
    Ok(())
}

fn busctl(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/people/busctl.sh"))?;
    ensure!(out.contains("oo \"/dev/banger/Manager1/vm/"), "{out:?}");
    ensure!(out.contains("s \"by-hand\""), "{out:?}");
    Ok(())
}

fn desktop(host: &Host) -> Result<()> {
    // GLib's own client, as desktop programs use it.
    let client = include_str!("../../../../banger-system/tests/private_bus/watch_objects.py");
    let watcher = |user: &str| {
        let watch = script!("level4/people/watch.sh" uses "wait.sh", client = client);
        let mut session = host.session(user, false, &watch)?;
        session.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        session.spawn().context("cannot run in the private host")
    };
    let until = |user: &str, word: &str| {
        run_as_root(host, &script!("level4/people/sees.sh" uses "wait.sh", user = user, word = word))
    };
    sh_as_root(host, "rm -f /tmp/seen-enough /home/*/seen")?;
    let (alice, bob) = (watcher("alice")?, watcher("bob")?);
    let seen = until("alice", "ready")
        .and_then(|_| until("bob", "ready"))
        .and_then(|_| {
            sh(host, "alice", "banger vm create --no-start --name seen-vm; banger vm delete seen-vm")
        })
        .and_then(|_| until("alice", "removed"));
    sh_as_root(host, "touch /tmp/seen-enough")?;
    let (alice, bob) = (alice.wait_with_output()?, bob.wait_with_output()?);
    seen?;
    let (alice, bob) = (expect(&alice, 0)?, expect(&bob, 0)?);
    let saw = |what: &str| alice.lines().any(|line| line.starts_with(what) && line.contains("/vm/"));
    ensure!(saw("added") && alice.contains("seen-vm") && saw("removed"), "alice saw {alice:?}");
    ensure!(bob == "ready", "bob saw {bob:?}");
    Ok(())
}

fn machines(host: &Host) -> Result<()> {
    sh(host, "alice", "banger vm create --name secret")?;
    let shown: Value = serde_json::from_str(&sh(host, "alice", "banger vm show secret --json")?)?;
    let id = shown["id"].as_str().context("no id")?;
    let seen = run_as(host, "bob", &script!("level4/people/machines.sh", id = id));
    sh(host, "alice", "banger vm delete --force secret")?;
    let seen = seen?;
    ensure!(seen.contains(&format!("banger-{id} vm banger")), "{seen:?}");
    ensure!(!seen.contains("secret"), "bob sees the name of the sandbox: {seen:?}");
    let unit = format!("Unit=banger-vm-{id}.service");
    ensure!(seen.lines().any(|line| line == unit), "{seen:?}");
    let left = "! machinectl list --no-legend | grep banger-";
    run_as_root(host, &["timeout", "180", "sh", "-c", &format!("until {left}; do sleep 0.2; done")]).map(drop)
}
