//! Checks of the network: which guests and user processes reach each other, and the internet behind the host.

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, script};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("guests reach those of their owner, and processes those of their user", owners),
    ("a guest reaches the internet while it has NAT, and no longer", nat),
    ("VMMs and services that are killed leave nothing and are reported", kills),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] =
    &[("a published port reaches a guest, and from the network only if an administrator allows it", ports)];

/// Starts a network behind the host, with a server that answers `internet` on port 80, and a server of the host on
/// port 8000 of every address, which no guest may reach.
const INTERNET: &str = "
    ip netns add internet
    ip link add up0 type veth peer name up1 netns internet
    ip addr add 203.0.113.1/24 dev up0
    ip link set up0 up
    ip route add default via 203.0.113.2
    ip -n internet addr add 203.0.113.2/24 dev up1
    ip -n internet link set up1 up
    ip -n internet link set lo up
    mkdir -p /tmp/www
    echo internet > /tmp/www/index.html
    serve() { systemd-run --quiet --collect --unit=$1 --property=Type=exec ${3:-env} \\
        /usr/bin/python3 -m http.server --directory /tmp/www $2; }
    serve internet-server 80 'ip netns exec internet'
    serve host-server 8000
    for n in $(seq 100); do
        echo > /dev/tcp/203.0.113.2/80 && echo > /dev/tcp/127.0.0.1/8000 && break
        sleep 0.1
    done";
const NO_INTERNET: &str = "
    systemctl stop internet-server host-server
    ip link del up0
    ip netns del internet";

/// Shell functions for the scripts of users. `knocks` prints `open`, `refused` or `silent`.
const TOOLS: &str = "
    create() { banger vm create --quiet --vcpu 1 --memory 512MiB --name $*; }
    address() { banger vm show --json $1 | sed -n 's/.*\"address\": *\"\\([^\"]*\\)\".*/\\1/p'; }
    in_guest() { guest=$1; shift; banger vm exec $guest -- bash -c \"$*\"; }
    knock='knocks() {
        status=0
        timeout 5 bash -c \"exec 3<> /dev/tcp/$1/$2\" 2> /dev/null || status=$?
        case $status in 0) echo open;; 124) echo silent;; *) echo refused;; esac
    }'
    eval \"$knock\"
    await_ssh() {
        end=$((SECONDS + 120))
        while [ $SECONDS -lt $end ]; do [ $(knocks $1 22) = open ] && return; sleep 0.2; done
        echo sshd does not answer >&2
        return 1
    }
    serve() { banger vm exec $1 -- sh -c 'mkdir -p /run/sshd; exec /usr/sbin/sshd'; }";

fn with_internet(host: &Host, check: impl FnOnce() -> Result<()>) -> Result<()> {
    root(host, INTERNET)?;
    let checked = check();
    root(host, NO_INTERNET)?;
    checked
}

fn root(host: &Host, script: &str) -> Result<String> {
    expect(&host.enter(&["bash", "-euc", script]).output().context("cannot run in the private host")?, 0)
}

fn user(host: &Host, user: &str, lines: &str) -> Result<String> {
    expect(&as_user(host, user, &["bash", "-euc", &format!("{TOOLS}\n{lines}")])?, 0)
}

