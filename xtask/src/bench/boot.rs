//! `cargo xtask bench boot`: `banger vm run --rm --wait agent -- echo`, compared with the same QEMU started by hand.
//!
//! The peer is a copy of a sandbox that banger started: the command line of its QEMU, its kernel and its initramfs,
//! with the disks as they were before the first boot. Both sides are timed from the start of their program until the
//! first byte of the command's output, which comes from the same agent.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use banger_proto::guest::{
    Decoder, Exec, Frame, Request,
    hello::{HostHello, take_answer},
};
use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    bench::{Effort, Report, Side},
    host::Host,
    run::{cache, command, output, run as shell, say},
    wait::{Patience, wait_until},
};

/// How long a boot may take. An emulated guest on a busy host takes half a minute.
const PATIENCE: Patience = Patience { limit: Duration::from_secs(120), poll: Duration::from_millis(1) };
/// The sandbox whose QEMU the peer copies.
const EXAMPLE: &str = "bench-example";
/// The file system of a kernel's modules, which is QEMU's third disk.
const MODULE_TREE_FILE: &str = "modules.ext4";
/// A channel to the agent that the service does not use itself.
const CHANNEL: &str = "agent1";

/// Runs the benchmark. The sides take turns.
pub fn run(effort: Effort) -> Result<Report> {
    let runs = effort.runs;
    let host = effort.host()?;
    say("starting an example");
    let peer = Peer::like_example(&host, effort.image()?)?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 1..=runs {
        say(&format!("run {round} of {runs}"));
        ours.push(ours_once(&host)?.as_secs_f64() * 1000.0);
        peers.push(peer.once()?.as_secs_f64() * 1000.0);
    }
    let ours = Side { what: "banger vm run --rm --wait agent -- echo", samples_ms: ours };
    let peers = Side { what: "the same QEMU, kernel, initramfs and disks by hand", samples_ms: peers };
    Report::new("boot", runs, ours, peers)
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
struct Peer {
    directory: TempDir,
    /// The file system of the example's image.
    image: PathBuf,
    arguments: Vec<String>,
    disks: Vec<Disk>,
    token: String,
}

/// A pristine disk, and the copy that a guest writes to.
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
        let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(cache())?;
        let words = words_of(process)?;
        let (arguments, disks, token) = (Vec::new(), Vec::new(), String::new());
        let mut peer = Self { directory, image, arguments, disks, token };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let adapted = match word.as_str() {
                "-kernel" | "-initrd" => {
                    let file = words.next().context("an option of QEMU has no value")?;
                    let number = file.strip_prefix("/proc/self/fd/").context("not a QEMU descriptor")?;
                    let copy = peer.directory.path().join(&word[1..]);
                    fs::copy(process.join("fd").join(number), &copy).context("cannot copy a file of QEMU")?;
                    if word == "-initrd" {
                        peer.token = token_in(&fs::read(&copy)?).context("the initramfs has no token")?;
                    }
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
        ensure!(!peer.token.is_empty() && peer.disks.len() == 2, "QEMU was started in an unknown way");
        Ok(peer)
    }

    /// Returns the block node that replaces a node of the sandbox, and prepares its file. The first disk is the image,
    /// the second an empty work disk, the third the kernel's modules, copied from the process. Returns `None` for other
    /// nodes, such as that of an overlay.
    fn disk_of(&mut self, node: &str, work_disk: u64, process: &Path) -> Result<Option<String>> {
        let disk = match node.split(',').find_map(|field| field.strip_prefix("node-name=")) {
            Some("drive0" | "layer0") if node.starts_with("driver=file,") => "drive0",
            Some("drive1") => "drive1",
            Some("drive2") => {
                let copy = self.directory.path().join("drive2");
                fs::copy(open_file(process, MODULE_TREE_FILE)?, &copy)
                    .context("cannot copy the modules of the kernel")?;
                let file = copy.display();
                return Ok(Some(format!(
                    "driver=file,node-name=drive2,filename={file},locking=off,read-only=on"
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
        let mut channel = self.connect(&mut qemu.0)?;
        channel.set_read_timeout(Some(PATIENCE.limit))?;
        self.greet(&mut channel)?;
        let exec = Exec { argv: vec!["echo".to_owned(), "first".to_owned()], ..Exec::default() };
        channel.write_all(&Frame::Request(Request::Exec(exec)).encode())?;
        channel.write_all(&Frame::InputEnd.encode())?;
        let mut decoder = Decoder::default();
        let mut buffer = [0; 4096];
        loop {
            while let Some(frame) = decoder.next_frame()? {
                match frame {
                    Frame::Output(_) => return Ok(start.elapsed()),
                    Frame::Failed(failure) => bail!("the agent reports: {}", failure.message),
                    _ => {}
                }
            }
            let count = channel.read(&mut buffer).context("the agent does not answer")?;
            ensure!(count > 0, "QEMU has hung up");
            decoder.push(buffer.get(..count).unwrap_or_default());
        }
    }

    fn connect(&self, qemu: &mut Child) -> Result<UnixStream> {
        wait_until("QEMU's channel to the agent", PATIENCE, || {
            match UnixStream::connect(self.directory.path().join(CHANNEL)) {
                Ok(channel) => return Ok(Some(channel)),
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

    /// Greets the agent and waits for its answer.
    fn greet(&self, channel: &mut UnixStream) -> Result<()> {
        let hello = HostHello::new(*b"bench-boot-nonce", &self.token).context("the token is not valid")?;
        channel.write_all(&hello.encode())?;
        let (mut came, mut buffer) = (Vec::new(), [0; 256]);
        while !take_answer(&mut came, &hello)? {
            let count = channel.read(&mut buffer).context("the agent does not answer the greeting")?;
            ensure!(count > 0, "QEMU has hung up");
            came.extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
        Ok(())
    }
}

/// Returns the value of a QEMU option without the service's descriptors: a socket gets a path in the directory, and a
/// network interface, whose TAP is gone by then, an empty hub.
fn by_hand(value: &str, directory: &Path) -> String {
    let id = value.split(',').find_map(|field| field.strip_prefix("id=")).unwrap_or("unnamed");
    if value.starts_with("tap,") {
        return format!("hubport,id={id},hubid=0");
    }
    let fields = value.split(',').map(|field| match field.starts_with("fd=") {
        true => format!("path={}", directory.join(id).display()),
        false => field.to_owned(),
    });
    fields.collect::<Vec<_>>().join(",")
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

/// Returns the agent's token from the configuration at the end of the initramfs.
fn token_in(initramfs: &[u8]) -> Option<String> {
    let key = b"\"token\":\"";
    let start = initramfs.windows(key.len()).rposition(|window| window == key)? + key.len();
    let token = initramfs.get(start..)?.split(|&byte| byte == b'"').next()?;
    String::from_utf8(token.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_the_service_become_what_qemu_takes_by_hand() {
        for (ours, by_hand_it_is) in [
            ("microvm,accel=tcg", "microvm,accel=tcg"),
            (
                "socket,id=agent1,fd=5,server=on,wait=off",
                "socket,id=agent1,path=/d/agent1,server=on,wait=off",
            ),
            ("chardev=qmp,mode=control", "chardev=qmp,mode=control"),
            ("tap,id=net0,fd=9", "hubport,id=net0,hubid=0"),
            (
                "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01",
                "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01",
            ),
        ] {
            assert_eq!(by_hand(ours, Path::new("/d")), by_hand_it_is);
        }
    }
}
