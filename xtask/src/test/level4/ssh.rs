//! Checks of ssh and the tools that use it, as a user calls them: no options, no prompts, no trust on first use.

use anyhow::{Result, ensure};

use super::{Check, as_user, expect, script, text};
use crate::{
    host::{self, Host},
    image,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("ssh, scp, rsync and forwarded ports work without a prompt", session),
    ("vm ssh needs no configuration and its status is the command's", without_configuration),
    ("a guest presents no host key of its image and accepts keys that its user adds", keys_of_the_guest),
    ("other users reach a guest neither by ssh nor by its proxy", others),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] = &[
    ("a guest that presents another host key is refused", wrong_key),
    ("systemd-networkd leaves the interface of a guest alone", keep_networkd_out),
    ("NetworkManager, ifupdown and dhcpcd leave the interface of a guest alone", keep_others_out),
];

/// Starts the ssh server in a guest whose init does not.
const SERVE: &str = "serve() { banger vm exec $1 -- sh -c 'mkdir -p /run/sshd; exec /usr/sbin/sshd'; }";

fn session(host: &Host) -> Result<()> {
    let session = "
        banger ssh-config --install
        banger vm create --vcpu 1 --name web
        serve web
        ssh web.vm hostname
        [ \"$(ssh web.alice.vm id -un)\" = root ]
        status=0; ssh web.vm 'exit 42' || status=$?
        echo status $status
        seq 100000 > numbers
        scp -q numbers web.vm:
        scp -q web.vm:numbers copied
        cmp numbers copied
        mkdir -p tree/deep; echo leaf > tree/deep/leaf
        rsync -a -e ssh tree/ web.vm:tree/
        ssh web.vm cat tree/deep/leaf
        ssh -f -N -o ExitOnForwardFailure=yes -L 18080:localhost:8080 -o ControlMaster=yes -S control web.vm
        ssh web.vm 'cd tree/deep; python3 -m http.server --bind 127.0.0.1 8080 > /dev/null 2>&1 < /dev/null &'
        for n in $(seq 100); do curl -sf http://127.0.0.1:18080/leaf > fetched && break; sleep 0.2; done
        sed 's/^/fetched /' fetched
        ssh -S control -O exit web.vm 2> /dev/null
        [ ! -e .ssh/known_hosts ] && echo trusts nothing
        banger vm stop web
        ! ssh web.vm true 2> refused
        grep -q 'banger vm start web' refused && echo advised
        ! ssh -p 80 web.vm true 2> refused
        grep -q 'only port 22' refused && echo one port
        banger vm delete --force web
        banger ssh-config --uninstall
        [ ! -e .ssh/config ] && echo clean";
    let out = script(host, "alice", &format!("{SERVE}\n{session}"))?;
    for line in ["web", "status 42", "leaf", "fetched leaf", "trusts nothing", "advised", "one port", "clean"]
    {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn without_configuration(host: &Host) -> Result<()> {
    let session = "
        banger vm create --quiet --vcpu 1 --name bare
        serve bare
        echo hello | banger vm ssh bare -- cat
        status=0; banger vm ssh bare -- exit 7 || status=$?
        echo status $status
        [ ! -e .ssh/config ] && echo untouched
        banger vm stop bare
        status=0; banger vm ssh bare || status=$?
        echo status $status
        banger vm delete bare
        banger vm create --quiet --vcpu 1 --name bare
        serve bare
        banger vm ssh bare -- echo known again
        banger vm delete --force bare";
    let out = script(host, "alice", &format!("{SERVE}\n{session}"))?;
    for line in ["hello", "status 7", "untouched", "status 255", "known again"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn wrong_key(host: &Host) -> Result<()> {
    let session = "
        banger vm create --quiet --vcpu 1 --name liar
        banger vm ssh liar -- true
        banger vm exec liar -- sh -ec '
            cd /etc/ssh
            rm ssh_host_ed25519_key ssh_host_ed25519_key.pub
            ssh-keygen -q -t ed25519 -N \"\" -f ssh_host_ed25519_key
            systemctl restart ssh'
        status=0; banger vm ssh liar -- echo reached || status=$?
        echo status $status
        banger vm stop liar
        banger vm start liar
        banger vm ssh liar -- echo mended
        banger vm delete --force liar";
    let output = as_user(host, "alice", &["sh", "-euc", session])?;
    let (out, errors) = (expect(&output, 0)?, text(&output.stderr));
    ensure!(!out.contains("reached") && out.contains("status 255"), "{out:?}");
    ensure!(out.contains("mended"), "the next boot does not repair it: {out:?}");
    ensure!(errors.contains("Host key verification failed"), "{errors:?}");
    Ok(())
}

fn keys_of_the_guest(host: &Host) -> Result<()> {
    let session = "
        banger vm create --quiet --vcpu 1 --name keys
        serve keys
        banger vm ssh keys -- true
        banger vm exec keys -- sh -c 'ssh-keyscan 127.0.0.1 2> /dev/null' > scanned
        cut -d ' ' -f 2 scanned | sort | tr '\\n' ' '
        banger vm show --json keys | grep -q \"$(cut -d ' ' -f 3 scanned)\" && echo as told
        rm -f own own.pub
        ssh-keygen -q -t ed25519 -N '' -f own
        banger vm exec keys -- sh -ec 'umask 077; mkdir -p .ssh; cat >> .ssh/authorized_keys' < own.pub
        banger vm restart --quiet keys
        serve keys
        banger ssh-config > config
        sed -i \"s|IdentityFile.*|IdentityFile $PWD/own|\" config
        ssh -F config keys.vm echo own key
        banger vm delete --force keys";
    let out = script(host, "alice", &format!("{SERVE}\n{session}"))?;
    for part in ["ssh-ed25519 as told", "own key"] {
        ensure!(out.contains(part), "no {part:?} in {out:?}");
    }
    ensure!(!out.contains("rsa") && !out.contains("ecdsa"), "{out:?}");
    Ok(())
}

fn keep_networkd_out(host: &Host) -> Result<()> {
    let session = "
        banger vm create --quiet --vcpu 1 --name wired
        banger vm exec wired -- sh -ec '
            until [ -S /run/systemd/private ]; do sleep 0.2; done
            printf \"[Match]\\nName=*\\n[Network]\\nDHCP=yes\\n\" > /etc/systemd/network/10-all.network
            ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
            systemctl enable systemd-networkd'
        banger vm restart --quiet wired
        banger vm ssh wired -- 'systemctl is-active systemd-networkd; networkctl --no-legend list eth0'
        banger vm ssh wired -- 'cat /etc/resolv.conf; getent hosts wired.vm; hostname'
        banger vm delete --force wired";
    let out = script(host, "alice", session)?;
    let has = |words: &[&str]| out.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(has(&["eth0", "unmanaged"]), "networkd manages the interface: {out:?}");
    ensure!(has(&["nameserver", "172."]), "there is no name server: {out:?}");
    ensure!(has(&["wired.vm", "wired"]) && has(&["active"]), "{out:?}");
    Ok(())
}

/// Checks three tools that would get no answer on the link and then remove the address or assign another one.
fn keep_others_out(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("network-programs")?)?;
    let register = format!("banger image register --shared --name programs --rootfs {}", tar.display());
    expect(&host.enter(&["sh", "-euc", &register]).output()?, 0)?;
    let session = r#"
        banger vm create --quiet --vcpu 1 --image programs --name wired
        banger vm exec wired -- sh -ec '
            printf "auto eth0\niface eth0 inet dhcp\n" >> /etc/network/interfaces'
        banger vm restart --quiet wired
        address=$(banger vm show wired --json | grep -o '"address": *"[^"]*' | cut -d '"' -f 4)
        banger vm exec wired -- sh -ec '
            until [ -S /run/systemd/private ]; do sleep 0.2; done
            systemctl is-system-running --wait || true
            systemctl is-active NetworkManager.service networking.service dhcpcd.service
            nmcli --terse --fields DEVICE,STATE device
            ifquery --state
            journalctl --boot --output=cat --unit=dhcpcd.service
            ip -4 -oneline address show dev eth0; ps -e -o args=' > seen
        cat seen
        grep -q "inet $address/" seen && echo the same address
        banger vm delete --force --quiet wired"#;
    let out = script(host, "alice", session)?;
    expect(&host.enter(&["banger", "image", "delete", "programs"]).output()?, 0)?;
    let count = |line: &str| out.lines().filter(|seen| seen.contains(line)).count();
    for line in ["eth0:unmanaged", "eth0=eth0", "no valid interfaces found", "the same address"] {
        ensure!(count(line) > 0, "no {line:?} in {out:?}");
    }
    let programs = out.lines().filter(|line| *line == "active").count();
    ensure!(programs == 3 && count("inet ") == 1 && count("dhclient") == 0, "{out:?}");
    Ok(())
}

fn others(host: &Host) -> Result<()> {
    script(
        host,
        "alice",
        &format!("{SERVE}\nbanger vm create --quiet --vcpu 1 --name secret; serve secret"),
    )?;
    let addresses = script(
        host,
        "alice",
        "banger vm show --json secret | grep -o '\"address\": *\"[^\"]*' | cut -d '\"' -f 4",
    );
    let tries = "
        banger ssh-config > config
        for host in secret.alice.vm secret.vm; do
            ssh -F config $host echo reached || true
            banger ssh-known-hosts $host || true
        done
        ssh -o StrictHostKeyChecking=no -o ConnectTimeout=5 -o BatchMode=yes root@\"$0\" echo reached || true";
    let address = addresses?;
    let output = as_user(host, "bob", &["sh", "-euc", tries, &address]);
    script(host, "alice", "banger vm delete --force secret")?;
    let output = output?;
    let (out, errors) = (expect(&output, 0)?, text(&output.stderr));
    ensure!(out.is_empty(), "bob gets {out:?}");
    ensure!(!address.is_empty() && errors.contains("error: "), "{address:?}: {errors:?}");
    Ok(())
}
