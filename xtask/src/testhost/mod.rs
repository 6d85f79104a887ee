//! The test host: a full Debian system under QEMU, with everything that the developer's kernel may lack, such as
//! device-mapper and virtualisation.
//!
//! Each start restores the memory that was saved after the first boot. Banger is installed from its package, as on a
//! user's host.

mod machine;
mod root;

use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use self::{
    machine::{Begin, Machine},
    root::Root,
};
use crate::{
    build, dist,
    host::exit_code,
    run::{cache, digest_of, run, say},
    wait::{Polling, wait_until},
};

/// How long the first boot may take. There is one for each change of the packages.
const BOOT_TIMEOUT: Duration = Duration::from_secs(900);
/// How long a restored host may take to answer.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(100);
/// Where the host finds the files of [`TestHost::share`].
const SHARE: &str = "/host";

/// Commands of `cargo xtask testhost`.
#[derive(Subcommand)]
pub enum Task {
    /// Start the host, or update the package in a running one
    Up(Up),
    /// Stop the host and discard what was written in it
    Down,
    /// Run a command in the host and exit with its status
    Exec(Exec),
    /// Open a root shell in the host
    Shell,
    /// Show whether the host is running
    Status,
}

/// Arguments of `cargo xtask testhost up`.
#[derive(Parser, Default)]
pub struct Up {
    /// Start without sandboxes, images and kernels
    #[arg(long)]
    pub fresh: bool,
    /// Do not install banger
    #[arg(long)]
    pub bare: bool,
}

