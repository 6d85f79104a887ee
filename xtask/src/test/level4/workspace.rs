//! Checks of workspaces, from the host into a sandbox and back, and of large transfers by commands, copies and ports.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, script};
use crate::{
    host::Host,
    run::{command, repository},
};

/// Environment variable with the MiB to transfer. A gibibyte was tested by hand, and takes minutes under emulation.
const FLOOD: &str = "BANGER_TEST_FLOOD_MIB";
const FLOOD_MIB: u32 = 256;
/// Echoes what it receives, on a port and on a socket.
const ECHO: &str = "
import socketserver, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1 << 20): self.request.sendall(data)
port = socketserver.ThreadingTCPServer(('127.0.0.1', 8080), Echo)
socket = socketserver.ThreadingUnixStreamServer('/run/echo.sock', Echo)
threading.Thread(target=port.serve_forever).start()
socket.serve_forever()";
/// Sends standard input to a port of loopback, and prints the answer.
const SEND: &str = "
import shutil, socket, sys, threading
to = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
def send():
    to.sendfile(sys.stdin.buffer)
    to.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
shutil.copyfileobj(to.makefile('rb'), sys.stdout.buffer, 1 << 20)";

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a repository goes into a sandbox, is worked on, and comes back byte for byte", there_and_back),
    ("a repository needs no git in the image", without_git),
    ("data through commands, copies and forwarded ports is unchanged", much_data),
    ("a flood through a command, a forwarded port and a socket keeps its digest", flood),
    ("a devcontainer's image, user, folder, variables, ports and command are applied", devcontainer),
    ("a full disk and an interrupted copy are reported and leave nothing on the host", broken_copies),
];

/// Clones this project into alice's home directory. It is sent as an archive: the private host has its own `/tmp`, and
/// may not see the directory of the project.
fn clone(host: &Host) -> Result<()> {
    let pack = "
        if [ -e .git ]; then
            clone=$(mktemp -d)
            trap 'rm -rf \"$clone\"' EXIT
            git -c safe.directory='*' clone -q --no-local --depth 1 \"file://$PWD\" \"$clone\"
            tar -c -C \"$clone\" .
        else
            tar -c --exclude=./target .
        fi";
    let unpack = "
        rm -rf /home/alice/project; mkdir /home/alice/project; cd /home/alice/project
        tar -x --no-same-owner
        if [ ! -e .git ]; then
            git init -q && git add -A
            git -c user.name=x -c user.email=x@example.org commit -q -m all
        fi
        chown -R alice: .";
    let mut packing = command("sh", ["-euc", pack])
        .current_dir(repository())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot pack the project")?;
    let archive = packing.stdout.take().context("there is no archive")?;
    let unpacked = host.enter(&["sh", "-euc", unpack]).stdin(archive).output().context("cannot unpack")?;
    ensure!(packing.wait()?.success(), "cannot pack the project");
    expect(&unpacked, 0).map(drop)
}

/// Prints a digest of a directory: names, contents, links and executable bits.
const DIGEST: &str = "
    (find . -name .git -prune -o -type f -exec sha256sum {} +
     find . -name .git -prune -o -type l -printf '%p -> %l\\n'
     find . -name .git -prune -o -type f -perm -100 -print) | LC_ALL=C sort | sha256sum";

