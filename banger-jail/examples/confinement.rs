//! Tries what a confined process must not be able to do, and what it must. Level 4 puts it in place of QEMU and of the import
//! worker, and starts it before the service, so that it runs inside their units; see
//! `xtask/src/test/level4/confinement.rs`. It is in no package.
//!
//! Each attempt is made by a process of its own. Each is a line of output: place, expectation, outcome, and what was tried.
//! Started under the name of another program, it then becomes the program of that name with `.real` at its end.
//!
//! What must fail is also tried outside any unit, as root. An attempt that fails there too proves nothing.

use std::{
    env,
    error::Error,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{PermissionsExt, chown},
            net::{SocketAddr, UnixDatagram, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
};

/// The objects of others that are tried, one per line: a kind and a name.
const TARGETS: &str = "/usr/libexec/banger/confinement.targets";
/// The directory that a VMM shares with the service, if it makes its sockets itself.
const MACHINE: &str = "/machine";

/// Where an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In no unit, as root.
    Outside,
    Vmm,
    Worker,
    Service,
}
use Place::{Service, Vmm, Worker};

impl Place {
    const ALL: [(&'static str, Place); 4] =
        [("outside", Place::Outside), ("vmm", Vmm), ("worker", Worker), ("service", Service)];

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| *name == word).map(|(_, place)| place)
    }

    fn word(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, place)| *place == self).map_or("", |(name, _)| name)
    }
}

/// All three units.
const UNITS: &[Place] = &[Vmm, Worker, Service];
/// Those whose filter of system calls is there before the program starts. The worker adds its own.
const FILTERED: &[Place] = &[Vmm, Service];
/// Those of programs without rights.
const POWERLESS: &[Place] = &[Vmm, Worker];

type Done = io::Result<()>;

/// Something that can be tried.
struct Attempt {
    what: String,
    /// Where it must fail.
    closed: &'static [Place],
    /// Where it must work.
    open: &'static [Place],
    act: Box<dyn Fn() -> Done>,
}

fn closed(what: impl Into<String>, places: &'static [Place], act: impl Fn() -> Done + 'static) -> Attempt {
    Attempt { what: what.into(), closed: places, open: &[], act: Box::new(act) }
}

fn open(what: impl Into<String>, places: &'static [Place], act: impl Fn() -> Done + 'static) -> Attempt {
    Attempt { what: what.into(), closed: &[], open: places, act: Box::new(act) }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().collect();
    let targets = fs::read_to_string(TARGETS).unwrap_or_default();
    let all = attempts(&targets);
    match &arguments[1..] {
        [flag, number] if flag == "--one" => {
            let attempt = all.get(number.parse::<usize>()?).ok_or("no such attempt")?;
            return Ok(match (attempt.act)() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    print!("{error}");
                    ExitCode::FAILURE
                }
            });
        }
        [flag, place] if flag == "--in" => {
            try_all(&all, Place::parse(place).ok_or("no such place")?)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let program = arguments[0].clone();
    try_all(&all, if program.ends_with("banger-import") { Worker } else { Vmm })?;
    Err(Command::new(format!("{program}.real")).args(&arguments[1..]).exec().into())
}

