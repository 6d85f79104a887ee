//! The private host: systemd as the first process of namespaces of its own, on an overlay of this machine's
//! file system, with banger installed as a package would install it.
//!
//! It has a D-Bus, polkit, logind and users of its own, and changes nothing of this machine: what is written
//! in it stands in memory, but for `/var/lib/banger`, which stays until the next `up --fresh`.

use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use sha2::{Digest, Sha256};

use crate::{
    build, install, packages,
    run::{cache, command, hex, repository, run, say, target},
};

/// How long systemd may take to come up.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Where the host sees what xtask has made, read-only and for root alone.
const CACHE: &str = "/srv/xtask/cache";
/// Sets the host up inside its namespaces and becomes its systemd.
const SETUP: &str = include_str!("host.sh");

/// What `cargo xtask host up` takes.
#[derive(Parser, Default)]
pub struct Up {
    /// Begin with nothing: no machines, no images, no kernels
    #[arg(long)]
    pub fresh: bool,
    /// With the programs as they are shipped, which take longer to build
    #[arg(long)]
    pub release: bool,
    /// Which of the hosts of this checkout; 0 is the one that the command line means.
    #[arg(skip)]
    pub number: usize,
}

/// What `cargo xtask host exec` takes.
#[derive(Parser)]
pub struct Exec {
    /// The user: alice and bob are in the group banger, carol is in none, dave may use sudo
    #[arg(long, default_value = "root")]
    pub user: String,
    /// In a session at the desktop instead of one from afar
    #[arg(long)]
    pub seat: bool,
    /// The command
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// A private host that is up.
pub struct Host {
    /// Its systemd, as this machine numbers it.
    init: u32,
}

/// How many hosts a checkout may have at once.
pub const HOSTS: usize = 2;

/// Starts the host, or brings the one that is up to date.
pub fn up(arguments: &Up) -> Result<Host> {
    ensure!(rustix::process::geteuid().is_root(), "the private host needs root: its namespaces do");
    packages::ensure()?;
    let programs = if arguments.release { build::release()? } else { build::ensure()? };
    let number = arguments.number;
    let directory = directory(number);
    if arguments.fresh {
        end(number)?;
        remove(&directory.join("state"))?;
    }
    if let Some(host) = find(number) {
        let root = PathBuf::from(format!("/proc/{}/root", host.init));
        if install::into(&root, &programs)? {
            say("bringing the private host up to date");
            let reload = "systemctl daemon-reload && systemctl try-restart banger-system.service";
            run(&mut host.enter(&["sh", "-c", reload]))?;
        }
        return Ok(host);
    }
    say("starting the private host");
    fs::create_dir_all(directory.join("state"))
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let staging = directory.join("install");
    remove(&staging)?;
    install::into(&staging, &programs)?;
    let log = fs::File::create(directory.join("log"))?;
    let mut namespaces = command("setsid", ["unshare", "--fork", "--kill-child"]);
    namespaces.args(["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--propagation", "private"]);
    namespaces.args(["sh", "-eu", "-c", SETUP, "host"]).arg(&directory).arg(cache()).arg(CACHE);
    namespaces.arg(packages::resolved()?);
    // The host goes on after us, and must not hold open what we were started with.
    let launch = "
        for fd in $(ls /proc/self/fd); do if [ \"$fd\" -gt 2 ]; then eval \"exec $fd>&-\"; fi; done
        echo $$ > \"$0/launcher\"
        exec \"$@\"";
    let mut launcher = command("bash", ["-c", launch]);
    launcher
        .arg(&directory)
        .arg(enter_cgroup(&directory)?)
        .arg(namespaces.get_program())
        .args(namespaces.get_args());
    launcher.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("cannot start")?;

    let deadline = Instant::now() + BOOT_TIMEOUT;
    loop {
        if let Some(host) = find(number)
            && host
                .enter(&["busctl", "--quiet", "status", "org.freedesktop.login1"])
                .stderr(Stdio::null())
                .output()
                .is_ok_and(|o| o.status.success())
        {
            return Ok(host);
        }
        if Instant::now() > deadline {
            let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
            bail!("the private host does not come up:\n{log}");
        }
        thread::sleep(POLL);
    }
}

/// A program that moves itself into a cgroup of the host's own and goes on as what it is given.
fn enter_cgroup(directory: &Path) -> Result<PathBuf> {
    let script = directory.join("enter-cgroup");
    let cgroup = cgroup(directory);
    fs::create_dir_all(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
    let text = format!("#!/bin/sh\necho $$ > {}/cgroup.procs\nexec \"$@\"\n", cgroup.display());
    fs::write(&script, text)?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(script)
}

/// Where the second version of cgroups is mounted: alone, or beside the first.
fn cgroup(directory: &Path) -> PathBuf {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    let base = if hybrid.is_dir() { hybrid } else { Path::new("/sys/fs/cgroup") };
    // Each clone of the repository has a private host of its own.
    base.join(format!("banger-private-host-{}", short_digest(directory)))
}

/// Ends all hosts of this checkout with everything in them.
pub fn down() -> Result<()> {
    (0..HOSTS).try_for_each(end)
}

fn end(number: usize) -> Result<()> {
    if let Some(host) = find(number) {
        say("ending the private host");
        // Its first process takes every other one with it.
        run(&mut command("kill", ["-KILL", &host.init.to_string()]))?;
        let deadline = Instant::now() + BOOT_TIMEOUT;
        while Path::new(&format!("/proc/{}", host.init)).exists() {
            ensure!(Instant::now() < deadline, "the private host does not end");
            thread::sleep(POLL);
        }
    }
    // systemd made a tree of its own below; the deepest go first.
    let cgroup = cgroup(&directory(number));
    if cgroup.is_dir() {
        let find = command("find", ["-depth", "-type", "d", "-delete"])
            .current_dir(&cgroup)
            .stderr(Stdio::null())
            .status();
        find.context("cannot run find")?;
        let _ = fs::remove_dir(&cgroup);
    }
    Ok(())
}

/// Says whether the host is up.
pub fn status() -> Result<()> {
    match find(0) {
        Some(host) => println!("up, its systemd is process {}", host.init),
        None => println!("down"),
    }
    Ok(())
}

/// Runs a command as a user, in a session of that user.
pub fn exec(arguments: &Exec) -> Result<ExitCode> {
    let host = up(&Up::default())?;
    let status =
        host.session(&arguments.user, arguments.seat, &arguments.command)?.status().context("cannot run")?;
    Ok(exit_code(status))
}

/// A shell.
pub fn shell() -> Result<ExitCode> {
    let host = up(&Up::default())?;
    Ok(exit_code(host.enter(&["bash", "-l"]).status().context("cannot run")?))
}

/// The status of a program as this one's own.
pub fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(u8::try_from(code.unwrap_or(1)).unwrap_or(1))
}

impl Host {
    /// A command in the host as its root, outside of any session.
    pub fn enter(&self, arguments: &[&str]) -> Command {
        let target = self.init.to_string();
        let mut enter =
            command("nsenter", ["-t", &target, "-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w", "--"]);
        enter.args([
            "env",
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
        ]);
        if let Ok(term) = std::env::var("TERM") {
            enter.arg(format!("TERM={term}"));
        }
        enter.args(arguments);
        enter
    }

    /// A command in a session of a user, as logind sees it.
    pub fn session(&self, user: &str, seat: bool, arguments: &[String]) -> Result<Command> {
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let user_property = format!("User={user}");
        let mut words = vec!["systemd-run", "--quiet", "--collect", "--wait"];
        words.push(if terminal { "--pty" } else { "--pipe" });
        words.extend(["-p", &user_property, "-p", "PAMName=login", "-p", "WorkingDirectory=~"]);
        if seat {
            words.extend(["-p", "Environment=XDG_SEAT=seat0 XDG_VTNR=1"]);
        }
        words.push("--");
        // What systemd would take for a variable of its own.
        let literal: Vec<String> = arguments.iter().map(|word| word.replace('$', "$$")).collect();
        words.extend(literal.iter().map(String::as_str));
        Ok(self.enter(&words))
    }
}

/// The path in the host of a file that xtask has made.
pub fn inside(file: &Path) -> Result<PathBuf> {
    let below = file.strip_prefix(cache()).context("the private host sees nothing else of this machine")?;
    Ok(Path::new(CACHE).join(below))
}

/// Where a host of this checkout keeps its files. Checkouts may share a target directory, but never a host.
fn directory(number: usize) -> PathBuf {
    let repository = repository();
    let name = match target().starts_with(&repository) {
        true => "host".to_owned(),
        false => format!("host-{}", short_digest(&repository)),
    };
    match number {
        0 => cache().join(name),
        number => cache().join(format!("{name}.{number}")),
    }
}

/// Eight digits by which a path is told from others.
fn short_digest(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    hex(&digest[..4])
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The host that is up: the first process of the namespaces that the launcher made, once it is systemd.
fn find(number: usize) -> Option<Host> {
    let directory = directory(number);
    let launcher = fs::read_to_string(directory.join("launcher")).ok()?;
    let launcher = launcher.trim();
    // A copied checkout has the number of another one's launcher, and a number may be somebody else's by now.
    let words = fs::read(format!("/proc/{launcher}/cmdline")).ok()?;
    if !is_launched_for(&words, &directory) {
        return None;
    }
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).ok()?;
    let init: u32 = children.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
    (name.trim() == "systemd").then_some(Host { init })
}

/// Whether the words of a process are those by which the host of this directory is launched.
fn is_launched_for(words: &[u8], directory: &Path) -> bool {
    words.split(|byte| *byte == 0).any(|word| word == directory.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_another_checkout_is_not_ours() {
        let words = b"unshare\0--fork\0sh\0-eu\0-c\0setup\0host\0/a/target/banger/host\0/a/target/banger\0";
        assert!(is_launched_for(words, Path::new("/a/target/banger/host")));
        for other in ["/b/target/banger/host", "/a/target/banger/hos", "/target/banger/host"] {
            assert!(!is_launched_for(words, Path::new(other)), "{other}");
        }
        assert!(!is_launched_for(b"", Path::new("/a/target/banger/host")));
    }
}
