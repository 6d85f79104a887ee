//! Checks of readiness, and of what a command finds in a new guest: files written in the first second stay, systemctl
//! answers, and the locale is a UTF-8 one.

use anyhow::{Result, ensure};

use super::{Check, script};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a command has a locale with UTF-8, and leaves a script its input", habits)];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] = &[
    ("what a command does in the first second is there when the boot is over", first_second),
    ("a start waits for as much of the boot as it is told to", waits),
];

fn first_second(host: &Host) -> Result<()> {
    // A user without a configuration file.
    let session = r#"
        export XDG_CONFIG_HOME=$PWD/none
        banger vm run --name early -- sh -c 'echo kept > /tmp/first; systemctl is-system-running || true'
        echo hello > here
        banger vm cp here early:/tmp/copied
        banger vm start --wait boot early > /dev/null
        banger vm exec --wait boot early -- cat /tmp/first /tmp/copied
        banger vm stop early > /dev/null
        banger vm start early > /dev/null
        banger vm exec early -- systemctl is-system-running --wait || true
        banger vm show --json early > shown
        grep -A 4 '"phases"' shown | tr -d ' \n'
        banger vm delete --force early > /dev/null"#;
    let out = script(host, "alice", session)?;
    let lines: Vec<&str> = out.lines().collect();
    let [first, kept, copied, running, phases] = lines[..] else { anyhow::bail!("{out:?}") };
    ensure!(["starting", "running", "degraded"].contains(&first), "{first}");
    ensure!((kept, copied) == ("kept", "hello"), "{out:?}");
    ensure!(["running", "degraded"].contains(&running), "{running}");
    ensure!(phases.contains("\"agent\":") && !phases.contains("null"), "{phases}");
    Ok(())
}

fn waits(host: &Host) -> Result<()> {
    let session = r#"
        running() { banger vm exec --wait agent slow -- systemctl is-system-running 2>&1 || true; }
        banger vm create --wait boot --name slow > /dev/null
        running
        banger vm stop slow > /dev/null
        banger vm start --wait init slow > /dev/null
        running
        banger vm exec --wait boot slow -- true
        running
        banger vm show slow | grep '^phases'
        banger vm delete --force slow > /dev/null"#;
    let out = script(host, "alice", session)?;
    let lines: Vec<&str> = out.lines().collect();
    let [created, early, booted, phases] = lines[..] else { anyhow::bail!("{out:?}") };
    for (state, states) in [
        (created, &["running", "degraded"][..]),
        (early, &["starting", "running", "degraded"]),
        (booted, &["running", "degraded"]),
    ] {
        ensure!(states.contains(&state), "{out:?}");
    }
    ensure!(phases.contains("agent after") && phases.contains("boot after"), "{phases}");
    Ok(())
}

fn habits(host: &Host) -> Result<()> {
    let session = r#"
        export XDG_CONFIG_HOME=$PWD/none
        banger vm create --name words
        unset LANG LC_ALL
        banger vm exec words -- sh -c 'echo $LANG; touch "$HOME/ä"; ls -b'
        LANG=xx_YY.UTF-8 LC_TIME=C banger vm exec words -- sh -c 'echo $LANG $LC_TIME'
        banger vm exec -e LANG=C words -- sh -c 'echo $LANG'
        printf 'a\nb\n' | while read line; do banger vm exec -n words -- echo "got $line"; done
        echo hello | banger vm exec -i words -- cat
        script -qefc 'banger vm exec -it words sh -c "test -t 0 && test -t 1 && echo && echo terminal"' screen < /dev/null | tr -d '\r'
        banger vm delete --force words"#;
    let out = script(host, "alice", session)?;
    for expected in ["C.UTF-8", "ä", "C.UTF-8 C", "C", "got a", "got b", "hello", "terminal"] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