/// Makes all attempts that have an expectation in a place, and prints them to standard error.
fn try_all(all: &[Attempt], place: Place) -> io::Result<()> {
    let me = env::current_exe()?;
    for (number, attempt) in all.iter().enumerate() {
        let expect = match place {
            Place::Outside if !attempt.closed.is_empty() => "works",
            _ if attempt.closed.contains(&place) => "fails",
            _ if attempt.open.contains(&place) => "works",
            _ => continue,
        };
        let mut one = match place {
            // What works there must be over when the attempt is.
            Place::Outside => Command::new("/usr/bin/unshare"),
            _ => Command::new(&me),
        };
        if place == Place::Outside {
            one.args(["--mount", "--uts", "--ipc", "--"]).arg(&me);
        }
        one.args(["--one", &number.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
        let outcome = match one.output() {
            Ok(output) if output.status.success() => "worked".to_owned(),
            Ok(output) if output.status.code() == Some(1) => {
                String::from_utf8_lossy(&output.stdout).into_owned()
            }
            Ok(output) => format!("ended by {}", output.status),
            Err(error) => format!("cannot try: {error}"),
        };
        let outcome = outcome.split(" (os error").next().unwrap_or_default().to_owned();
        eprintln!("attempt\t{}\t{expect}\t{outcome}\t{}", place.word(), attempt.what);
    }
    eprintln!("attempts of {} are over", place.word());
    Ok(())
}

fn attempts(targets: &str) -> Vec<Attempt> {
    let mut all = of_others(targets);
    all.extend(files());
    all.extend(networks());
    all.extend(kernel());
    all.extend(devices());
    all.extend(itself());
    all.extend(must_work());
    all
}

/// What belongs to others: files, sockets and processes.
fn of_others(targets: &str) -> Vec<Attempt> {
    let mut all = Vec::new();
    for line in targets.lines() {
        let Some((kind, name)) = line.split_once(' ') else { continue };
        let name = name.to_owned();
        match kind {
            // For the service they are its own.
            "file" => {
                all.push(closed(format!("read {name}"), POWERLESS, {
                    let name = name.clone();
                    move || read(&name)
                }));
                all.push(closed(format!("write {name}"), POWERLESS, move || {
                    OpenOptions::new().append(true).open(&name).map(drop)
                }));
            }
            "socket" => all.push(closed(format!("connect to {name}"), POWERLESS, move || {
                UnixStream::connect(&name).map(drop)
            })),
            "abstract" => {
                all.push(closed(format!("connect to the abstract socket {name}"), POWERLESS, move || {
                    UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name)?).map(drop)
                }))
            }
            "secret" => all.push(closed(format!("read {name}"), UNITS, move || read(&name))),
            "process" => {
                let Ok(pid) = name.parse::<i64>() else { continue };
                all.extend(with_process(pid));
            }
            _ => {}
        }
    }
    all
}

/// What can be done to the process of another user.
fn with_process(pid: i64) -> Vec<Attempt> {
    // PTRACE_SEIZE does not stop it.
    const SEIZE: i64 = 0x4206;
    let namespace = |name: &'static str| {
        closed(format!("enter the {name} namespace of another user's process"), UNITS, move || {
            let file = File::open(format!("/proc/{pid}/ns/{name}"))?;
            call(libc::SYS_setns, &[std::os::fd::AsRawFd::as_raw_fd(&file).into(), 0])
        })
    };
    vec![
        // From root's group the kernel hides no process (hidepid in proc(5)).
        closed("see another user's process", POWERLESS, move || {
            fs::metadata(format!("/proc/{pid}")).map(drop)
        }),
        closed("read the environment of another user's process", UNITS, move || {
            read(&format!("/proc/{pid}/environ"))
        }),
        closed("read the root directory of another user's process", UNITS, move || {
            fs::read_dir(format!("/proc/{pid}/root/etc")).map(drop)
        }),
        closed("trace another user's process", UNITS, move || call(libc::SYS_ptrace, &[SEIZE, pid, 0, 0])),
        closed("read the memory of another user's process", UNITS, move || {
            let mut file = File::open(format!("/proc/{pid}/mem"))?;
            // Nothing is mapped there: the kernel has looked.
            match file.seek(io::SeekFrom::Start(1)).and_then(|_| file.read(&mut [0])) {
                Err(error) if error.raw_os_error() != Some(libc::EIO) => Err(error),
                _ => Ok(()),
            }
        }),
        closed("signal another user's process", UNITS, move || call(libc::SYS_kill, &[pid, 0])),
        closed("take a descriptor of another user's process", UNITS, move || {
            let fd = number(libc::SYS_pidfd_open, &[pid, 0])?;
            call(libc::SYS_pidfd_getfd, &[fd, 0, 0])
        }),
        closed("change the priority of another user's process", UNITS, move || {
            call(libc::SYS_setpriority, &[i64::from(libc::PRIO_PROCESS as i32), pid, 5])
        }),
        namespace("net"),
        namespace("mnt"),
    ]
}