fn owners(host: &Host) -> Result<()> {
    let addresses = user(host, "alice", "create a1; create a2; serve a1; serve a2; address a1; address a2")?;
    let [a1, a2] = two(&addresses)?;
    let b1 = user(host, "bob", "create b1; serve b1; address b1")?
        .lines()
        .last()
        .context("no address")?
        .to_owned();
    let said = user(
        host,
        "alice",
        &format!(
            "echo alice: $(knocks {a1} 22)
            in_guest a1 \"$knock; echo a1 to a2: \\$(knocks {a2} 22); echo a1 to b1: \\$(knocks {b1} 22)\"
            in_guest a1 'ip addr add 172.30.77.77/32 dev eth0'
            spoof=0; in_guest a1 'curl -s -m 3 --interface 172.30.77.77 telnet://{a2}:22' < /dev/null || spoof=$?
            echo a1 in another name: $spoof"
        ),
    )?;
    let hers =
        user(host, "bob", &format!("echo bob to b1: $(knocks {b1} 22); echo bob to a1: $(knocks {a1} 22)"))?;
    let roots = user(host, "root", &format!("echo root: $(knocks {a1} 22) $(knocks {b1} 22)"))?;
    script(host, "alice", "banger vm delete --force a1 a2")?;
    script(host, "bob", "banger vm delete --force b1")?;
    let said = format!("{said}\n{hers}\n{roots}");
    for expected in [
        "alice: open",
        "a1 to a2: open",
        "a1 to b1: refused",
        // The exit status of curl after a timeout.
        "a1 in another name: 28",
        "bob to b1: open",
        "bob to a1: refused",
        "root: open open",
    ] {
        ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
    }
    Ok(())
}

fn two(lines: &str) -> Result<[String; 2]> {
    let mut last: Vec<String> = lines.lines().rev().take(2).map(str::to_owned).collect();
    last.reverse();
    last.try_into().map_err(|lines| anyhow::anyhow!("not two addresses: {lines:?}"))
}

fn nat(host: &Host) -> Result<()> {
    with_internet(host, || {
        let said = user(
            host,
            "alice",
            "create box
            get() { in_guest box 'curl -s -m 5 http://203.0.113.2/ || echo nothing'; }
            echo without: $(get)
            banger vm set --nat box
            echo with: $(get)
            in_guest box \"$knock; echo host by its name outside: \\$(knocks 203.0.113.1 8000)\"
            in_guest box \"$knock; echo host as gateway: \\$(knocks 172.30.0.1 8000)\"
            banger vm set --no-nat box
            echo again without: $(get)
            banger vm stop box
            banger vm set --nat box
            banger vm start box
            echo after a start: $(get)
            banger vm delete --force box",
        )?;
        for expected in [
            "without: nothing",
            "with: internet",
            "host by its name outside: refused",
            "host as gateway: refused",
            "again without: nothing",
            "after a start: internet",
        ] {
            ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
        }
        Ok(())
    })
}

