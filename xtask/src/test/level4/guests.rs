//! Checks of guests: commands, terminals, disks, clocks, and the death of the service or the client.

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, script, text};
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
    let typed = "
        rm -f keys screen; mkfifo keys
        script -qefc 'stty rows 33 cols 101; banger vm run --rm --quiet' screen < keys > screen.copy &
        exec 3> keys
        for n in $(seq 600); do grep -q '# ' screen && break; sleep 0.1; done
        echo 'stty size; tty; exit 7' >&3
        status=0; wait $! || status=$?
        cat screen
        echo status $status";
    let out = script(host, "alice", typed)?;
    for expected in ["33 101", "/dev/pts/", "status 7"] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn stop_keeps_data(host: &Host) -> Result<()> {
    let session = "
        banger vm create --name keep
        banger vm exec keep -- sh -c 'mkdir many; for n in $(seq 1000); do echo $n > many/$n; done'
        banger vm stop keep
        banger vm start keep
        banger vm exec keep -- sh -c 'cat many/* | sort -n | md5sum'
        seq 1000 | md5sum
        banger vm delete --force keep";
    let out = script(host, "alice", session)?;
    let mut sums = out.lines().filter(|line| line.ends_with('-'));
    let (kept, written) = (sums.next().context("there is no sum")?, sums.next());
    ensure!(Some(kept) == written, "the files have changed: {out:?}");
    Ok(())
}

/// Checks the sizes of both disks. The image and a default work disk have 8 GiB.
fn disks_grow(host: &Host) -> Result<()> {
    let session = r#"
        sizes() { banger vm exec big -- df --output=size -BG / /root | tail -n 2 | tr -d ' G\n'; echo; }
        show() { banger vm show --json big | sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\).*/\1/p"; }
        sum() { banger vm exec big -- sh -c 'cat /kept/* /root/kept | md5sum'; }
        banger vm create --quiet --name big --root-size 12GiB
        echo "made: $(sizes)"
        banger vm exec big -- sh -c 'mkdir /kept; for n in $(seq 1000); do echo $n > /kept/$n; done; seq 1000 > /root/kept'
        echo "home: $(banger vm exec big -- sh -c 'ls -A /root | grep -c lost+found || true')"
        sum > sum
        banger vm set --root-size 20GiB big 2> refused || echo "running: $(grep -c 'stop it first' refused)"
        banger vm stop --quiet big
        banger vm set --root-size 11GiB big 2> refused || echo "smaller: $(grep -c '12 GiB' refused) $(grep -c hint: refused)"
        banger vm set --root-size 20GiB --disk-size 10GiB big
        banger vm start --quiet big
        echo "grown: $(sizes)"
        echo "shown: $(show root_size) $(show disk_size)"
        sum | cmp - sum && echo "kept: the same"
        # More than there was room for before.
        banger vm exec big -- fallocate -l 14GiB /large
        banger vm health big > /dev/null && echo healthy
        banger vm stop --quiet big
        show id"#;
    let out = script(host, "alice", session)?;
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
    let check = format!(
        "cd /var/lib/banger/vms/{id}
        e2fsck -fn work.ext4
        if [ -e system.qcow2 ]; then
            qemu-img convert -O raw --image-opts \
                driver=qcow2,file.filename=system.qcow2,backing.driver=raw,backing.file.filename=base.ext4 system.raw
            e2fsck -fn system.raw
        else
            e2fsck -fn system.ext4
        fi"
    );
    script(host, "root", &check)?;
    script(host, "alice", "banger vm delete big; rm sum refused").map(drop)
}