/// The file system.
fn files() -> Vec<Attempt> {
    let make = |directory: &'static str, places| {
        closed(format!("make a file in {directory}"), places, move || {
            let path = Path::new(directory).join("made-by-an-attempt");
            File::create(&path).map(drop)?;
            // The next attempt, in another place, must not find it.
            fs::remove_file(path)
        })
    };
    let mut all: Vec<Attempt> = [
        "/",
        "/usr",
        "/usr/libexec/banger",
        "/etc",
        "/boot",
        "/srv",
        "/var",
        "/var/spool",
        "/home/alice",
        "/root",
    ]
    .into_iter()
    .chain(["/run/systemd/system"])
    .map(|directory| make(directory, UNITS))
    .collect();
    // Other units have an empty file system of their own there.
    all.push(make("/run", &[Service]));
    let of_service = ["/var/lib/banger", "/var/cache/banger", "/run/banger"];
    all.extend(of_service.into_iter().map(|directory| make(directory, POWERLESS)));
    for (path, places) in [
        ("/etc/passwd", POWERLESS),
        ("/etc/shadow", UNITS),
        ("/etc/gshadow", UNITS),
        ("/etc/machine-id", POWERLESS),
        ("/proc/version", POWERLESS),
        ("/proc/kallsyms", POWERLESS),
    ] {
        all.push(closed(format!("read {path}"), places, move || read(path)));
    }
    for (path, places) in [
        ("/home/alice", UNITS),
        ("/root", UNITS),
        ("/var/lib", POWERLESS),
        ("/run/banger", POWERLESS),
        ("/sys/kernel", POWERLESS),
        ("/sys/fs/cgroup", POWERLESS),
    ] {
        all.push(closed(format!("list {path}"), places, move || {
            let any = fs::read_dir(path)?.next();
            // An empty directory in its place hides it as well.
            any.map(drop).ok_or_else(|| io::Error::new(ErrorKind::NotFound, "empty"))
        }));
    }
    for path in ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger"] {
        all.push(closed(format!("open {path} for writing"), UNITS, move || {
            OpenOptions::new().write(true).open(path).map(drop)
        }));
    }
    all.push(closed("open a control group for writing", UNITS, || {
        OpenOptions::new().write(true).open("/sys/fs/cgroup/cgroup.procs").map(drop)
    }));
    all.push(closed("make a set-user-id program", UNITS, || {
        let path = scratch("set-user-id");
        File::create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755))
    }));
    all.push(closed("give a file away", POWERLESS, || {
        let path = scratch("given");
        File::create(&path)?;
        chown(&path, Some(1), Some(1))
    }));
    all
}

/// Sockets beyond this host, and to its kernel.
fn networks() -> Vec<Attempt> {
    let socket = |name: &'static str, family: i32, kind: i32, places| {
        closed(format!("make a socket of {name}"), places, move || {
            call(libc::SYS_socket, &[family.into(), kind.into(), 0])
        })
    };
    vec![
        socket("AF_INET", libc::AF_INET, libc::SOCK_STREAM, POWERLESS),
        socket("AF_INET6", libc::AF_INET6, libc::SOCK_DGRAM, POWERLESS),
        socket("AF_NETLINK", libc::AF_NETLINK, libc::SOCK_RAW, POWERLESS),
        socket("AF_PACKET", libc::AF_PACKET, libc::SOCK_RAW, UNITS),
        socket("AF_VSOCK", libc::AF_VSOCK, libc::SOCK_STREAM, UNITS),
        socket("AF_ALG", libc::AF_ALG, libc::SOCK_SEQPACKET, UNITS),
        closed("make a raw socket of AF_INET", UNITS, || {
            call(libc::SYS_socket, &[libc::AF_INET.into(), libc::SOCK_RAW.into(), 1])
        }),
    ]
}