fn there_and_back(host: &Host) -> Result<()> {
    clone(host)?;
    let session = "
        cd project
        banger vm run --quiet --vcpu 1 --name work . -- git status --short > ../status
        [ ! -s ../status ] && echo clean
        banger vm exec work -- sh -ec '
            pwd
            git config user.name Ann; git config user.email ann@example.org
            printf \"\\000\\001binary\\377\" > \"a b.bin\"; git add .; git commit -qm binary
            sed -i \"s/^# banger/# changed/\" README.md
            git rm -q deny.toml; git commit -qm removed
            mkdir -p deep/er; echo new > \"$(printf \"deep/er/odd\\nname\")\"
            ln -s ../README.md deep/link; chmod +x Cargo.toml
            mkdir -p target; echo no > target/ignored
            git add deep/link'
        state='sha256sum .git/index; git for-each-ref; git status --porcelain'
        banger vm exec work -- sh -c \"$state\" > ../before
        banger vm workspace export work -o ../work.patch
        git apply --check ../work.patch && echo patch applies
        banger vm workspace export work --apply
        banger vm exec work -- sh -c \"$state\" > ../after
        cmp ../before ../after && echo untouched
        banger vm exec work -- rm -r target
        banger vm exec work -- sh -c \"$DIGEST\" > ../there
        sh -c \"$DIGEST\" > ../here
        cmp ../here ../there && echo same
        git add -A; git -c user.name=Ann -c user.email=a@example.org commit -qm applied
        echo more >> README.md
        banger vm exec work -- true 2> ../warned
        grep -q 'has moved from' ../warned && echo drift
        banger vm exec --auto-prepare work -- tail -n 1 README.md
        banger vm exec work -- true 2> ../warned
        [ ! -s ../warned ] && echo settled
        status=0; banger vm exec work -- sh -c 'exit 42' || status=$?
        echo status $status
        banger vm delete --force work";
    let session = format!("DIGEST={}\n{session}", quoted(DIGEST));
    let out = script(host, "alice", &session)?;
    for line in
        ["clean", "/root/repo", "patch applies", "untouched", "same", "drift", "more", "settled", "status 42"]
    {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn without_git(host: &Host) -> Result<()> {
    clone(host)?;
    let session = "
        cd project
        banger vm run --quiet --vcpu 1 --name bare . -- sh -ec '
            mv /usr/bin/git /usr/bin/not-git
            echo work > README.md; rm deny.toml'
        banger vm workspace export bare --apply
        git status --short
        banger vm delete --force bare";
    let output = as_user(host, "alice", &["sh", "-euc", session])?;
    let out = expect(&output, 0)?;
    ensure!(out.contains("M README.md") && out.contains("D deny.toml"), "{out:?}");
    Ok(())
}

fn much_data(host: &Host) -> Result<()> {
    // A gibibyte takes minutes under emulation, and this much already covers all states of the protocol.
    let session = "
        head -c 32M /dev/urandom > much
        banger vm create --quiet --vcpu 1 --name pipe
        banger vm exec pipe -- cat < much | cmp - much && echo piped
        banger vm cp much pipe:/root/
        banger vm cp pipe:/root/much back
        cmp much back && echo copied
        banger vm exec -d pipe -- python3 -m http.server --bind 127.0.0.1 8080
        for n in $(seq 300); do banger vm ports pipe | grep -q 8080 && break; sleep 0.2; done
        banger vm ports --json pipe | grep -q '\"port\": 8080' && echo listed
        banger vm forward -q -L 18080:8080 pipe &
        forward=$!
        for n in $(seq 300); do curl -sf http://127.0.0.1:18080/much -o fetched && break; sleep 0.2; done
        cmp much fetched && echo forwarded
        kill $forward; wait $forward || true
        python3 -m http.server --bind 127.0.0.1 19000 > /dev/null 2>&1 &
        server=$!
        banger vm forward -q -R 9000:19000 -R /run/back.sock:19000 pipe &
        forward=$!
        for n in $(seq 300); do
            banger vm exec pipe -- curl -sf http://127.0.0.1:9000/much | cmp - much && break; sleep 0.2
        done
        banger vm exec pipe -- curl -sf --unix-socket /run/back.sock http://x/much | cmp - much && echo led out
        kill $forward $server; wait || true
        banger vm delete --force pipe";
    let out = script(host, "alice", session)?;
    for line in ["piped", "copied", "listed", "forwarded", "led out"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn flood(host: &Host) -> Result<()> {
    let mib = match std::env::var(FLOOD) {
        Ok(text) => text.parse().with_context(|| format!("{FLOOD} is not a number"))?,
        Err(_) => FLOOD_MIB,
    };
    let session = format!(
        "
        head -c {mib}M /dev/urandom > much
        sum() {{ sha256sum | cut -d ' ' -f 1; }}
        want=$(sum < much)
        banger vm create --quiet --vcpu 1 --name flood
        [ \"$(banger vm exec flood -- cat < much | sum)\" = $want ] && echo through a command
        banger vm exec -d flood -- python3 -c \"$ECHO\"
        banger vm forward -q -L 18080:8080 -L 18081:/run/echo.sock flood &
        forward=$!
        for n in $(seq 300); do banger vm exec flood -- test -S /run/echo.sock && break; sleep 0.2; done
        banger vm ports --json flood | grep -q '\"port\": 8080' && echo listed
        for port in 18080 18081; do
            [ \"$(python3 -c \"$SEND\" $port < much | sum)\" = $want ] && echo through $port
        done
        kill $forward; wait $forward || true
        banger vm delete --force flood
        rm much"
    );
    let session = format!("ECHO={}\nSEND={}\n{session}", quoted(ECHO), quoted(SEND));
    let out = script(host, "alice", &session)?;
    for line in ["through a command", "listed", "through 18080", "through 18081"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn devcontainer(host: &Host) -> Result<()> {
    let session = "
        rm -rf shop; mkdir -p shop/.devcontainer; cd shop
        cat > .devcontainer/devcontainer.json <<'END'
{
    // Of somebody who works with containers.
    \"image\": \"debian-bookworm\",
    \"remoteUser\": \"daemon\",
    \"containerEnv\": { \"STAGE\": \"${localWorkspaceFolderBasename}\" },
    \"postCreateCommand\": \"id -un > who && echo $STAGE > stage\",
    \"forwardPorts\": [8123],
    \"features\": {},
}
END
        git init -q -b main; git add -A
        git -c user.name=Ann -c user.email=a@example.org commit -qm all
        serve='import http.server as h; h.ThreadingHTTPServer((\"127.0.0.1\", 8123), h.SimpleHTTPRequestHandler).serve_forever()'
        banger vm run --vcpu 1 --name place . -- sh -c \"id -un; pwd; cat who stage; git status --short; python3 -c '$serve' 2> /dev/null\" \
            > ../said 2> ../told &
        run=$!
        for n in $(seq 600); do curl -sf http://127.0.0.1:8123/stage > ../fetched && break; sleep 0.2; done
        sed 's/^/fetched /' ../fetched
        banger vm exec place -- sh -c 'echo later $STAGE; id -un; echo more > mine'
        banger vm workspace export place --json | grep -o '\"path\": \"[a-z]*\"'
        kill $run; wait $run || true
        cat ../said; grep '^note: ' ../told
        banger vm delete --force place";
    let out = script(host, "alice", session)?;
    for line in [
        "daemon",
        "/workspaces/shop",
        "shop",
        "?? stage",
        "?? who",
        "fetched shop",
        "later shop",
        "\"path\": \"mine\"",
        "note: ignored in .devcontainer/devcontainer.json: features.",
    ] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn broken_copies(host: &Host) -> Result<()> {
    clone(host)?;
    let session = "
        rm -rf here; mkdir here; cd here
        head -c 64M /dev/urandom > big
        banger vm create --quiet --vcpu 1 --name frail
        banger vm exec frail -- sh -ec '
            free=$(df --output=avail -k /root | tail -n 1)
            fallocate -l $((free - 2048))K /root/ballast'
        status=0; banger vm cp -q big frail:/root/ 2> said || status=$?
        grep -q 'the disk of the sandbox is full' said && echo full $status
        status=0; banger vm workspace prepare -q frail ../project 2> said || status=$?
        grep -q 'the disk of the sandbox is full' said && echo full too $status
        banger vm exec frail -- sh -ec 'test ! -e /root/repo; rm -f /root/ballast /root/big; echo usable'
        banger vm exec frail -- sh -c 'df --output=used -k /root | tail -n 1' | awk '$1 < 16384 { print \"cleared\" }'
        banger vm cp -q big frail:/root/big
        banger vm cp -q frail:/root/big came 2> said &
        copy=$!
        for n in $(seq 300); do ls -d .banger-* > /dev/null 2>&1 && break; sleep 0.05; done
        banger vm kill frail
        status=0; wait $copy || status=$?
        cat said >&2
        grep -q '^error: ' said && echo lost $status
        [ ! -e came ] && ! ls -d .banger-* 2> /dev/null && echo nothing here
        banger vm delete --force frail";
    let out = script(host, "alice", session)?;
    for line in ["full 1", "full too 1", "usable", "cleared", "lost 1", "nothing here"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}