/// Checks the state of a sandbox after commands that end its guest. How the commands themselves end does not matter.
fn ends(host: &Host) -> Result<()> {
    let session = r#"
        show() { banger vm show --json box | sed -n "s/^ *\"$1\": *\"\([^\"]*\)\".*/\1/p"; }
        how() { echo "$(show state) $(show state_reason)"; }
        await() { for n in $(seq 600); do [ "$(how)" = "$1" ] && break; sleep 0.2; done; echo "$2: $(how)"; }
        booted_up() {
            for n in $(seq 300); do
                banger vm exec box -- systemctl is-active -q multi-user.target > /dev/null 2>&1 && break
                sleep 0.2
            done
        }
        # systemd accepts requests once its socket exists.
        end() {
            banger vm exec box -- sh -c 'until [ -S /run/systemd/private ]; do sleep 0.2; done' > /dev/null 2>&1 || true
            timeout 60 banger vm exec box -- sh -c "$1" > /dev/null 2>&1 || true
        }
        booted() {
            for n in $(seq 600); do
                now=$(banger vm exec box -- cat /proc/sys/kernel/random/boot_id 2> /dev/null) && [ "$now" != "$1" ] && break
                sleep 0.2
            done
            if [ "$now" ] && [ "$now" != "$1" ] && [ "$now" = "$(show boot_id)" ]; then echo "$2: a new boot id"; fi
        }
        banger vm create --quiet --name other
        echo "first: $(banger vm exec other -- hostname)"
        banger vm rename other box
        first=$(show boot_id)
        banger vm exec box -- sh -c 'echo kept > kept; exec sleep 1000' > /dev/null 2>&1 &
        for n in $(seq 100); do banger vm exec box -- cat kept > /dev/null 2>&1 && break; sleep 0.1; done
        booted_up
        end 'systemctl reboot'
        booted "$first" reboot
        echo "kept: $(banger vm exec box -- cat kept)"
        echo "after a reboot: $(how)"
        echo "renamed: $(banger vm exec box -- sh -c 'hostname; getent hosts box | grep -c box')"
        banger vm exec box -- sh -c 'exec 3> open; exec sleep 1000' > /dev/null 2>&1 &
        for n in $(seq 100); do banger vm exec box -- test -e open > /dev/null 2>&1 && break; sleep 0.1; done
        booted_up
        end 'systemctl poweroff'
        await 'stopped guest-shutdown' poweroff
        banger vm logs box > log
        echo "unmounted: $(grep -c 'Failed unmounting' log) $(grep -c 'Power down' log)"
        banger vm start --quiet box
        echo "start: $(how)"
        first=$(show boot_id)
        end 'systemctl poweroff; until [ -e /run/banger-stopping ]; do sleep 0.05; done'
        banger vm start --quiet box
        booted "$first" "start while it shuts down"
        timeout 60 banger vm exec box -- sh -c 'echo c > /proc/sysrq-trigger' > /dev/null 2>&1 || true
        await 'failed guest-panic' panic
        banger vm start --quiet box
        end 'systemctl halt'
        await 'stopped guest-halt' halt
        banger vm delete --force box"#;
    let out = script(host, "alice", session)?;
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
    let session = "
        banger vm create --name late
        banger vm exec late -- date --set @100000000
        touch /tmp/set-now
        banger vm exec late -- sh -c 'for n in $(seq 300); do [ $(date +%s) -gt 1000000000 ] && exit; sleep 0.1; done; exit 1'
        banger vm delete --force late";
    // Set it to the time that it already shows: the kernel reports a change, and nothing else notices.
    let setter = "
        for n in $(seq 1200); do [ -e /tmp/set-now ] && break; sleep 0.1; done
        rm -f /tmp/set-now
        date --set @$(date +%s.%N)";
    let mut setter = host.enter(&["sh", "-c", setter]).spawn().context("cannot start the setter")?;
    let session = script(host, "alice", session);
    ensure!(setter.wait()?.success(), "cannot set the clock of the host");
    session.map(drop)
}

