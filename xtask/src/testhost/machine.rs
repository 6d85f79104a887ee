//! The machine of the test host: QEMU, which translates every instruction, so that it needs nothing of this
//! machine's processor and gives the host one that has virtualisation.
//!
//! It boots once. Then its memory is written to a file, and each later start reads that and goes on from there;
//! what is written to the disk meanwhile is forgotten at the end.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::root::Root;
use crate::run::command;

pub const QEMU: &str = "qemu-system-x86_64";
/// Without la57 the processor's virtualisation works; see docs/testing.md.
const HARDWARE: [&str; 14] = [
    "-nodefaults",
    "-no-user-config",
    "-M",
    "q35",
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "max,la57=off",
    "-smp",
    "2",
    "-m",
    "4096M",
    "-display",
    "none",
];
const COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 quiet no_timer_check systemd.show_status=false";
/// Writing or reading the memory, and the answers of the monitor.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// What decides whether a saved memory fits.
pub fn recipe() -> String {
    format!("{HARDWARE:?} {COMMAND_LINE}")
}

/// How the machine begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// It boots, and what it writes stays.
    Boot,
    /// It goes on from the saved moment, and what it writes is forgotten.
    Restore,
}

/// A QEMU that runs.
pub struct Machine {
    directory: PathBuf,
}

impl Machine {
    /// The machine whose QEMU was started in this directory, if it runs.
    pub fn find(directory: &Path) -> Option<Self> {
        let machine = Self { directory: directory.to_path_buf() };
        let pid = machine.pid().ok()?;
        // One that has ended and was not yet waited for has no words any more.
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        words.starts_with(QEMU).then_some(machine)
    }

    /// Starts QEMU. When this returns, the machine runs.
    pub fn start(root: &Root, directory: &Path, begin: Begin) -> Result<Self> {
        fs::create_dir_all(directory.join("share"))
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let machine = Self { directory: directory.to_path_buf() };
        let port = free_port()?;
        fs::write(machine.directory.join("port"), port.to_string())?;
        let log = File::create(machine.directory.join("log"))?;
        // In a session of its own: it goes on when xtask ends.
        let mut qemu = command("setsid", [QEMU]);
        qemu.current_dir(directory).args(HARDWARE);
        machine.add_devices(&mut qemu, root, port, begin);
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start QEMU")?;
        fs::write(machine.directory.join("pid"), child.id().to_string())?;

        let mut monitor = loop {
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(machine.directory.join("log")).unwrap_or_default();
                bail!("QEMU ended ({status}): {log}");
            }
            match Monitor::connect(&machine.directory) {
                Ok(monitor) => break monitor,
                Err(_) => thread::sleep(POLL),
            }
        };
        if begin == Begin::Restore {
            monitor.wait_for("query-status", "status", "paused")?;
            monitor.ask("cont", &json!({}))?;
        }
        Ok(machine)
    }

    fn add_devices(&self, qemu: &mut Command, root: &Root, port: u16, begin: Begin) {
        qemu.arg("-kernel").arg(root.kernel()).arg("-initrd").arg(root.initramfs());
        qemu.args(["-append", COMMAND_LINE, "-serial", "file:console"]);
        qemu.args(["-qmp", "unix:monitor,server=on,wait=off"]);
        let snapshot = if begin == Begin::Restore { "on" } else { "off" };
        let disk = root.disk().display().to_string();
        qemu.args([
            "-drive",
            &format!("file={disk},format=raw,if=none,id=root,cache=unsafe,snapshot={snapshot}"),
        ]);
        qemu.args(["-device", "virtio-blk-pci,drive=root"]);
        // Reachable from this machine alone.
        qemu.args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22")]);
        qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        qemu.args(["-device", "virtio-rng-pci"]);
        qemu.args(["-fsdev", "local,id=share,path=share,security_model=none,readonly=on"]);
        qemu.args(["-device", "virtio-9p-pci,fsdev=share,mount_tag=host"]);
        if begin == Begin::Restore {
            qemu.arg("-incoming").arg(format!("exec:cat '{}'", root.memory().display()));
        }
    }

    /// Writes the memory of the machine, which has to have booted, and ends it.
    pub fn save(self, root: &Root) -> Result<()> {
        let unfinished = root.memory().with_extension("new");
        let mut monitor = Monitor::connect(&self.directory)?;
        monitor.ask("stop", &json!({}))?;
        monitor.ask("migrate-set-parameters", &json!({ "max-bandwidth": 1u64 << 40 }))?;
        monitor.ask("migrate", &json!({ "uri": format!("exec:cat > '{}'", unfinished.display()) }))?;
        monitor.wait_for("query-migrate", "status", "completed")?;
        drop(monitor);
        self.end()?;
        fs::rename(unfinished, root.memory()).context("cannot keep the memory of the test host")
    }

    /// Ends the machine as if its power were cut.
    pub fn end(self) -> Result<()> {
        let pid = self.pid()?;
        if let Ok(mut monitor) = Monitor::connect(&self.directory) {
            // It may be gone before it answers.
            let _ = monitor.ask("quit", &json!({}));
        }
        let deadline = Instant::now() + PATIENCE;
        while Self::find(&self.directory).is_some() {
            ensure!(Instant::now() < deadline, "QEMU (process {pid}) does not end");
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// QEMU's process.
    pub fn pid(&self) -> Result<u32> {
        let text = fs::read_to_string(self.directory.join("pid")).context("QEMU was not started")?;
        text.trim().parse().context("the number of QEMU's process is damaged")
    }

    /// The port of this machine that leads to the host's SSH server.
    pub fn port(&self) -> Result<u16> {
        let text = fs::read_to_string(self.directory.join("port")).context("the host has no port")?;
        text.trim().parse().context("the number of the host's port is damaged")
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("there is no free port")?;
    Ok(listener.local_addr()?.port())
}

/// QEMU's monitor, which speaks JSON in lines.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(directory: &Path) -> Result<Self> {
        // A socket's address is short, and a clone of the repository may be deep.
        let here = File::open(directory)?;
        let address = format!("/proc/self/fd/{}/monitor", std::os::fd::AsRawFd::as_raw_fd(&here));
        let stream = UnixStream::connect(address).context("QEMU's monitor does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self { stream: BufReader::new(stream) };
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Has a command done and returns the answer.
    fn ask(&mut self, what: &str, arguments: &Value) -> Result<Value> {
        let message = json!({ "execute": what, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{message}").with_context(|| format!("cannot ask QEMU to {what}"))?;
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line);
            ensure!(read.with_context(|| format!("QEMU does not answer {what}"))? > 0, "QEMU has gone");
            let answer: Value = serde_json::from_str(&line).context("QEMU speaks nonsense")?;
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses to {what}: {error}");
            }
            // The greeting, or an event.
        }
    }

    /// Asks again and again until the answer's `key` is `value`.
    fn wait_for(&mut self, question: &str, key: &str, value: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(question, &json!({}))?;
            match answer.get(key).and_then(Value::as_str) {
                Some(is) if is == value => return Ok(()),
                Some("failed") => bail!("QEMU says to {question}: {answer}"),
                is => ensure!(Instant::now() < deadline, "QEMU's {question} stays at {is:?}"),
            }
            thread::sleep(POLL);
        }
    }
}
