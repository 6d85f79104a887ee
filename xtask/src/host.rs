//! The private host: systemd as the first process of new namespaces, on an overlay of the developer's file system,
//! with banger installed as a package would install it.
//!
//! It has its own D-Bus, polkit, logind and users, and changes nothing outside. Its writes stay in memory, except
//! those to `/var/lib/banger`, which is kept until the next `up --fresh`.

use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sha2::{Digest, Sha256};

use crate::{
    build::{self, install},
    packages,
    run::{cache, command, hex, repository, run, say, target},
    wait::{Polling, wait_until},
};

/// How long systemd may take to start or to end.
const POLLING: Polling = Polling { limit: Duration::from_secs(180), interval: Duration::from_millis(50) };
/// Where the private host finds the files that xtask makes, read-only and for root alone.
const CACHE: &str = "/srv/xtask/cache";

/// Arguments of `cargo xtask host up`.
#[derive(Parser, Default)]
pub struct Up {
    /// Start without sandboxes, images and kernels
    #[arg(long)]
    pub fresh: bool,
    /// Install release builds, which take longer to build
    #[arg(long)]
    pub release: bool,
    /// The number of a private host of this checkout; the command line uses 0.
    #[arg(skip)]
    pub number: usize,
}

/// Arguments of `cargo xtask host exec`.
#[derive(Parser)]
pub struct Exec {
    /// Run the command as this user: alice and bob are in the group banger, carol is in none, dave may use sudo
    #[arg(long, default_value = "root")]
    pub user: String,
    /// Use a local desktop session instead of a remote one
    #[arg(long)]
    pub seat: bool,
    /// Command to run
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// A running private host.
pub struct Host {
    /// The pid of its systemd, in the outer pid namespace.
    init: u32,
}

/// How many private hosts a checkout may have at once.
pub const HOSTS: usize = 2;

/// Starts the host, or updates the programs of a running one.
pub fn up(arguments: &Up) -> Result<Host> {
    ensure!(rustix::process::geteuid().is_root(), "the private host needs root, to create namespaces");
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
            say("updating the private host");
            let reload = "systemctl daemon-reload && systemctl try-restart banger-system.service";
            run(&mut host.enter(&["sh", "-c", reload]))?;
        }
        return Ok(host);
    }
    say("starting the private host");
    fs::create_dir_all(directory.join("state"))
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let staging = directory.join("install");
    remove(&staging)?;
    install::into(&staging, &programs)?;
    let log = fs::File::create(directory.join("log"))?;
    let mut namespaces = command("setsid", ["unshare", "--fork", "--kill-child"]);
    namespaces.args(["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--propagation", "private"]);
    // Sets the host up inside its namespaces and becomes its systemd.
    namespaces.args(script!(
        "host/setup.sh",
        directory = directory.display(),
        cache = cache().display(),
        inside = CACHE,
        resolved = packages::resolved()?.display(),
    ));
    let launch = script!("host/launch.sh", directory = directory.display());
    let mut launcher = command(&launch[0], &launch[1..]);
    launcher.arg(enter_cgroup(&directory)?).arg(namespaces.get_program()).args(namespaces.get_args());
    launcher.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("cannot start")?;

    let has_logind = |host: &Host| {
        let mut status = host.enter(&["busctl", "--quiet", "status", "org.freedesktop.login1"]);
        status.stderr(Stdio::null()).output().is_ok_and(|output| output.status.success())
    };
    let started = wait_until("logind", POLLING, || Ok(find(number).filter(has_logind)));
    started.with_context(|| {
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        format!("the private host does not start:\n{log}")
    })
}

/// Writes a script that moves itself into the host's cgroup and then executes its arguments.
fn enter_cgroup(directory: &Path) -> Result<PathBuf> {
    let script = directory.join("enter-cgroup");
    let cgroup = cgroup(directory);
    fs::create_dir_all(&cgroup).with_context(|| format!("cannot create {}", cgroup.display()))?;
    let text = format!("#!/bin/sh\necho $$ > {}/cgroup.procs\nexec \"$@\"\n", cgroup.display());
    fs::write(&script, text)?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(script)
}

