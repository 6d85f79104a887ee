//! `cargo xtask bench boot`: `banger vm run --rm --wait agent -- echo`, compared with the same QEMU started by hand.
//!
//! The peer is a copy of a sandbox that banger started: the command line of its QEMU, its kernel and its initramfs,
//! with the disks as they were before the first boot. Both sides are timed from the start of their program until the
//! first byte of the command's output, which comes from the same agent. A third side, the peer without the disk of the
//! kernel's modules, shows what that disk adds.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use banger_proto::guest::{
    BootConfig, Decoder, Exec, Frame, GuestConfig, Request,
    config::{Entropy, GuestNetwork, Init, Programs, WorkDisk},
    hello::{self, HostHello, take_answer},
    message::Phase,
};
use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    bench::{Effort, Report, Side},
    host::Host,
    run::{cache, command, output, run as shell, say},
    wait::{Polling, wait_until},
};

/// How long a boot may take. An emulated guest on a busy host takes half a minute, or several times as long.
const POLLING: Polling = Polling { limit: Duration::from_secs(300), interval: Duration::from_millis(1) };
/// The sandbox whose QEMU the peer copies.
const EXAMPLE: &str = "bench-example";
/// The file system of a kernel's modules, which is QEMU's third disk.
const MODULE_TREE_FILE: &str = "modules.ext4";
/// The block node of the kernel's modules.
const MODULE_DISK: &str = "drive2";
/// The channel by which the agent is configured.
const CONTROL: &str = "agent0";
/// A channel to the agent that the service does not use itself.
const CHANNEL: &str = "agent1";
/// The token of the peer's agent.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Runs the benchmark. The sides take turns.
pub fn run(effort: Effort) -> Result<[Report; 2]> {
    let host = effort.host()?;
    // Both sides boot.
    shell(host.enter(&script!("bench/templates.sh", templates = "off")).stdin(Stdio::null()))?;
    let report = measure(effort, &host);
    shell(host.enter(&script!("bench/templates.sh", templates = "on")).stdin(Stdio::null()))?;
    report
}

fn measure(effort: Effort, host: &Host) -> Result<[Report; 2]> {
    let runs = effort.runs;
    say("starting an example");
    let peer = Peer::like_example(host, effort.image()?)?;
    let bare = peer.without_modules();
    let [mut ours, mut peers, mut bares] = [Vec::new(), Vec::new(), Vec::new()];
    for round in 1..=runs {
        say(&format!("run {round} of {runs}"));
        for (samples, time) in
            [(&mut ours, ours_once(host)?), (&mut peers, peer.once()?), (&mut bares, bare.once()?)]
        {
            samples.push(time.as_secs_f64() * 1000.0);
        }
    }
    let ours = Side { what: "banger vm run --rm --wait agent -- echo", samples_ms: ours };
    let peers = Side { what: "the same QEMU, kernel, initramfs and disks by hand", samples_ms: peers };
    let bares = Side { what: "that QEMU without the disk of the kernel's modules", samples_ms: bares };
    Ok([Report::new("boot", runs, ours, peers.clone())?, Report::new("boot, modules", runs, peers, bares)?])
}

/// Measures from the start of the client to the first byte of the command's output.
fn ours_once(host: &Host) -> Result<Duration> {
    // The start of the session is not measured: the time begins with its first line.
    let script = "echo begin; exec banger vm run --rm --quiet --wait agent -- echo first";
    let words = ["sh", "-c", script].map(str::to_owned);
    let mut session = host.session("alice", false, &words)?;
    let mut child = session.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run")?;
    let mut said = BufReader::new(child.stdout.take().context("the session has no output")?);
    let (mut begin, mut first) = (String::new(), String::new());
    said.read_line(&mut begin)?;
    let start = Instant::now();
    said.read_line(&mut first)?;
    let time = start.elapsed();
    let status = child.wait()?;
    ensure!(status.success() && first.trim() == "first", "banger ended with {status} and said {first:?}");
    Ok(time)
}

/// A QEMU with all its files, which can be started repeatedly.
#[derive(Clone)]
struct Peer {
    directory: Rc<TempDir>,
    /// The file system of the example's image.
    image: PathBuf,
    arguments: Vec<String>,
    disks: Vec<Disk>,
    /// Whether it has a disk with the modules of the kernel.
    has_modules: bool,
    /// The hardware address of its network interface.
    mac: [u8; 6],
}

/// A pristine disk, and the copy that a guest writes to.
#[derive(Clone)]
struct Disk {
    pristine: PathBuf,
    used: PathBuf,
}