/// Calls that change the kernel, or what a process sees of it. Those with wrong arguments reach it if it answers with another
/// error than that they are not permitted.
fn kernel() -> Vec<Attempt> {
    const NONE: i64 = -1;
    let reaches = |what: &'static str, places, call: i64, arguments: &'static [i64]| {
        closed(what, places, move || {
            let mut all = [NONE; 6];
            all[..arguments.len()].copy_from_slice(arguments);
            match number(call, &all) {
                Err(error) if is_refused(&error) => Err(error),
                _ => Ok(()),
            }
        })
    };
    let unshare = |what: &'static str, flag: i32| {
        closed(format!("make {what}"), UNITS, move || call(libc::SYS_unshare, &[flag.into()]))
    };
    let path = |text: &str| CString::new(text).unwrap_or_default();
    vec![
        unshare("a user namespace", libc::CLONE_NEWUSER),
        unshare("a mount namespace", libc::CLONE_NEWNS),
        unshare("a network namespace", libc::CLONE_NEWNET),
        unshare("a PID namespace", libc::CLONE_NEWPID),
        closed("mount a file system", UNITS, move || {
            let (kind, at) = (path("tmpfs"), path("/tmp"));
            call(libc::SYS_mount, &[address(&kind), address(&at), address(&kind), 0, 0])
        }),
        closed("mount a directory over another one", UNITS, move || {
            let (from, to) = (path("/usr"), path("/tmp"));
            call(libc::SYS_mount, &[address(&from), address(&to), 0, libc::MS_BIND as i64, 0])
        }),
        closed("make a writable mount of what is read-only", UNITS, move || {
            let at = path("/usr");
            call(libc::SYS_mount, &[0, address(&at), 0, (libc::MS_REMOUNT | libc::MS_BIND) as i64, 0])
        }),
        closed("unmount /proc", UNITS, move || {
            let at = path("/proc");
            call(libc::SYS_umount2, &[address(&at), i64::from(libc::MNT_DETACH)])
        }),
        closed("change its root directory", UNITS, move || {
            let to = path("/usr");
            call(libc::SYS_chroot, &[address(&to)])
        }),
        reaches("load a kernel module", UNITS, libc::SYS_init_module, &[]),
        reaches("load a kernel module from a file", UNITS, libc::SYS_finit_module, &[]),
        reaches("load another kernel", UNITS, libc::SYS_kexec_load, &[0, 100, 0, 0]),
        reaches("load a BPF program", FILTERED, libc::SYS_bpf, &[5, 0, 1]),
        reaches("watch the processor's events", FILTERED, libc::SYS_perf_event_open, &[]),
        reaches("set the clock", FILTERED, libc::SYS_clock_settime, &[0, 0]),
        reaches("reboot", UNITS, libc::SYS_reboot, &[0, 0, 0]),
        reaches("use a swap file", UNITS, libc::SYS_swapon, &[NONE, 0]),
        reaches("set the host's name", UNITS, libc::SYS_sethostname, &[]),
        reaches("read the kernel's log", FILTERED, libc::SYS_syslog, &[3, 0, 0]),
        reaches("use I/O ports", UNITS, libc::SYS_ioperm, &[0, 1, 1]),
        reaches("use io_uring", &[Vmm], libc::SYS_io_uring_setup, &[1, 0]),
        reaches("add a key", &[Vmm], libc::SYS_add_key, &[0, 0, 0, 0, 0]),
        reaches("handle page faults in user space", &[Vmm], libc::SYS_userfaultfd, &[0]),
        reaches("run in real time", UNITS, libc::SYS_sched_setscheduler, &[0, 1, 0]),
    ]
}

/// Devices.
fn devices() -> Vec<Attempt> {
    let device = |path: &'static str, places| {
        closed(format!("open {path}"), places, move || {
            OpenOptions::new().read(true).write(true).open(path).map(drop)
        })
    };
    let make = |what: &'static str, kind: u32, number: u64| {
        closed(format!("make {what}"), UNITS, move || {
            let path = scratch("device");
            let _ = fs::remove_file(&path);
            let path = CString::new(path)?;
            let mode = i64::from(kind | 0o600);
            call(libc::SYS_mknodat, &[libc::AT_FDCWD.into(), address(&path), mode, number as i64])
        })
    };
    vec![
        device("/dev/mem", UNITS),
        device("/dev/kmsg", UNITS),
        device("/dev/port", UNITS),
        device("/dev/loop-control", POWERLESS),
        device("/dev/loop0", POWERLESS),
        device("/dev/net/tun", POWERLESS),
        device("/dev/fuse", UNITS),
        device("/dev/disk-of-the-host", UNITS),
        make("a character device", libc::S_IFCHR, libc::makedev(1, 1)),
        make("a block device", libc::S_IFBLK, libc::makedev(7, 0)),
    ]
}