fn ports(host: &Host) -> Result<()> {
    with_internet(host, || {
        user(host, "alice", "create web; await_ssh $(address web)")?;
        let hers = user(
            host,
            "alice",
            "echo loopback: $(banger vm publish web 8022:22)
            taken=0; banger vm publish web 8000:22 2> taken || taken=$?
            echo taken: $taken $(grep -c 'port 8000/tcp of this host is taken' taken)
            public=0; banger vm publish --public web 8023:22 2> public || public=$?
            echo public: $public",
        )?;
        let held = root(host, HELD)?;
        let carols = user(host, "carol", "echo carol: $(head -c 4 < /dev/tcp/127.0.0.1/8022)")?;
        let roots = root(
            host,
            "
            outside() { ip netns exec internet timeout 5 bash -c \"head -c 4 < /dev/tcp/203.0.113.1/$1\" 2> /dev/null || echo no; }
            echo outside on loopback: $(outside 8022)
            banger vm publish --public alice/web 8023:22
            echo outside: $(outside 8023)",
        )?;
        let after = user(
            host,
            "alice",
            "banger vm unpublish web 8022
            echo taken back: $(knocks 127.0.0.1 8022)
            banger vm delete --force web
            echo deleted: $(knocks 203.0.113.1 8023)",
        )?;
        let said = [hers, held, carols, roots, after].join("\n");
        for expected in [
            "loopback: 127.0.0.1:8022",
            "a service at 127.0.1.1: internet",
            "killed: SSH- 0",
            "stopped: closed taken",
            "taken: internet 1",
            "published again: SSH- 0",
            "taken: 1 1",
            "public: 1",
            "carol: SSH-",
            "outside on loopback: no",
            "outside: SSH-",
            "taken back: refused",
            "deleted: refused",
        ] {
            ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
        }
        Ok(())
    })
}

/// Checks that port 8022 of loopback reaches `alice/web` and nothing else that listens there. While the service is
/// down, nobody else can bind the port. If the service cannot bind it again, the port no longer reaches the guest.
const HELD: &str = r#"
    http() { systemd-run --quiet --collect --unit=$1 --property=Type=exec         /usr/bin/python3 -m http.server --bind $2 --directory /tmp/www 8022; }
    says() { head -c 4 < /dev/tcp/127.0.0.1/8022 2> /dev/null || echo closed; }
    blocked() { banger vm show --json alice/web | tr -d '[:space:]' | grep -o '"blocked_ports":\[[^]]*' | grep -c host_port || true; }
    bind() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 8022))' 2> /dev/null && echo taken || echo held; }
    running() { for n in $(seq 100); do banger vm list --all > /dev/null 2>&1 && break; sleep 0.1; done; }
    http neighbour 127.0.1.1
    for n in $(seq 100); do curl -s -o /dev/null http://127.0.1.1:8022/ && break; sleep 0.1; done
    echo "a service at 127.0.1.1: $(curl -s http://127.0.1.1:8022/)"
    systemctl stop neighbour
    kill -KILL $(systemctl show --property MainPID --value banger-system.service)
    running
    echo "killed: $(says) $(blocked)"
    systemctl stop banger-system
    echo "stopped: $(says) $(bind)"
    http thief 127.0.0.1
    for n in $(seq 100); do curl -s -o /dev/null http://127.0.0.1:8022/ && break; sleep 0.1; done
    systemctl start banger-system
    running
    echo "taken: $(curl -s http://127.0.0.1:8022/) $(blocked)"
    systemctl stop thief
    # The kernel keeps the port of a server that hung up first for a minute.
    for n in $(seq 90); do banger vm publish alice/web 8022:22 > /dev/null 2>&1 && break; sleep 1; done
    echo "published again: $(says) $(blocked)"
"#;

fn kills(host: &Host) -> Result<()> {
    user(host, "alice", "create one; create two; create three")?;
    let said = root(
        host,
        "
        pid() { banger vm show --json alice/$1 | sed -n 's/.*\"main_pid\": *\\([0-9]*\\).*/\\1/p'; }
        state() { banger vm show --json alice/$1 | sed -n 's/.*\"\\(state\\|state_reason\\)\": *\"\\([^\"]*\\)\".*/\\2/p' | tr '\\n' ' '; }
        taps() { ip -o link | grep -o 'bgr-[0-9a-f]*' | sort -u | wc -l; }
        await_taps() { for n in $(seq 100); do [ $(taps) = $1 ] && break; sleep 0.1; done; }
        service() { systemctl show --property MainPID --value banger-system.service; }
        kill -KILL $(pid one)
        await_taps 2
        echo monitor: $(state one) taps $(taps)
        kill -KILL $(service)
        for n in $(seq 100); do [ \"$(state two)\" ] && break; sleep 0.1; done
        echo service: $(state two) taps $(taps)
        kill -KILL $(service) $(pid two) $(pid three)
        for n in $(seq 100); do state two | grep -q stopped && break; sleep 0.1; done
        await_taps 0
        echo both: $(state two) $(state three) taps $(taps)
        banger vm start alice/two > /dev/null
        echo again: $(state two) taps $(taps)
        banger vm delete --force alice/one alice/two alice/three > /dev/null",
    )?;
    for (what, state, taps) in
        [("monitor", "failed", 2), ("service", "running", 2), ("both", "stopped", 0), ("again", "running", 1)]
    {
        let (begin, end) = (format!("{what}: {state}"), format!("taps {taps}"));
        let is_it = |line: &str| line.starts_with(&begin) && line.ends_with(&end);
        ensure!(said.lines().any(is_it), "no {begin:?} with {end:?} in {said:?}");
    }
    Ok(())
}
