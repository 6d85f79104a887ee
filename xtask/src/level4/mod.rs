//! Level 4: the installed product in the private host, with guests that boot. After each check the host must
//! hold nothing that belongs to no machine.

mod copies;
mod guests;
mod images;
mod limits;
mod modules;
mod names;
mod network;
mod people;
mod ready;
mod refusals;
mod registry;
mod sessions;
mod ssh;
mod terminal;
mod workspace;

use std::{process::Output, time::Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    host::{self, Host},
    run::say,
    test::{Tally, is_wanted},
    try_it,
};

type Check = fn(&Host) -> Result<()>;

/// Runs the checks whose names have `only` in them, one after the other, in one private host that begins with
/// nothing.
pub fn run(only: &str) -> Result<Tally> {
    let host = host::up(&host::Up { fresh: true, ..host::Up::default() })?;
    let tally = check_all(&host, only);
    host::down()?;
    tally
}

fn check_all(host: &Host, only: &str) -> Result<Tally> {
    // Under emulation, the kernel of a guest with two processors stands still at times.
    script(
        host,
        "root",
        "mkdir -p /etc/banger
        printf '[vm_defaults]\\nvcpu = 1\\n[registry]\\nlocal_ports = [5000]\\n' > /etc/banger/config.toml
        systemctl try-restart banger-system
        # Most checks need no more of a boot than the agent, and systemd takes four times as long under emulation.
        for user in alice bob carol dave; do
            install -d -o $user -g $user /home/$user/.config /home/$user/.config/banger
            echo 'wait = \"agent\"' > /home/$user/.config/banger/config.toml
        done",
    )?;
    try_it::provide(host)?;
    let mut tally = Tally::default();
    let mut checks = [
        copies::CHECKS,
        guests::CHECKS,
        images::CHECKS,
        limits::CHECKS,
        modules::CHECKS,
        names::CHECKS,
        network::CHECKS,
        ssh::CHECKS,
        people::CHECKS,
        ready::CHECKS,
        refusals::CHECKS,
        sessions::CHECKS,
        terminal::CHECKS,
        workspace::CHECKS,
    ]
    .concat();
    match registry::missing() {
        None => checks.extend(registry::CHECKS),
        Some(why) => {
            let skipped = registry::CHECKS.iter().filter(|(name, _)| is_wanted(name, only));
            tally.skipped.extend(skipped.map(|(name, _)| format!("{name}: {why}")));
        }
    }
    for (name, check) in checks.into_iter().filter(|(name, _)| is_wanted(name, only)) {
        let begin = Instant::now();
        let attempt = || check(host).and_then(|()| nothing_left(host));
        let outcome = attempt().or_else(|error| match stands_still(host)? {
            true => {
                say(&format!("AGAIN {name}: the kernel of an emulated guest stood still ({error:#})"));
                clear(host)?;
                attempt()
            }
            false => Err(error),
        });
        match outcome {
            Ok(()) => {
                say(&format!("PASS {name} ({:.0} s)", begin.elapsed().as_secs_f64()));
                tally.passed += 1;
            }
            Err(error) => {
                say(&format!("FAIL {name} ({:.0} s): {error:#}", begin.elapsed().as_secs_f64()));
                tally.failed += 1;
                // The next one is to be judged by itself.
                clear(host)?;
            }
        }
    }
    Ok(tally)
}

/// What the host has that belongs to no machine, once every machine is deleted.
fn nothing_left(host: &Host) -> Result<()> {
    let look = "
        banger vm list --all --json
        systemctl list-units --all --plain --no-legend 'banger-vm-*' 'banger-import-*'
        pgrep -l qemu-system || true
        pgrep -l banger-shim || true
        pgrep -l banger-import || true
        ip -o link | grep -o 'bgr-[0-9a-f]*' || true
        ip route show proto 98 | grep -v '^unreachable' || true
        nft list table inet banger 2> /dev/null | grep -o 'bgr-[0-9a-f][0-9a-f]*' || true
        ls /var/lib/banger/vms /run/banger/vm";
    let left = text(&host.enter(&["sh", "-c", look]).output()?.stdout);
    let is_something = |line: &&str| !line.is_empty() && !line.ends_with(':') && *line != "[]";
    let left: Vec<&str> = left.lines().filter(is_something).collect();
    ensure!(left.is_empty(), "it left {left:?}");
    Ok(())
}

/// Whether a guest's kernel says that its processors do not get on. QEMU's translator does that to guests with
/// several processors at times; a check that meets it has seen nothing of banger.
fn stands_still(host: &Host) -> Result<bool> {
    let look = "
        banger doctor | grep -q '^PASS *kvm' && exit 1
        for name in $(banger vm list --all --json | grep -o '\"id\": *\"[^\"]*' | cut -d '\"' -f 4); do
            banger vm logs $name | grep -q -e 'soft lockup' -e 'rcu_preempt detected stalls' && exit 0
        done
        exit 1";
    let looked = host.enter(&["sh", "-c", look]).output().context("cannot look at the guests")?;
    Ok(looked.status.success())
}

/// Deletes what a check that failed has left.
fn clear(host: &Host) -> Result<()> {
    let delete = "
        for name in $(banger vm list --all --json | grep -o '\"id\": *\"[^\"]*' | cut -d '\"' -f 4); do
            banger vm delete --force $name
        done";
    host.enter(&["sh", "-c", delete]).output().context("cannot clear the private host")?;
    Ok(())
}

/// Runs a command of a user without input; the checks look at everything that comes of it.
fn as_user(host: &Host, user: &str, words: &[&str]) -> Result<Output> {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let mut session = host.session(user, false, &words)?;
    session.stdin(std::process::Stdio::null()).output().context("cannot run in the private host")
}

/// Runs a shell script of a user, which ends at the first command that fails; what it printed.
fn script(host: &Host, user: &str, script: &str) -> Result<String> {
    expect(&as_user(host, user, &["sh", "-euc", script])?, 0)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// The output of a command that must have ended with this status.
fn expect(output: &Output, status: i32) -> Result<String> {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(
        output.status.code() == Some(status),
        "{} instead of {status}; it said {out:?} and {err:?}",
        output.status
    );
    Ok(out)
}
