//! Checks of guests: commands, terminals, disks, clocks, and the death of the service or the client.

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, run_as, sh, text};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a command runs in a fresh sandbox and its status comes back", command_status),
    ("input, output and errors are separate and exact", streams),
    ("a shell has a terminal of the right size", terminal),
    ("a stop loses nothing that was written", stop_keeps_data),
    ("disks have the requested size and grow with what is in them", disks_grow),
    ("a guest gets the time when the clock of the host is set", clock),
    ("thirty simultaneous commands all run, and connections leave room for them", crowd),
    ("the clock of a guest is right once it is ready", right_time),
    ("a guest has the time zone of its user", time_zone),
    ("an idle agent takes no processor time", idle_agent),
    ("a killed service finds its sandboxes again and streams go on", killed_service),
    ("without systemd a sandbox is a process and outlives the service", no_systemd),
    ("the throw-away sandbox of a killed client is deleted", killed_client),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] =
    &[("reboot gives a new boot id, and banger reports how a guest ended", ends)];

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

fn terminal(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/guests/terminal.sh" uses "wait.sh"))?;
    for expected in ["33 101", "/dev/pts/", "status 7"] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn stop_keeps_data(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/guests/stop_keeps_data.sh"))?;
    let mut sums = out.lines().filter(|line| line.ends_with('-'));
    let (kept, written) = (sums.next().context("there is no sum")?, sums.next());
    ensure!(Some(kept) == written, "the files have changed: {out:?}");
    Ok(())
}

/// Checks the sizes of both disks. The image and a default work disk have 8 GiB.
fn disks_grow(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/guests/disks_grow.sh"))?;
    for expected in [
        "made: 128",
        "home: 0",
        "running: 1",
        "smaller: 1 1",
        "grown: 2010",
        "shown: 21474836480 10737418240",
        "kept: the same",
        "healthy",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    let id = out.lines().last().unwrap_or_default();
    run_as(host, "root", &script!("level4/guests/disks_are_clean.sh", id = id))?;
    sh(host, "alice", "banger vm delete big; rm sum refused").map(drop)
}

/// Checks the state of a sandbox after commands that end its guest. How the commands themselves end does not matter.
fn ends(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/guests/ends.sh" uses "wait.sh"))?;
    for expected in [
        "reboot: a new boot id",
        "kept: kept",
        "first: other",
        "renamed: box",
        "after a reboot: running guest-reboot",
        "poweroff: stopped guest-shutdown",
        "unmounted: 0 1",
        "start: running user-request",
        "start while it shuts down: a new boot id",
        "panic: failed guest-panic",
        "halt: stopped guest-halt",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn clock(host: &Host) -> Result<()> {
    let session = script!("level4/guests/clock.sh");
    // Set it to the time that it already shows: the kernel reports a change, and nothing else notices.
    let setter = script!("level4/guests/set_clock.sh" uses "wait.sh");
    let mut setter = host.enter(&setter).spawn().context("cannot start the setter")?;
    let session = run_as(host, "alice", &session);
    ensure!(setter.wait()?.success(), "cannot set the clock of the host");
    session.map(drop)
}

fn crowd(host: &Host) -> Result<()> {
    // A server that accepts connections and never answers.
    let out = run_as(host, "alice", &script!("level4/guests/crowd.sh" uses "wait.sh"))?;
    let all: String = (1..=30).map(|n| format!("{n} ")).collect();
    ensure!(out.contains(all.trim_end()), "not all commands ran: {out:?}");
    ensure!(out.contains("in time"), "connections keep commands from running: {out:?}");
    Ok(())
}

/// Checks the time as exactly as a command can. A guest that only counts from its boot lags by more.
fn right_time(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/guests/right_time.sh"))?;
    let last = out.lines().last().context("nothing was said")?;
    let differences: Vec<i64> = last.split(' ').filter_map(|word| word.parse().ok()).collect();
    ensure!(differences.len() == 2 && differences.iter().all(|ms| *ms > -20), "{last} ms");
    Ok(())
}

fn idle_agent(host: &Host) -> Result<()> {
    // Both processes of the agent, in hundredths of a second. The second look includes the cost of the first.
    let out = run_as(host, "alice", &script!("level4/guests/idle_agent.sh"))?;
    let ticks: i32 = out.lines().last().unwrap_or_default().parse().context("nothing was said")?;
    // 2 % of ten seconds.
    ensure!(ticks <= 20, "{ticks} hundredths of a second in ten");
    Ok(())
}

fn time_zone(host: &Host) -> Result<()> {
    // Only Kathmandu is 5 hours and 45 minutes ahead.
    let out = run_as(host, "alice", &script!("level4/guests/time_zone.sh"))?;
    ensure!(out.contains("+0545") && out.contains("03:51"), "{out:?}");
    Ok(())
}

fn killed_service(host: &Host) -> Result<()> {
    let session = script!("level4/guests/killed_service.sh" uses "wait.sh");
    // The session cannot kill the service itself, so it asks for it by a file.
    let killer = script!("level4/guests/kill_service.sh" uses "wait.sh");
    let mut killer = host.enter(&killer).spawn().context("cannot start the killer")?;
    let session = run_as(host, "alice", &session);
    killer.wait()?;
    let out = session?;
    ensure!(out.contains("done") && out.contains("same"), "{out:?}");
    Ok(())
}

fn killed_client(host: &Host) -> Result<()> {
    run_as(host, "alice", &script!("level4/guests/killed_client.sh" uses "wait.sh")).map(drop)
}

fn no_systemd(host: &Host) -> Result<()> {
    // Run the service where it cannot see that systemd is running.
    let serve = script!("level4/guests/serve_without_systemd.sh" uses "wait.sh");
    let session = script!("level4/guests/no_systemd.sh" uses "wait.sh");
    host.enter(&["systemctl", "stop", "banger-system.service"]).status()?;
    let mut serving = host.enter(&serve).spawn().context("cannot start the service")?;
    let session = run_as(host, "alice", &session);
    serving.wait()?;
    let out = session?;
    ensure!(out.contains("same") && out.contains("\"unit\": \"\""), "{out:?}");
    Ok(())
}