impl Peer {
    /// Builds the peer from the arguments and files of an example sandbox, which is deleted afterwards.
    fn like_example(host: &Host, image: PathBuf) -> Result<Self> {
        let banger = |words: &[&str]| {
            let words: Vec<String> = ["banger", "vm"].iter().chain(words).map(|&w| w.to_owned()).collect();
            shell(host.session("alice", false, &words)?.stdin(Stdio::null()))
        };
        // An interrupted run may have left one.
        let left = ["banger", "vm", "delete", "--force", EXAMPLE].map(str::to_owned);
        host.session("alice", false, &left)?.stdin(Stdio::null()).output().context("cannot run")?;
        banger(&["create", "--quiet", "--name", EXAMPLE])?;
        let show = ["banger", "vm", "show", "--json", EXAMPLE].map(str::to_owned);
        let shown = output(host.session("alice", false, &show)?.stdin(Stdio::null()))?;
        let Shown { disk_size } = serde_json::from_str(&shown).context("cannot read what banger shows")?;
        let peer = Self::like(&process_of(EXAMPLE)?, image, disk_size);
        banger(&["delete", "--force", "--quiet", EXAMPLE])?;
        peer
    }

    fn like(process: &Path, image: PathBuf, work_disk: u64) -> Result<Self> {
        let directory = Rc::new(tempfile::Builder::new().prefix("bench-").tempdir_in(cache())?);
        let words = words_of(process)?;
        let mac = words.iter().find_map(|word| mac_in(word)).context("QEMU has no network interface")?;
        let (arguments, disks) = (Vec::new(), Vec::new());
        let mut peer = Self { directory, image, arguments, disks, has_modules: false, mac };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let adapted = match word.as_str() {
                "-kernel" | "-initrd" => {
                    let file = words.next().context("an option of QEMU has no value")?;
                    let number = file.strip_prefix("/proc/self/fd/").context("not a QEMU descriptor")?;
                    let copy = peer.directory.path().join(&word[1..]);
                    fs::copy(process.join("fd").join(number), &copy).context("cannot copy a file of QEMU")?;
                    vec![word, copy.display().to_string()]
                }
                "-add-fd" => {
                    words.next().context("an option of QEMU has no value")?;
                    Vec::new()
                }
                "-blockdev" => {
                    let node = words.next().context("an option of QEMU has no value")?;
                    peer.disk_of(&node, work_disk, process)?.map_or_else(Vec::new, |disk| vec![word, disk])
                }
                _ => vec![by_hand(&word, peer.directory.path())],
            };
            peer.arguments.extend(adapted);
        }
        ensure!(peer.disks.len() == 2, "QEMU was started in an unknown way");
        Ok(peer)
    }

    /// Returns the same QEMU without the disk of the kernel's modules.
    fn without_modules(&self) -> Self {
        let arguments = without_disk(&self.arguments, MODULE_DISK);
        Self { arguments, has_modules: false, ..self.clone() }
    }

    /// Returns the block node that replaces a node of the sandbox, and prepares its file. The first disk is the image,
    /// the second an empty work disk, the third the kernel's modules, copied from the process. Returns `None` for other
    /// nodes, such as that of an overlay.
    fn disk_of(&mut self, node: &str, work_disk: u64, process: &Path) -> Result<Option<String>> {
        let disk = match node.split(',').find_map(|field| field.strip_prefix("node-name=")) {
            Some("drive0" | "layer0") if node.starts_with("driver=file,") => "drive0",
            Some("drive1") => "drive1",
            Some(MODULE_DISK) => {
                let copy = self.directory.path().join(MODULE_DISK);
                fs::copy(open_file(process, MODULE_TREE_FILE)?, &copy)
                    .context("cannot copy the modules of the kernel")?;
                self.has_modules = true;
                let file = copy.display();
                return Ok(Some(format!(
                    "driver=file,node-name={MODULE_DISK},filename={file},locking=off,read-only=on"
                )));
            }
            _ => return Ok(None),
        };
        let used = self.directory.path().join(disk);
        let pristine = if disk == "drive0" {
            self.image.clone()
        } else {
            let empty = used.with_extension("pristine");
            fs::File::create(&empty)?.set_len(work_disk)?;
            let initialised = "lazy_itable_init=0,lazy_journal_init=0";
            shell(command("mkfs.ext4", ["-q", "-F", "-E", initialised]).arg(&empty))?;
            empty
        };
        let node = format!(
            "driver=file,node-name={disk},filename={},locking=off,discard=unmap,cache.direct=off",
            used.display()
        );
        self.disks.push(Disk { pristine, used });
        Ok(Some(node))
    }

    /// Measures from the start of QEMU to the first byte of the command's output.
    fn once(&self) -> Result<Duration> {
        for disk in &self.disks {
            let copy = ["--sparse=always", "--reflink=auto"];
            shell(command("cp", copy).arg(&disk.pristine).arg(&disk.used))?;
            // Neither the copy nor its writeback may count for the peer.
            shell(&mut command("sync", [&disk.used]))?;
        }
        let (program, arguments) = self.arguments.split_first().context("QEMU has no command line")?;
        let start = Instant::now();
        let qemu = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start QEMU")?;
        let mut qemu = Ending(qemu);
        self.configure(&mut self.connect(CONTROL, &mut qemu.0)?)?;
        let mut channel = self.connect(CHANNEL, &mut qemu.0)?;
        ensure!(greet(&mut channel)?.is_ok(), "the agent refuses the greeting");
        let argv = ["echo", "first"].map(str::to_owned).into();
        let exec = Exec { argv, wait: Phase::Agent, ..Exec::default() };
        channel.write_all(&Frame::Request(Request::Exec(exec)).encode())?;
        channel.write_all(&Frame::InputEnd.encode())?;
        wait_for_frame(&mut channel, |frame| matches!(frame, Frame::Output(_)))?;
        Ok(start.elapsed())
    }

    /// Configures the agent as the service does.
    fn configure(&self, channel: &mut UnixStream) -> Result<()> {
        let answer = greet(channel)?;
        ensure!(answer == Err(hello::Error::Unconfigured), "the agent does not wait for its configuration");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock of the host is wrong")?;
        let config = BootConfig {
            guest: self.guest(u64::try_from(now.as_micros())?)?,
            // Nothing in this guest is secret.
            entropy: Entropy([[0; 32]; 2]),
        };
        channel.write_all(&Frame::Configure(Box::new(config)).encode())?;
        wait_for_frame(channel, |frame| *frame == Frame::Done)
    }

    fn guest(&self, unix_usec: u64) -> Result<GuestConfig> {
        let network = GuestNetwork {
            mac: self.mac,
            ipv4: "172.30.0.2".parse()?,
            gateway4: "172.30.0.1".parse()?,
            ipv6: "fd00::2".parse()?,
            gateway6: "fd00::1".parse()?,
            gateway_mac: [2, 0, 0, 0, 0, 1],
            name_server: "172.30.0.1".parse()?,
            search: "vm".to_owned(),
        };
        let work_disk = WorkDisk { device: "/dev/vdb".to_owned(), mount_point: "/root".to_owned() };
        Ok(GuestConfig {
            token: TOKEN.to_owned(),
            hostname: EXAMPLE.to_owned(),
            names: vec![EXAMPLE.to_owned()],
            root_device: "/dev/vda".to_owned(),
            work_disk: Some(work_disk),
            module_disk: self.has_modules.then(|| "/dev/vdc".to_owned()),
            init: Init::Auto,
            unix_usec,
            network: Some(network),
            ssh: None,
            timezone: None,
            programs: Programs::default(),
            files: Vec::new(),
        })
    }

    fn connect(&self, name: &str, qemu: &mut Child) -> Result<UnixStream> {
        wait_until("QEMU's channel to the agent", POLLING, || {
            match UnixStream::connect(self.directory.path().join(name)) {
                Ok(channel) => {
                    channel.set_read_timeout(Some(POLLING.limit))?;
                    return Ok(Some(channel));
                }
                Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    return Err(error).context("cannot connect to the agent");
                }
                Err(_) => {}
            }
            if let Some(status) = qemu.try_wait()? {
                bail!("QEMU ended with {status}");
            }
            Ok(None)
        })
    }
}

