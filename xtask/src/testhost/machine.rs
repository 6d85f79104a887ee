//! The virtual hardware of the test host: QEMU with emulation, which works on any processor and gives the test host one
//! with virtualisation.
//!
//! It boots once. Then its memory is saved to a file, and each later start restores it. Later writes to the disk are
//! discarded when it stops.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::root::Root;
use crate::{
    run::command,
    wait::{Polling, wait_until},
};

pub const QEMU: &str = "qemu-system-x86_64";
/// The hardware. Virtualisation only works without la57; see docs/testing.md.
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
/// How long QEMU may take to save or restore the memory, or to answer a QMP command.
const POLLING: Polling = Polling { limit: Duration::from_secs(300), interval: Duration::from_millis(20) };

/// Describes everything that a saved memory depends on.
pub fn recipe() -> String {
    format!("{HARDWARE:?} {COMMAND_LINE}")
}

/// How QEMU starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Boot, and keep what is written.
    Boot,
    /// Restore the saved memory, and discard what is written.
    Restore,
}

/// A running QEMU.
pub struct Machine {
    directory: PathBuf,
}

impl Machine {
    /// Returns the QEMU that was started in this directory, if it is running.
    pub fn find(directory: &Path) -> Option<Self> {
        let machine = Self { directory: directory.to_path_buf() };
        let pid = machine.pid().ok()?;
        // A zombie has an empty command line.
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        words.starts_with(QEMU).then_some(machine)
    }

    /// Starts QEMU, and returns when it is running.
    pub fn start(root: &Root, directory: &Path, begin: Begin) -> Result<Self> {
        fs::create_dir_all(directory.join("share"))
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let machine = Self { directory: directory.to_path_buf() };
        let port = free_port()?;
        fs::write(machine.directory.join("port"), port.to_string())?;
        let log = File::create(machine.directory.join("log"))?;
        // In a session of its own, so that it outlives xtask.
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

        let mut monitor = wait_until("QEMU's monitor", POLLING, || {
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(machine.directory.join("log")).unwrap_or_default();
                bail!("QEMU ended ({status}): {log}");
            }
            Ok(Monitor::connect(&machine.directory).ok())
        })?;
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
        // Reachable from loopback only.
        qemu.args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22")]);
        qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        qemu.args(["-device", "virtio-rng-pci"]);
        qemu.args(["-fsdev", "local,id=share,path=share,security_model=none,readonly=on"]);
        qemu.args(["-device", "virtio-9p-pci,fsdev=share,mount_tag=host"]);
        if begin == Begin::Restore {
            qemu.arg("-incoming").arg(format!("exec:cat '{}'", root.memory().display()));
        }
    }

    /// Saves the memory of a booted test host to a file, and stops QEMU.
    pub fn save(self, root: &Root) -> Result<()> {
        let unfinished = root.memory().with_extension("new");
        let mut monitor = Monitor::connect(&self.directory)?;
        monitor.ask("stop", &json!({}))?;
        monitor.ask("migrate-set-parameters", &json!({ "max-bandwidth": 1u64 << 40 }))?;
        monitor.ask("migrate", &json!({ "uri": format!("exec:cat > '{}'", unfinished.display()) }))?;
        monitor.wait_for("query-migrate", "status", "completed")?;
        drop(monitor);
        self.end()?;
        fs::rename(unfinished, root.memory()).context("cannot rename the memory of the test host")
    }

    /// Stops QEMU, as a power cut would.
    pub fn end(self) -> Result<()> {
        let pid = self.pid()?;
        if let Ok(mut monitor) = Monitor::connect(&self.directory) {
            // QEMU may exit before it answers.
            let _ = monitor.ask("quit", &json!({}));
        }
        let is_gone = || Ok(Self::find(&self.directory).is_none().then_some(()));
        wait_until(format_args!("the end of QEMU (process {pid})"), POLLING, is_gone)
    }

    /// Returns the pid of QEMU.
    pub fn pid(&self) -> Result<u32> {
        let text = fs::read_to_string(self.directory.join("pid")).context("QEMU was not started")?;
        text.trim().parse().context("cannot read the pid of QEMU")
    }

    /// Returns the loopback port that is forwarded to the test host's ssh server.
    pub fn port(&self) -> Result<u16> {
        let text = fs::read_to_string(self.directory.join("port")).context("the test host has no port")?;
        text.trim().parse().context("cannot read the port of the test host")
    }
}

/// Returns a port that was free a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("there is no free port")?;
    Ok(listener.local_addr()?.port())
}

/// A connection to QEMU's QMP monitor, which exchanges lines of JSON.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(directory: &Path) -> Result<Self> {
        // The path of a socket is limited to 108 bytes, and that of a checkout may be longer.
        let here = File::open(directory)?;
        let address = format!("/proc/self/fd/{}/monitor", std::os::fd::AsRawFd::as_raw_fd(&here));
        let stream = UnixStream::connect(address).context("QEMU's monitor does not listen")?;
        stream.set_read_timeout(Some(POLLING.limit))?;
        let mut monitor = Self { stream: BufReader::new(stream) };
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a QMP command and returns its result.
    fn ask(&mut self, what: &str, arguments: &Value) -> Result<Value> {
        let message = json!({ "execute": what, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{message}").with_context(|| format!("cannot ask QEMU to {what}"))?;
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line);
            ensure!(read.with_context(|| format!("QEMU does not answer {what}"))? > 0, "QEMU has hung up");
            let answer: Value = serde_json::from_str(&line).context("unexpected reply from QEMU")?;
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses to {what}: {error}");
            }
            // The greeting, or an event.
        }
    }

    /// Repeats a query until `key` in the answer is `value`.
    fn wait_for(&mut self, question: &str, key: &str, value: &str) -> Result<()> {
        wait_until(format_args!("{value} as QEMU's answer to {question}"), POLLING, || {
            let answer = self.ask(question, &json!({}))?;
            match answer.get(key).and_then(Value::as_str) {
                Some("failed") => bail!("QEMU reports for {question}: {answer}"),
                is => Ok((is == Some(value)).then_some(())),
            }
        })
    }
}