/// Arguments of `cargo xtask testhost exec`.
#[derive(Parser)]
pub struct Exec {
    /// Run the command as this user: alice and bob are in the group banger, carol is in none, dave may use sudo
    #[arg(long, default_value = "root")]
    pub user: String,
    /// Command to run
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// A running test host.
pub struct TestHost {
    root: Root,
    machine: Machine,
}

/// Runs a command of `cargo xtask testhost`.
pub fn dispatch(task: Task) -> Result<ExitCode> {
    match task {
        Task::Up(arguments) => drop(up(&arguments)?),
        Task::Down => down()?,
        Task::Exec(arguments) => return exec(&arguments),
        Task::Shell => return shell(),
        Task::Status => match Machine::find(&directory()) {
            Some(machine) => println!("up, QEMU is process {}", machine.pid()?),
            None => println!("down"),
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the host, or updates the package in a running one.
pub fn up(arguments: &Up) -> Result<TestHost> {
    let root = root::ensure(&directory())?;
    if arguments.fresh {
        down()?;
    }
    let host = match Machine::find(&directory()) {
        Some(machine) => TestHost { root, machine },
        None => {
            if !root.memory().exists() {
                boot_and_save(&root)?;
            }
            say("starting the test host");
            let machine = Machine::start(&root, &directory(), Begin::Restore)?;
            let host = TestHost { root, machine };
            host.wait_until_it_answers(RESTORE_TIMEOUT)?;
            host.prepare()?;
            host
        }
    };
    if !arguments.bare {
        host.install()?;
    }
    Ok(host)
}

/// Stops the host.
pub fn down() -> Result<()> {
    if let Some(machine) = Machine::find(&directory()) {
        say("stopping the test host");
        machine.end()?;
    }
    Ok(())
}

/// Whether the kernel of the host says that its processors do not get on. QEMU's translator does that to guests with
/// several processors at times, and then nothing answers any more.
pub fn stands_still() -> bool {
    let console = fs::read(directory().join("console")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    ["soft lockup", "rcu_preempt self-detected stall"].iter().any(|sign| console.contains(sign))
}

/// Runs a command in a session of a user.
fn exec(arguments: &Exec) -> Result<ExitCode> {
    let host = up(&Up::default())?;
    let mut command = match arguments.user.as_str() {
        "root" => host.enter(&arguments.command),
        user => host.session(user, &arguments.command),
    };
    Ok(exit_code(command.status().context("cannot run ssh")?))
}

/// Runs a root shell in the host.
fn shell() -> Result<ExitCode> {
    let host = up(&Up::default())?;
    Ok(exit_code(host.enter(&["bash", "-l"]).status().context("cannot run ssh")?))
}

/// Boots the host for the first time and saves its memory.
fn boot_and_save(root: &Root) -> Result<()> {
    say("booting the test host for the first time");
    let machine = Machine::start(root, &directory(), Begin::Boot)?;
    let host = TestHost { root: Root { directory: root.directory.clone() }, machine };
    host.wait_until_it_answers(BOOT_TIMEOUT)?;
    // A failed unit of Debian's does not matter here. Start the services now that every test uses.
    let settle = "systemctl is-system-running --wait || systemctl --failed --no-legend
        systemctl start polkit.service systemd-logind.service && sync";
    run(&mut host.enter(&["sh", "-c", settle]))?;
    host.close_connection();
    say("saving the memory of the test host");
    host.machine.save(root)
}

impl TestHost {
    /// Returns a command that runs in the host as root, outside any session.
    pub fn enter<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
        let mut ssh = self.ssh();
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            ssh.arg("-t");
        }
        // ssh passes one line to a shell on the other side.
        let line: Vec<String> = arguments.iter().map(|argument| quoted(argument.as_ref())).collect();
        ssh.args(["root@test-host", "--"]).arg(line.join(" "));
        ssh
    }

    /// Returns a command that runs in a logind session of a user.
    pub fn session<S: AsRef<str>>(&self, user: &str, arguments: &[S]) -> Command {
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let user = format!("User={user}");
        let mut words = vec!["systemd-run", "--quiet", "--collect", "--wait"];
        words.push(if terminal { "--pty" } else { "--pipe" });
        words.extend(["-p", &user, "-p", "PAMName=login", "-p", "WorkingDirectory=~", "--"]);
        words.extend(arguments.iter().map(AsRef::as_ref));
        self.enter(&words)
    }

    /// Copies a file to the host under this name, and returns its path there.
    pub fn share(&self, file: &Path, name: &str) -> Result<String> {
        let shared = directory().join("share").join(name);
        fs::copy(file, &shared).with_context(|| format!("cannot copy {}", file.display()))?;
        Ok(format!("{SHARE}/{name}"))
    }

    /// Reboots the host and waits until it answers.
    pub fn reboot(&self) -> Result<()> {
        let boot = || crate::run::output(&mut self.enter(&["cat", "/proc/sys/kernel/random/boot_id"]));
        let before = boot()?;
        // The connection ends while the command runs.
        let _ = self.enter(&["systemctl", "reboot"]).status();
        self.close_connection();
        wait_until("the reboot of the test host", polling(BOOT_TIMEOUT), || {
            self.wait_until_it_answers(BOOT_TIMEOUT)?;
            // An old boot is still shutting down.
            Ok(boot().ok().filter(|now| *now != before))
        })?;
        self.prepare()
    }

    /// Imports a shared kernel and a shared image, under the service's default names.
    pub fn provide(&self) -> Result<()> {
        say("importing a kernel and an image in the test host");
        run(&mut self.enter(&script!("testhost/provide.sh")))
    }

    /// Returns an ssh command. All commands share one connection, because a new one takes a second of emulation.
    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        // The path of a socket is limited to 108 bytes, and that of a checkout may be longer.
        ssh.current_dir(directory()).args(["-F", "none", "-S", "ssh"]);
        for option in ["BatchMode=yes", "LogLevel=ERROR", "HostKeyAlias=test-host", "HostName=127.0.0.1"] {
            ssh.args(["-o", option]);
        }
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", self.root.known_hosts().display()));
        ssh.arg("-i").arg(self.root.key());
        ssh.arg("-p").arg(self.machine.port().unwrap_or_default().to_string());
        ssh
    }

    fn wait_until_it_answers(&self, timeout: Duration) -> Result<()> {
        let _ = fs::remove_file(directory().join("ssh"));
        let answered = wait_until("an answer of sshd", polling(timeout), || {
            // The connection stays in the background, with none of our descriptors. Keepalives end
            // it when the kernel has panicked.
            let mut ssh = self.ssh();
            ssh.args(["-M", "-N", "-f", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=30"]);
            ssh.args(["-o", "ServerAliveCountMax=4", "root@test-host"]);
            ssh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let answers = ssh.status().context("cannot run ssh")?.success();
            ensure!(answers || Machine::find(&directory()).is_some(), "QEMU has ended");
            Ok(answers.then_some(()))
        });
        answered.with_context(|| {
            let log = fs::read_to_string(directory().join("log")).unwrap_or_default();
            format!("the test host does not answer; see {}/console\n{log}", directory().display())
        })
    }

    fn close_connection(&self) {
        let mut ssh = self.ssh();
        ssh.args(["-O", "exit", "root@test-host"]).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = ssh.status();
    }

    /// Sets what differs between two starts: the time, and the shared files.
    fn prepare(&self) -> Result<()> {
        let _ = fs::remove_file(directory().join("installed"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let set = format!("date --set=@{:.3} > /dev/null && systemctl start host.mount", now.as_secs_f64());
        run(&mut self.enter(&["sh", "-c", &set]))
    }

    /// Builds the packages of the client and the service under a version, and returns their paths in the host.
    pub fn packages(&self, version: &str) -> Result<Vec<String>> {
        let packages = build_packages(version)?;
        let names = packages.iter().filter_map(|package| package.file_name());
        Ok(names.map(|name| format!("{SHARE}/{}", name.display())).collect())
    }

    /// Builds and installs the packages, unless the same ones are installed.
    fn install(&self) -> Result<()> {
        let packages = build_packages(dist::VERSION)?;
        let installed = directory().join("installed");
        let digest = packages.iter().map(|package| digest_of(package)).collect::<Result<String>>()?;
        if fs::read_to_string(&installed).is_ok_and(|of_installed| of_installed == digest) {
            return Ok(());
        }
        say("installing banger in the test host");
        let options = ["-qq", "-o=Dpkg::Use-Pty=0", "--yes", "--reinstall", "install"];
        let mut install = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
        install.extend(options);
        let names = packages.iter().filter_map(|package| package.file_name());
        let files: Vec<String> = names.map(|name| format!("{SHARE}/{}", name.display())).collect();
        install.extend(files.iter().map(String::as_str));
        run(&mut self.enter(&install))?;
        Ok(fs::write(installed, digest)?)
    }
}

fn build_packages(version: &str) -> Result<Vec<PathBuf>> {
    dist::for_test_host(&build::ensure()?, &directory().join("share"), version)
}

fn polling(limit: Duration) -> Polling {
    Polling { limit, interval: POLL }
}

fn directory() -> PathBuf {
    cache().join("testhost")
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::run::command;

    #[test]
    fn words_come_through_a_shell_as_they_are() {
        for word in ["", "plain", "two words", "it's", "$HOME `id` \\", "line\nbreak", "'"] {
            let script = format!("printf %s {}", quoted(word));
            let output = command("sh", ["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