/// Greets the agent and returns its answer.
fn greet(channel: &mut UnixStream) -> Result<Result<(), hello::Error>> {
    let hello = HostHello::new(*b"bench-boot-nonce", TOKEN).context("the token is not valid")?;
    channel.write_all(&hello.encode())?;
    let (mut came, mut buffer) = (Vec::new(), [0; 256]);
    loop {
        match take_answer(&mut came, &hello) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
        let count = channel.read(&mut buffer).context("the agent does not answer the greeting")?;
        ensure!(count > 0, "QEMU has hung up");
        came.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
}

/// Reads frames of the agent until one is the expected one.
fn wait_for_frame(channel: &mut UnixStream, is_expected: impl Fn(&Frame) -> bool) -> Result<()> {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        while let Some(frame) = decoder.next_frame()? {
            match frame {
                Frame::Failed(failure) => bail!("the agent reports: {}", failure.message),
                frame if is_expected(&frame) => return Ok(()),
                _ => {}
            }
        }
        let count = channel.read(&mut buffer).context("the agent does not answer")?;
        ensure!(count > 0, "QEMU has hung up");
        decoder.push(buffer.get(..count).unwrap_or_default());
    }
}

/// Returns the value of a QEMU option without the service's descriptors: a socket gets a path in the directory, a
/// network interface, whose TAP is gone by then, a network that leads nowhere, and the memory a file of QEMU's own.
fn by_hand(value: &str, directory: &Path) -> String {
    let id = value.split(',').find_map(|field| field.strip_prefix("id=")).unwrap_or("unnamed");
    if value.starts_with("tap,") {
        return format!("user,id={id},restrict=on");
    }
    let fields = value.split(',').filter(|field| !field.starts_with("mem-path="));
    let fields = fields.map(|field| match field {
        "memory-backend-file" => "memory-backend-memfd".to_owned(),
        _ if field.starts_with("fd=") => format!("path={}", directory.join(id).display()),
        _ => field.to_owned(),
    });
    fields.collect::<Vec<_>>().join(",")
}

