//! Checks of sandbox names, as guests, users and systemd-resolved resolve them.

use anyhow::{Result, ensure};

use super::{Check, expect, script};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("guests of one user and the host resolve names of sandboxes, and nobody else does", names),
    ("a sandbox that dies loses its name, and resolved gets all names again when it restarts", churn),
    ("without resolved, dnsmasq or a line in resolv.conf lets the host resolve names of sandboxes", recipes),
];

/// Shell functions that wait until a name resolves, or no longer does.
const UNTIL: &str = "
    known() { resolvectl query --legend=no \"$1\" > /dev/null 2>&1; }
    until_known() { for n in $(seq 100); do known \"$1\" && return; sleep 0.1; done; echo \"$1 is unknown\" >&2; exit 1; }
    until_gone() { for n in $(seq 100); do known \"$1\" || return 0; sleep 0.1; done; echo \"$1 is known\" >&2; exit 1; }";

fn names(host: &Host) -> Result<()> {
    let bobs = "banger vm create --vcpu 1 --name theirs";
    let alices = format!(
        "{UNTIL}
        banger vm create --vcpu 1 --name one
        banger vm create --vcpu 1 --name other
        address=$(banger vm show other --json | grep -o '\"address\": *\"[^\"]*' | cut -d '\"' -f 4)
        banger vm exec other -- python3 -m http.server 4000 > served 2>&1 &
        server=$!
        for name in other other.vm other.alice.vm; do
            banger vm exec one -- getent ahostsv4 $name | grep -q \"^$address \" || {{ echo \"$name is unknown\" >&2; exit 1; }}
        done
        banger vm exec one -- getent hosts $address | grep -q 'other.alice.vm$'
        banger vm exec one -- curl -s -o /dev/null --retry 20 --retry-delay 1 --retry-connrefused http://other:4000
        kill $server
        resolvectl query --legend=no other.vm | grep -q \"$address\"
        resolvectl query --legend=no $address | grep -q other.alice.vm
        getent hosts other.alice.vm > /dev/null
        resolvectl status banger0 | grep -q -- -DefaultRoute
        echo $address"
    );
    script(host, "bob", bobs)?;
    let address = script(host, "alice", &alices)?;
    let address = address.lines().last().unwrap_or_default();
    let spy = format!(
        "banger vm exec theirs -- getent hosts theirs.vm > /dev/null
        for name in other other.vm other.alice.vm one {address}; do
            ! banger vm exec theirs -- getent hosts $name || exit 1
        done
        banger vm delete --force theirs"
    );
    script(host, "bob", &spy)?;
    script(
        host,
        "alice",
        "banger vm delete --force other
        ! resolvectl query other.vm > /dev/null 2>&1
        ! banger vm exec one -- getent hosts other
        banger vm exec one -- getent hosts one.vm
        banger vm delete --force one
        ! resolvectl query one.vm > /dev/null 2>&1",
    )?;
    let doctor = script(host, "alice", "banger doctor")?;
    ensure!(doctor.contains("systemd-resolved asks banger"), "{doctor:?}");
    Ok(())
}

fn churn(host: &Host) -> Result<()> {
    let root = |text: &str| expect(&host.enter(&["sh", "-euc", &format!("{UNTIL}\n{text}")]).output()?, 0);
    script(host, "alice", "banger vm create --vcpu 1 --name brief; banger vm create --vcpu 1 --name steady")?;
    root("until_known steady.vm; systemctl restart systemd-resolved.service; until_known steady.vm")?;
    root(
        "before=$(systemctl show -P MainPID banger-system.service)
        systemctl kill --signal=KILL --kill-whom=main banger-system.service
        for n in $(seq 100); do
            if [ $(systemctl show -P MainPID banger-system.service) != $before ] &&
                systemctl is-active --quiet banger-system.service; then break; fi
            sleep 0.1
        done
        resolvectl flush-caches
        until_known steady.vm
        systemctl stop banger-system.service",
    )?;
    let domains = root("resolvectl domain banger0")?;
    ensure!(!domains.contains("vm"), "resolved asks a service that has ended: {domains:?}");
    root("systemctl start banger-system.service; until_known steady.vm; until_known brief.vm")?;
    script(host, "alice", "banger vm kill brief --signal KILL")?;
    root("until_gone brief.vm; until_known steady.vm")?;
    script(host, "alice", "banger vm delete brief; banger vm delete --force steady").map(drop)
}

/// Checks the recipes of docs/network.md for hosts without systemd-resolved.
fn recipes(host: &Host) -> Result<()> {
    script(host, "alice", "banger vm create --quiet --vcpu 1 --name asked")?;
    let address = script(
        host,
        "alice",
        "banger vm show asked --json | grep -o '\"address\": *\"[^\"]*' | cut -d '\"' -f 4",
    )?;
    let session = r#"
        address=$1
        cd "$(mktemp -d)"
        gateway=$(ip -4 -oneline address show dev banger0 | sed 's,.*inet \([0-9.]*\).*,\1,')
        subnet=${gateway%.*.*}.0.0/16
        # Only the name servers in resolv.conf are asked.
        echo 'hosts: dns' > nsswitch.conf
        ask() {
            unshare --mount sh -euc '
                mount --bind resolv.conf /etc/resolv.conf; mount --bind nsswitch.conf /etc/nsswitch.conf; getent "$@"' ask "$@"
        }
        echo "server=/vm/$gateway
        rev-server=$subnet,$gateway
        bind-dynamic
        listen-address=127.0.0.9
        no-resolv
        user=nobody" > dnsmasq.conf
        dnsmasq --keep-in-foreground --conf-file=dnsmasq.conf &
        dnsmasq=$!
        echo 'nameserver 127.0.0.9' > resolv.conf
        for n in $(seq 50); do ask ahostsv4 asked.vm > seen && break; sleep 0.1; done
        grep -q "^$address " seen && echo dnsmasq knows the name
        ask hosts "$address" | grep -q 'asked.alice.vm$' && echo dnsmasq knows the address
        ! ask ahostsv4 nobody.vm && echo dnsmasq knows no other
        kill $dnsmasq
        printf 'nameserver %s\nnameserver 127.0.0.53\n' $gateway > resolv.conf
        ask ahostsv4 asked.vm | grep -q "^$address " && echo resolv.conf knows the name
        # The first server refuses the question, so the second one is asked.
        echo '192.0.2.7 elsewhere.test' >> /etc/hosts
        ask ahostsv4 elsewhere.test | grep -q '^192.0.2.7 ' && echo resolv.conf goes on
        sed -i '/elsewhere.test/d' /etc/hosts"#;
    let out = expect(&host.enter(&["sh", "-euc", session, "recipes", address.trim()]).output()?, 0)?;
    for line in ["knows the name", "knows the address", "knows no other"] {
        ensure!(out.contains(&format!("dnsmasq {line}")), "{out:?}");
    }
    ensure!(out.contains("resolv.conf knows the name") && out.contains("resolv.conf goes on"), "{out:?}");
    script(host, "alice", "banger vm delete --force --quiet asked").map(drop)
}