/// Its own rights.
fn itself() -> Vec<Attempt> {
    vec![
        closed("become root or another user", UNITS, || {
            // Root becomes a user, and a user root.
            let uid = if number(libc::SYS_getuid, &[])? == 0 { 1000 } else { 0 };
            call(libc::SYS_setresuid, &[uid, uid, uid])
        }),
        closed("change its group", UNITS, || call(libc::SYS_setresgid, &[42, 42, 42])),
        closed("drop its groups", UNITS, || call(libc::SYS_setgroups, &[0, 0])),
        closed("have CAP_SYS_PTRACE, CAP_SYS_MODULE or CAP_DAC_OVERRIDE", UNITS, || has_any(&[19, 16, 1])),
        closed("have a capability", POWERLESS, || has_any(&(0..41).collect::<Vec<_>>())),
        closed("raise its limit of open files", POWERLESS, || {
            let most: [u64; 2] = [1 << 20, 1 << 20];
            let limit = most.as_ptr() as i64;
            call(libc::SYS_prlimit64, &[0, i64::from(libc::RLIMIT_NOFILE as i32), limit, 0])
        }),
        closed("dump core", POWERLESS, || {
            let limits = fs::read_to_string("/proc/self/limits")?;
            let line = limits.lines().find(|line| line.starts_with("Max core file size"));
            let is_none = line.is_some_and(|line| line.split_whitespace().nth(5) == Some("0"));
            if is_none { Err(io::Error::other("the limit is 0")) } else { Ok(()) }
        }),
    ]
}

/// What the programs need. A place where it does not work is not a place of the program.
fn must_work() -> Vec<Attempt> {
    let write = |directory: &'static str, places| {
        open(format!("make a file in {directory}"), places, move || {
            let path = Path::new(directory).join("made-by-an-attempt");
            File::create(&path)?.write_all(b"made")?;
            fs::remove_file(path)
        })
    };
    let device = |path: &'static str| {
        open(format!("open {path}"), &[Service], move || {
            OpenOptions::new().read(true).write(true).open(path).map(drop)
        })
    };
    let socket = |name: &'static str, family: i32, kind: i32| {
        open(format!("make a socket of {name}"), &[Service], move || {
            call(libc::SYS_socket, &[family.into(), kind.into(), 0])
        })
    };
    vec![
        // That a VMM can use its disks shows when its guest boots.
        open("make a pair of sockets", &[Vmm, Service], || UnixDatagram::pair().map(drop)),
        open("use temporary files", UNITS, || {
            let path = scratch("works");
            fs::write(&path, "works")?;
            fs::remove_file(path)
        }),
        open("start a thread", UNITS, || {
            std::thread::spawn(|| ()).join().map_err(|_| io::Error::other("it panicked"))
        }),
        open("read programs and libraries", UNITS, || read("/usr/bin/env")),
        write("/var/lib/banger", &[Service]),
        write("/var/cache/banger", &[Service]),
        write("/run/banger", &[Service]),
        device("/dev/net/tun"),
        device("/dev/loop-control"),
        socket("AF_INET", libc::AF_INET, libc::SOCK_STREAM),
        socket("AF_NETLINK", libc::AF_NETLINK, libc::SOCK_RAW),
        open("connect to the system bus", &[Service], || {
            UnixStream::connect("/run/dbus/system_bus_socket").map(drop)
        }),
        open("give a file away", &[Service], || {
            let path = scratch("given");
            File::create(&path)?;
            chown(&path, Some(1), Some(1))?;
            fs::remove_file(path)
        }),
    ]
}

/// Returns a path for a file of one attempt.
fn scratch(name: &str) -> String {
    let directory = if Path::new(MACHINE).is_dir() { MACHINE } else { "/tmp" };
    format!("{directory}/attempt-{name}-{}", std::process::id())
}

fn read(path: &str) -> Done {
    File::open(path)?.read(&mut [0; 16]).map(drop)
}

/// Fails if this process has none of these capabilities.
fn has_any(capabilities: &[u32]) -> Done {
    let status = fs::read_to_string("/proc/self/status")?;
    let word = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        u64::from_str_radix(line.trim(), 16).map_err(|_| io::Error::other("no capabilities"))
    };
    let held = word("CapEff:")? | word("CapPrm:")? | word("CapBnd:")?;
    match capabilities.iter().any(|capability| held & (1 << capability) != 0) {
        true => Ok(()),
        false => Err(io::Error::other("it has none")),
    }
}

/// Returns whether a call did not get through.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

fn address(text: &CString) -> i64 {
    text.as_ptr() as i64
}

fn call(number_of_call: i64, arguments: &[i64]) -> Done {
    number(number_of_call, arguments).map(drop)
}

/// Makes a system call and returns its result.
fn number(number: i64, arguments: &[i64]) -> io::Result<i64> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: addresses among the arguments are those of strings that outlive the call, or of nothing. The calls change
    // what this process, which ends next, has of the kernel, and write only to buffers of the caller.
    #[expect(unsafe_code, reason = "no library makes calls that must not be made")]
    let returned = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}
