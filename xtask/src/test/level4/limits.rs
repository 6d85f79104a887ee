//! Checks of what protects the host: limits of slices, confinement of units, and the restart of the service.

use anyhow::{Result, ensure};

use super::{Check, as_user, expect, images::LONG, script, text};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("slices of users have limits and share what there is", slices),
    ("the unit of a sandbox is as confined as its design says", exposure),
    ("a sandbox that ran out of memory starts again at once", out_of_memory),
    ("a service that is killed again and again comes back", killed_often),
    ("killed imports leave no unit", killed_import),
    ("a user who is not in the group cannot export a shared image", export),
];

/// Runs a script as root.
fn root(host: &Host, words: &str) -> Result<String> {
    expect(&host.enter(&["sh", "-euc", words]).output()?, 0)
}

/// Runs a script as root while alice has a running sandbox of this name.
fn with_sandbox(host: &Host, name: &str, words: &str) -> Result<String> {
    script(host, "alice", &format!("banger vm create --quiet --name {name}"))?;
    let done = root(
        host,
        &format!(
            "unit=$(banger vm show --json alice/{name} | grep -o 'banger-vm-[0-9a-f]*.service')\n{words}"
        ),
    );
    script(host, "alice", &format!("banger vm delete --force {name}"))?;
    done
}

fn slices(host: &Host) -> Result<()> {
    let look = "
        systemctl show --value --property Slice $unit
        for slice in banger.slice banger-u$(id -u alice).slice; do
            systemctl show --value --property MemoryMax --property TasksMax --property CPUWeight --property IOWeight $slice
        done
        systemctl show --value --property MemoryMax --property TasksMax --property OOMScoreAdjust $unit";
    let said = with_sandbox(host, "limited", look)?;
    let words: Vec<&str> = said.split_whitespace().collect();
    ensure!(words.len() == 12, "{said}");
    ensure!(words[0].starts_with("banger-u"), "{said}");
    ensure!(words.iter().all(|word| !["infinity", "[not", "18446744073709551615"].contains(word)), "{said}");
    Ok(())
}

/// Checks the exposure of a sandbox's unit. Settings that the shim's filter replaces count if the shim proves, in a
/// unit with the same settings, that they hold.
fn exposure(host: &Host) -> Result<()> {
    let look = "
        copy=/run/systemd/system/banger-proof.service
        sed -e 's,^ExecStart=.*,ExecStart=/usr/libexec/banger/banger-shim --proof,' -e '/^StandardInput/d' \\
            -e 's/^Type=.*/Type=oneshot/' -e 's/^User=.*/User=bgr-proof/' -e '/^Before=/d' /run/systemd/transient/$unit > $copy
        systemctl daemon-reload
        since=$(date +%s)
        systemctl start banger-proof.service
        journalctl --sync
        journalctl --quiet --unit banger-proof.service --since @$since --output cat --identifier banger-shim > /tmp/proven
        grep -q RestrictNamespaces=yes /tmp/proven
        grep -q 'Seccomp:.2' /proc/$(systemctl show --value --property MainPID $unit)/status
        mkdir -p /tmp/exposure
        cat $copy /tmp/proven > /tmp/exposure/banger-proof.service
        rm -f $copy
        systemctl daemon-reload
        systemd-analyze security --no-pager $unit | tail -1
        systemd-analyze security --no-pager --offline=yes --threshold=22 /tmp/exposure/banger-proof.service";
    let said = with_sandbox(host, "closed", look)?;
    println!(
        "{}",
        said.lines().filter(|line| line.contains("exposure level")).collect::<Vec<_>>().join("\n")
    );
    Ok(())
}

/// Has the kernel kill the VMM if the host has a memory controller, and otherwise sends SIGKILL as the kernel would.
fn out_of_memory(host: &Host) -> Result<()> {
    let kill = "
        for round in 1 2; do
            if grep -q memory /sys/fs/cgroup/cgroup.controllers; then
                systemctl set-property --runtime $unit MemoryMax=8M MemorySwapMax=0
            else
                systemctl kill --signal=KILL $unit
            fi
            for n in $(seq 600); do banger vm show --json alice/hungry | grep -q '\"failed\"' && break; sleep 0.1; done
            banger vm show --json alice/hungry | grep -o -e 'oom-kill' -e 'killed:9'
            banger vm start --quiet alice/hungry
            banger vm show --json alice/hungry | grep -o '\"running\"'
        done";
    let said = with_sandbox(host, "hungry", kill)?;
    ensure!(said.matches("running").count() == 2, "{said}");
    Ok(())
}

/// Kills the service more often than systemd's default start limit would allow.
fn killed_often(host: &Host) -> Result<()> {
    let kill = "
        for n in $(seq 7); do
            for wait in $(seq 300); do systemctl is-active --quiet banger-system && break; sleep 0.1; done
            systemctl kill --signal=KILL --kill-whom=main banger-system.service
            sleep 0.3
        done
        for wait in $(seq 300); do systemctl is-active --quiet banger-system && break; sleep 0.1; done
        systemctl is-active banger-system
        banger vm list --json";
    let said = root(host, kill)?;
    ensure!(said.starts_with("active"), "{said}");
    Ok(())
}

fn killed_import(host: &Host) -> Result<()> {
    for whom in ["", "systemctl kill --signal=KILL --kill-whom=main banger-system.service"] {
        let kill = format!(
            "{LONG}
            systemctl kill --signal=KILL $unit
            {whom}
            wait $register || true
            for n in $(seq 100); do
                left=$(systemctl list-units --all --plain --no-legend 'banger-import-*')
                [ -z \"$left\" ] && break
                sleep 0.1
            done
            echo \"$left\"
            rm long.tar.zst"
        );
        let left = root(host, &kill)?;
        ensure!(left.is_empty(), "{left}");
    }
    Ok(())
}

fn export(host: &Host) -> Result<()> {
    let refused =
        as_user(host, "carol", &["sh", "-c", "banger image export debian-bookworm --oci ~/stolen.tar"])?;
    let message = text(&refused.stderr);
    ensure!(!refused.status.success() && message.contains("group banger"), "{message:?}");
    script(host, "carol", "test ! -s ~/stolen.tar").map(drop)
}