/// Returns the directory of the host's cgroup, where cgroup2 is mounted alone or beside cgroup1.
fn cgroup(directory: &Path) -> PathBuf {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    let base = if hybrid.is_dir() { hybrid } else { Path::new("/sys/fs/cgroup") };
    // Each clone of the repository has a private host of its own.
    base.join(format!("banger-private-host-{}", short_digest(directory)))
}

/// Stops all private hosts of this checkout with everything in them.
pub fn down() -> Result<()> {
    (0..HOSTS).try_for_each(end)
}

fn end(number: usize) -> Result<()> {
    if let Some(host) = find(number) {
        say("stopping the private host");
        // When its first process ends, the kernel kills all others.
        run(&mut command("kill", ["-KILL", &host.init.to_string()]))?;
        let process = PathBuf::from(format!("/proc/{}", host.init));
        wait_until("the end of the private host", POLLING, || Ok((!process.exists()).then_some(())))?;
    }
    // systemd made a tree of groups below; the deepest must go first.
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

/// Prints whether the host is running.
pub fn status() -> Result<()> {
    match find(0) {
        Some(host) => println!("up, its systemd is process {}", host.init),
        None => println!("down"),
    }
    Ok(())
}

/// Runs a command in a session of a user.
pub fn exec(arguments: &Exec) -> Result<ExitCode> {
    let host = up(&Up::default())?;
    let status =
        host.session(&arguments.user, arguments.seat, &arguments.command)?.status().context("cannot run")?;
    Ok(exit_code(status))
}

/// Runs a root shell in the host.
pub fn shell() -> Result<ExitCode> {
    let host = up(&Up::default())?;
    Ok(exit_code(host.enter(&["bash", "-l"]).status().context("cannot run")?))
}

/// Converts the status of a program into an exit code of xtask.
pub fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(u8::try_from(code.unwrap_or(1)).unwrap_or(1))
}

impl Host {
    /// Returns a command that runs in the host as root, outside any session.
    pub fn enter<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
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
        enter.args(arguments.iter().map(AsRef::as_ref));
        enter
    }

    /// Returns a command that runs in a logind session of a user.
    pub fn session<S: AsRef<str>>(&self, user: &str, seat: bool, arguments: &[S]) -> Result<Command> {
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let user_property = format!("User={user}");
        let mut words = vec!["systemd-run", "--quiet", "--collect", "--wait"];
        words.push(if terminal { "--pty" } else { "--pipe" });
        words.extend(["-p", &user_property, "-p", "PAMName=login", "-p", "WorkingDirectory=~"]);
        if seat {
            words.extend(["-p", "Environment=XDG_SEAT=seat0 XDG_VTNR=1"]);
        }
        words.push("--");
        // systemd would expand variables otherwise.
        let literal: Vec<String> = arguments.iter().map(|word| word.as_ref().replace('$', "$$")).collect();
        words.extend(literal.iter().map(String::as_str));
        Ok(self.enter(&words))
    }
}

/// Returns the path in the host of a file in the cache of xtask.
pub fn inside(file: &Path) -> Result<PathBuf> {
    let below =
        file.strip_prefix(cache()).context("the private host sees only files in the cache of xtask")?;
    Ok(Path::new(CACHE).join(below))
}

/// Returns the directory with the files of a host. Checkouts may share a target directory, but never a host.
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

/// Returns eight hexadecimal digits that identify a path.
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

/// Finds the running host: the first process in the launcher's namespaces, once that is systemd.
fn find(number: usize) -> Option<Host> {
    let directory = directory(number);
    let launcher = fs::read_to_string(directory.join("launcher")).ok()?;
    let launcher = launcher.trim();
    // A copied checkout has the pid of the other one's launcher, and a pid may have been reused.
    let words = fs::read(format!("/proc/{launcher}/cmdline")).ok()?;
    if !is_launched_for(&words, &directory) {
        return None;
    }
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).ok()?;
    let init: u32 = children.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
    (name.trim() == "systemd").then_some(Host { init })
}

/// Returns whether this command line launches the host of this directory.
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