fn crowd(host: &Host) -> Result<()> {
    // A server that accepts connections and never answers.
    let session = "
        banger vm create --name crowd
        for n in $(seq 30); do banger vm exec -T crowd -- sh -c \"sleep 1; echo $n\" > crowd.$n & done
        wait
        cat crowd.* | sort -n | tr '\\n' ' '
        rm crowd.*
        banger vm exec -d crowd -- python3 -c '
import socket, time
silent = socket.socket(socket.AF_UNIX)
silent.bind(\"/run/silent\")
silent.listen(100)
time.sleep(1000)' > /dev/null
        for n in $(seq 300); do banger vm exec crowd -- test -S /run/silent && break; sleep 0.1; done
        banger vm forward -L 7090:/run/silent crowd 2> forwarded &
        forward=$!
        for n in $(seq 100); do grep -q 7090 forwarded && break; sleep 0.1; done
        bash -c 'for n in $(seq 30); do exec {fd}<>/dev/tcp/127.0.0.1/7090; done; touch crowded; sleep 1000' &
        browser=$!
        for n in $(seq 100); do [ -e crowded ] && break; sleep 0.1; done
        rm crowded
        banger vm exec -T --timeout 60 crowd -- echo in time
        banger vm health crowd > healthy
        banger vm stop crowd
        kill $forward
        kill $browser
        banger vm delete crowd";
    let out = script(host, "alice", session)?;
    let all: String = (1..=30).map(|n| format!("{n} ")).collect();
    ensure!(out.contains(all.trim_end()), "not all commands ran: {out:?}");
    ensure!(out.contains("in time"), "connections keep commands from running: {out:?}");
    Ok(())
}

/// Checks the time as exactly as a command can. A guest that only counts from its boot lags by more.
fn right_time(host: &Host) -> Result<()> {
    let session = "
        banger vm create --name exact
        before=$(date +%s%N)
        there=$(banger vm exec -T exact -- date +%s%N)
        after=$(date +%s%N)
        banger vm delete --force exact
        echo $(( (there - before) / 1000000 )) $(( (after - there) / 1000000 ))";
    let out = script(host, "alice", session)?;
    let last = out.lines().last().context("nothing was said")?;
    let differences: Vec<i64> = last.split(' ').filter_map(|word| word.parse().ok()).collect();
    ensure!(differences.len() == 2 && differences.iter().all(|ms| *ms > -20), "{last} ms");
    Ok(())
}

fn idle_agent(host: &Host) -> Result<()> {
    // Both processes of the agent, in hundredths of a second. The second look includes the cost of the first.
    let session = "
        banger vm create --name idle
        look() {
            banger vm exec -T idle -- sh -c '
                for p in /proc/[0-9]*; do
                    grep -q \"^@banger-agent\" $p/cmdline && cut -d \" \" -f 14,15 $p/stat
                done 2> /dev/null | tr \" \" \"\\n\" | paste -sd +'
        }
        before=$(look)
        sleep 10
        after=$(look)
        banger vm delete --force idle
        echo $(( ($after) - ($before) ))";
    let out = script(host, "alice", session)?;
    let ticks: u32 = out.lines().last().unwrap_or_default().parse().context("nothing was said")?;
    // 2 % of ten seconds.
    ensure!(ticks <= 20, "{ticks} hundredths of a second in ten");
    Ok(())
}

fn time_zone(host: &Host) -> Result<()> {
    // Only Kathmandu is 5 hours and 45 minutes ahead.
    let session = "
        TZ=Asia/Kathmandu banger vm run --rm -- date +%z
        banger vm create --timezone Pacific/Chatham --name far
        banger vm exec far -- date -d @1750000000 +%H:%M
        banger vm delete --force far
        banger vm create --timezone ../etc/passwd --name odd && exit 1
        banger vm show odd 2> nothing && exit 1
        true";
    let out = script(host, "alice", session)?;
    ensure!(out.contains("+0545") && out.contains("03:51"), "{out:?}");
    Ok(())
}

fn killed_service(host: &Host) -> Result<()> {
    let session = "
        banger vm create --name steady
        before=$(banger vm show steady --json | grep boot_id)
        banger vm exec steady -- sh -c 'sleep 8; echo done' > streamed &
        exec=$!
        sleep 2
        touch /tmp/kill-now
        while [ -e /tmp/kill-now ]; do sleep 0.1; done
        wait $exec
        cat streamed
        after=$(banger vm show steady --json | grep boot_id)
        [ \"$before\" = \"$after\" ] && echo same
        banger vm delete --force steady";
    // The session cannot kill the service itself, so it asks for it by a file.
    let killer = "
        for n in $(seq 1200); do [ -e /tmp/kill-now ] && break; sleep 0.1; done
        systemctl kill --signal=KILL --kill-whom=main banger-system.service
        rm -f /tmp/kill-now";
    let mut killer = host.enter(&["sh", "-c", killer]).spawn().context("cannot start the killer")?;
    let session = script(host, "alice", session);
    killer.wait()?;
    let out = session?;
    ensure!(out.contains("done") && out.contains("same"), "{out:?}");
    Ok(())
}

fn killed_client(host: &Host) -> Result<()> {
    let session = "
        banger vm run --rm --name doomed -- sh -c 'echo up; sleep 1000' > said &
        for n in $(seq 600); do grep -q up said && break; sleep 0.1; done
        banger vm show doomed --json | grep -q '\"ready\": *true'
        kill -KILL $!
        for n in $(seq 300); do banger vm show doomed 2> /dev/null > /dev/null || exit 0; sleep 0.1; done
        echo 'it is still there' >&2
        exit 1";
    script(host, "alice", session).map(drop)
}

fn no_systemd(host: &Host) -> Result<()> {
    // Run the service where it cannot see that systemd is running.
    let serve = "
        systemctl stop banger-system.service
        serve() {
            unshare --mount sh -ec 'mount -t tmpfs none /run/systemd; exec /usr/libexec/banger-system' 2> /tmp/plain.log &
            for n in $(seq 300); do busctl status dev.banger.Manager1 > /dev/null 2>&1 && return; sleep 0.1; done
        }
        serve
        first=$!
        for n in $(seq 1200); do [ -e /tmp/plain-kill ] && break; sleep 0.1; done
        kill -KILL $first
        wait $first || true
        serve
        rm -f /tmp/plain-kill
        for n in $(seq 1200); do [ -e /tmp/plain-done ] && break; sleep 0.1; done
        kill $!
        wait $! || true
        rm -f /tmp/plain-done
        systemctl start banger-system.service";
    let session = "
        for n in $(seq 300); do busctl status dev.banger.Manager1 > /dev/null 2>&1 && break; sleep 0.1; done
        trap 'touch /tmp/plain-kill /tmp/plain-done' EXIT
        banger vm create --name plain
        before=$(banger vm exec plain -- cat /proc/sys/kernel/random/boot_id)
        touch /tmp/plain-kill
        while [ -e /tmp/plain-kill ]; do sleep 0.1; done
        after=$(banger vm exec plain -- cat /proc/sys/kernel/random/boot_id)
        [ \"$before\" = \"$after\" ] && echo same
        banger vm show plain --json
        banger vm delete --force plain";
    host.enter(&["systemctl", "stop", "banger-system.service"]).status()?;
    let mut serving = host.enter(&["sh", "-euc", serve]).spawn().context("cannot start the service")?;
    let session = script(host, "alice", session);
    serving.wait()?;
    let out = session?;
    ensure!(out.contains("same") && out.contains("\"unit\": \"\""), "{out:?}");
    Ok(())
}