/// Returns the arguments of QEMU without a block node and its device.
fn without_disk(arguments: &[String], node: &str) -> Vec<String> {
    let names_it = |value: &str| {
        let mut fields = value.split(',').filter_map(|field| field.split_once('='));
        fields.any(|(key, is)| is == node && ["node-name", "drive"].contains(&key))
    };
    let mut kept = Vec::new();
    for argument in arguments {
        match names_it(argument) {
            // The option whose value it is goes with it.
            true => drop(kept.pop()),
            false => kept.push(argument.clone()),
        }
    }
    kept
}

/// The needed part of `banger vm show --json`.
#[derive(Deserialize)]
struct Shown {
    /// Bytes of the work disk.
    disk_size: u64,
}

/// A process that is killed when its owner is dropped.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the directory in `/proc` of the QEMU of a sandbox.
pub fn process_of(sandbox: &str) -> Result<PathBuf> {
    let name = format!("banger-{sandbox}");
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // Processes come and go.
        let Ok(words) = words_of(&process) else { continue };
        if words
            .windows(2)
            .any(|pair| pair.first().is_some_and(|w| w == "-name") && pair.last() == Some(&name))
        {
            return Ok(process);
        }
    }
    bail!("{sandbox} has no QEMU");
}

/// Returns the path in `/proc` of the file of this name that a process has open. QEMU passes descriptors of disks on to
/// duplicates, so the number in its command line is of no use.
fn open_file(process: &Path, name: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(process.join("fd"))? {
        let descriptor = entry?.path();
        // Descriptors come and go.
        let Ok(file) = fs::read_link(&descriptor) else { continue };
        if file.file_name().is_some_and(|is| is == name) {
            return Ok(descriptor);
        }
    }
    bail!("QEMU has not opened {name}");
}

/// Returns the command line of a process.
fn words_of(process: &Path) -> Result<Vec<String>> {
    let line = fs::read(process.join("cmdline"))?;
    let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|&byte| byte == 0);
    Ok(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// Returns the hardware address in an option of QEMU.
fn mac_in(option: &str) -> Option<[u8; 6]> {
    let text = option.split(',').find_map(|field| field.strip_prefix("mac="))?;
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hardware_address_is_that_of_the_option() {
        assert_eq!(
            mac_in("virtio-net-pci,netdev=net0,mac=02:67:00:00:00:0a,romfile="),
            Some([2, 0x67, 0, 0, 0, 10])
        );
        assert_eq!(mac_in("virtio-net-pci,netdev=net0"), None);
        assert_eq!(mac_in("x,mac=02:67"), None);
    }

    #[test]
    fn a_disk_goes_with_its_node_and_its_device() {
        let arguments = [
            "qemu",
            "-blockdev",
            "driver=file,node-name=drive1",
            "-device",
            "virtio-blk-pci,drive=drive1",
            "-blockdev",
            "driver=file,node-name=drive2",
            "-device",
            "virtio-blk-pci,drive=drive2,serial=x",
            "-S",
        ]
        .map(str::to_owned);
        let kept = [
            "qemu",
            "-blockdev",
            "driver=file,node-name=drive1",
            "-device",
            "virtio-blk-pci,drive=drive1",
            "-S",
        ];
        assert_eq!(without_disk(&arguments, "drive2"), kept);
        assert_eq!(without_disk(&arguments, "drive3"), arguments);
    }

    #[test]
    fn descriptors_of_the_service_become_what_qemu_takes_by_hand() {
        for (ours, by_hand_it_is) in [
            ("microvm,accel=tcg", "microvm,accel=tcg"),
            (
                "socket,id=agent1,fd=5,server=on,wait=off",
                "socket,id=agent1,path=/d/agent1,server=on,wait=off",
            ),
            ("chardev=qmp,mode=control", "chardev=qmp,mode=control"),
            ("tap,id=net0,fd=9", "user,id=net0,restrict=on"),
            (
                "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01",
                "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01",
            ),
        ] {
            assert_eq!(by_hand(ours, Path::new("/d")), by_hand_it_is);
        }
    }
}
