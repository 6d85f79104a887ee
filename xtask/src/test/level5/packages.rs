//! Level 5: how apt installs, upgrades, downgrades and removes the packages, while sandboxes are running.
//!
//! The earlier packages have the same programs under an earlier version: what is tested is what the scripts of packages
//! and the service do.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{ADAPTERS, expect, run_quietly, test_program, text};
use crate::{dist, testhost::TestHost};

/// A version that sorts before the current one.
const EARLIER: &str = concat!(env!("CARGO_PKG_VERSION"), "~earlier");
/// The sandbox that keeps running.
const KEPT: &str = "kept";

/// Checks that a sandbox and a command in it go on while the packages get older and newer again.
pub fn upgrade(host: &TestHost) -> Result<()> {
    install(host, EARLIER)?;
    ensure!(version(host)? == EARLIER, "apt has not installed the earlier packages");
    let create = ["banger", "vm", "create", "--quiet", "--memory", "512M", "--name", KEPT];
    expect(host.session("alice", &create))?;
    let command = OpenCommand::start(host)?;
    let before = Seen::of(host)?;
    install(host, dist::VERSION)?;
    ensure!(version(host)? == dist::VERSION, "apt has not upgraded the packages");
    let after = Seen::of(host)?;
    ensure!(before.service != after.service, "the service was not restarted");
    ensure!((&before.vmm, &before.boot) == (&after.vmm, &after.boot), "the guest did not go on");
    command.finish()?;
    expect(host.session("alice", &["banger", "vm", "delete", "--force", KEPT])).map(drop)
}

/// Checks that an older service says in one sentence why it does not start, and leaves the database as it is.
pub fn downgrade(host: &TestHost) -> Result<()> {
    expect(host.session("alice", &["banger", "vm", "list"]))?;
    let program = host.share(&test_program(ADAPTERS)?, ADAPTERS)?;
    let database = |what: &str| -> Result<String> {
        let edit = format!("BANGER_EDIT={what} {program} --ignored --exact records::edit --nocapture");
        let said = expect(host.enter(&["sh", "-c", &edit]))?;
        said.lines().find(|line| line.starts_with("digest ")).map(str::to_owned).context("no digest")
    };
    let before = database("mark")?;
    let files = host.packages(EARLIER)?;
    let output = run_quietly(apt(host, &files))?;
    let said = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    let refusal = said.lines().filter(|line| line.contains("has version 9999")).collect::<Vec<_>>();
    ensure!(refusal.len() == 1 && refusal[0].contains("install the newer banger again"), "{said}");
    ensure!(output.status.success(), "apt fails: {said}");
    ensure!(database("look")? == before, "the older service changed the database");
    database("unmark")?;
    install(host, dist::VERSION)?;
    expect(host.enter(&["systemctl", "restart", "banger-system.service"]))?;
    expect(host.session("alice", &["banger", "vm", "list"])).map(drop)
}

/// Checks that a purge stops sandboxes, and leaves nothing.
pub fn purge(host: &TestHost) -> Result<()> {
    let create = ["banger", "vm", "create", "--quiet", "--memory", "512M", "--name", KEPT];
    expect(host.session("alice", &create))?;
    expect(host.session("alice", &["banger", "vm", "exec", KEPT, "--", "true"]))?;
    purge_packages(host)?;
    let left = expect(host.enter(&script!("level5/leftovers.sh")))?;
    ensure!(left.is_empty(), "the purge left:\n{left}");
    Ok(())
}

fn purge_packages(host: &TestHost) -> Result<()> {
    let purge = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "--yes", "purge"];
    expect(host.enter(&[&purge[..], &["banger", "banger-system"]].concat())).map(drop)
}

/// Checks that a user reaches a command in a sandbox with nothing but the packages.
pub fn first_run(host: &TestHost) -> Result<()> {
    purge_packages(host)?;
    install(host, dist::VERSION)?;
    // The group is a new one.
    expect(host.enter(&["usermod", "-aG", "banger", "alice"]))?;
    let registry = script!(
        "level5/public_registry.sh" uses "wait.sh",
        serve = script_text!("level4/recipe/serve.py"),
    );
    expect(host.enter(&registry))?;
    let output = run_quietly(host.session("alice", &script!("level5/first_run.sh")))?;
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    let os = expect(host.enter(&["grep", "^PRETTY_NAME=", "/etc/os-release"]))?;
    let ran = [&format!("/etc/os-release:{os}"), "/etc/built:PRETTY_NAME=from the recipe"];
    let first = [
        "nothing is there",
        "first run:",
        ran[0],
        ran[1],
        "importing the kernel",
        "building the default image",
    ];
    let expect = [&first[..], &["second run:", ran[0], ran[1]]].concat();
    ensure!(output.status.success(), "{}: {said}\n{errors}", output.status);
    ensure!(said.lines().collect::<Vec<_>>() == expect, "{said}\n{errors}");
    Ok(())
}

/// Installs the packages of a version, which may be older than those that are installed.
fn install(host: &TestHost, version: &str) -> Result<()> {
    expect(apt(host, &host.packages(version)?)).map(drop)
}

fn apt(host: &TestHost, files: &[String]) -> Command {
    let mut words: Vec<&str> = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "--yes"];
    words.extend(["-o=Dpkg::Use-Pty=0", "--allow-downgrades", "install"]);
    words.extend(files.iter().map(String::as_str));
    host.enter(&words)
}

fn version(host: &TestHost) -> Result<String> {
    expect(host.enter(&["dpkg-query", "--show", "--showformat", "${Version}", "banger-system"]))
}

/// What tells one run of the service, a VMM and a guest from another.
struct Seen {
    service: String,
    vmm: String,
    boot: String,
}

impl Seen {
    fn of(host: &TestHost) -> Result<Self> {
        let boot = ["banger", "vm", "exec", KEPT, "--", "cat", "/proc/sys/kernel/random/boot_id"];
        let boot = expect(host.session("alice", &boot))?;
        let service =
            expect(host.enter(&["systemctl", "show", "--property=MainPID", "banger-system.service"]))?;
        ensure!(!service.ends_with("=0"), "the service does not run");
        Ok(Self { service, vmm: expect(host.enter(&["pgrep", "qemu-system"]))?, boot })
    }
}

/// A command in the guest that repeats its input, over a stream that stays open.
struct OpenCommand {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl OpenCommand {
    fn start(host: &TestHost) -> Result<Self> {
        let mut exec = host.session("alice", &["banger", "vm", "exec", KEPT, "--", "cat"]);
        let mut child = exec
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ssh")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let mut command = Self {
            child,
            input: input.context("no input")?,
            output: BufReader::new(output.context("no output")?),
        };
        command.repeats("before")?;
        Ok(command)
    }

    /// Checks that a line comes back.
    fn repeats(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("the command takes no input")?;
        let mut repeated = String::new();
        self.output.read_line(&mut repeated).context("the command gives no output")?;
        ensure!(repeated.trim() == line, "the command repeats {repeated:?}, not {line:?}");
        Ok(())
    }

    /// Checks that it still repeats its input, and ends with it.
    fn finish(mut self) -> Result<()> {
        self.repeats("after")?;
        drop(self.input);
        let status = self.child.wait().context("cannot wait for ssh")?;
        ensure!(status.success(), "the command ended with {status}");
        Ok(())
    }
}
