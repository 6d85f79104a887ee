//! VMMs as plain processes, with ordinary programs in place of VMMs.

use std::{fs, fs::File, os::fd::OwnedFd, os::unix::fs::MetadataExt, path::Path, time::Duration};

use banger_domain::id::{Uid, VmId};
use banger_jail::ring::{Reader, Writer};
use banger_proto::size::Bytes;
use banger_system::{
    host::process::supervisor_process::ProcessSupervisor,
    ports::{
        supervisor::{Ended, Result, Started, Supervisor},
        vmm::{JailSpec, NetworkNamespace, VmmCommand},
    },
};
use rustix::fs::MemfdFlags;

use crate::scratch::{Scratch, is_root, names, require};

const VM: VmId = VmId::from_bits(0xbeef);
/// Longer than any step takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A host with our shim and without systemd.
struct Host {
    scratch: Scratch,
    console: File,
}

impl Host {
    fn new() -> Self {
        let scratch = Scratch::new();
        scratch.install("banger-shim");
        // The VMM's user must be able to reach the files that it may see.
        for directory in [scratch.home.path(), scratch.paths.libexec.as_path()] {
            fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self { scratch, console: ring() }
    }

    /// Returns the supervisor of a run of the service.
    fn supervisor(&self) -> ProcessSupervisor {
        ProcessSupervisor::new(self.scratch.paths.clone())
    }

    fn launch(&self, script: &str) -> VmmCommand {
        VmmCommand {
            argv: ["/usr/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            files: Vec::new(),
            console: self.console.try_clone().unwrap().into(),
            log: ring().into(),
        }
    }

    fn said(&self) -> String {
        let mut bytes = Vec::new();
        let mut reader = Reader::new(self.console.try_clone().unwrap()).unwrap();
        while reader.read(&mut bytes).unwrap() {}
        String::from_utf8(bytes).unwrap()
    }

    /// Runs a script to its end, and returns its output.
    async fn run(&self, script: &str) -> String {
        let supervisor = self.supervisor();
        start(&supervisor, VM, self.launch(script)).await.unwrap();
        assert_eq!(end(&supervisor).await, Ended::Clean, "{}", self.said());
        supervisor.remove(VM).await.unwrap();
        self.said()
    }

    async fn until_said(&self, word: &str) {
        let said = async {
            while !self.said().contains(word) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, said).await.unwrap();
    }
}

async fn start(supervisor: &ProcessSupervisor, vm: VmId, launch: VmmCommand) -> Result<Started> {
    let spec = JailSpec {
        vm,
        owner: Uid(1000),
        description: "a test".into(),
        memory_max: Bytes::mib(64),
        cpu_percent: 100,
        devices: Vec::new(),
        directory: None,
        network: NetworkNamespace::Private,
    };
    supervisor.start_jail(spec).await?.run(launch).await
}

fn ring() -> File {
    let memory: OwnedFd = rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(memory);
    Writer::create(file.try_clone().unwrap(), 64 << 10).unwrap();
    file
}

async fn end(supervisor: &ProcessSupervisor) -> Ended {
    tokio::time::timeout(TIMEOUT, supervisor.ended(VM)).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_vmm_is_nobody_and_sees_nothing() {
    require!(is_root(), "root");
    let host = Host::new();
    fs::write(host.scratch.home.path().join("secret"), "secret").unwrap();
    let script = "export PATH=/usr/bin; id -u; ls /; grep -e CapEff -e NoNewPrivs /proc/self/status; ls -d /proc/[0-9]* | wc -l; \
                  ls /sys/class/net 2>&1; touch /x 2>&1; touch /usr/x 2>&1; head -c 1 /dev/zero | wc -c; \
                  cat /proc/net/dev 2>&1 | wc -l; ls /root /home /etc/shadow /run 2>&1; true";
    let said = host.run(script).await;
    let user: u32 = said.lines().next().unwrap().parse().unwrap();
    assert!((61_184..=65_519).contains(&user), "{said}");
    assert!(said.contains("CapEff:\t0000000000000000") && said.contains("NoNewPrivs:\t1"), "{said}");
    assert!(said.contains("'/x': Read-only") && said.contains("'/usr/x': Read-only"), "{said}");
    for unseen in ["/root", "/home", "/etc/shadow", "/run", "/sys/class/net"] {
        assert!(said.contains(&format!("'{unseen}': No such file")), "{unseen}: {said}");
    }
    assert!(!said.contains("secret"), "{said}");
}

#[tokio::test]
async fn two_vms_have_different_users() {
    require!(is_root(), "root");
    // Each has a log of its own, since a log has one writer.
    let (host, other_host) = (Host::new(), Host::new());
    let supervisor = host.supervisor();
    let other = VmId::from_bits(7);
    let script = "/usr/bin/id -u; exec /usr/bin/sleep 1000";
    let started = start(&supervisor, VM, host.launch(script)).await.unwrap();
    let second = start(&supervisor, other, other_host.launch(script)).await.unwrap();
    host.until_said("\n").await;
    other_host.until_said("\n").await;
    assert_ne!(host.said(), other_host.said());
    let mut found: Vec<u32> = supervisor.found().await.unwrap().iter().map(|(_, s)| s.pid).collect();
    found.sort_unstable();
    let mut pids = [started.pid, second.pid];
    pids.sort_unstable();
    assert_eq!(found, pids);
    for vm in [VM, other] {
        supervisor.remove(vm).await.unwrap();
    }
    assert!(supervisor.found().await.unwrap().is_empty());
}

#[tokio::test]
async fn another_run_of_the_service_finds_ends_and_removes_it() {
    require!(is_root(), "root");
    let host = Host::new();
    let started =
        start(&host.supervisor(), VM, host.launch("echo up; exec /usr/bin/sleep 1000")).await.unwrap();
    host.until_said("up").await;
    let later = host.supervisor();
    assert_eq!(later.found().await.unwrap(), [(VM, started.clone())]);
    later.kill(VM, 9).await.unwrap();
    assert_eq!(end(&later).await, Ended::Failed("killed:9".into()));
    assert!(later.found().await.unwrap().is_empty());
    later.remove(VM).await.unwrap();
    later.remove(VM).await.unwrap();
    assert!(names(&host.scratch.paths.socket_dir(VM)).is_empty());
    assert_eq!(end(&later).await, Ended::Unknown);
}

#[tokio::test]
async fn the_exit_of_a_vmm_can_be_read_afterwards() {
    require!(is_root(), "root");
    for (script, expect) in [
        ("exit 0", Ended::Clean),
        ("exit 3", Ended::Failed("exited:3".into())),
        ("kill -TERM $$", Ended::Failed("killed:15".into())),
    ] {
        let host = Host::new();
        let supervisor = host.supervisor();
        start(&supervisor, VM, host.launch(script)).await.unwrap();
        assert_eq!(end(&supervisor).await, expect, "{script}");
        assert_eq!(end(&host.supervisor()).await, expect, "{script}, by another run");
        supervisor.remove(VM).await.unwrap();
    }
}

#[tokio::test]
async fn a_vm_that_runs_is_not_started_again() {
    require!(is_root(), "root");
    let host = Host::new();
    let supervisor = host.supervisor();
    let started = start(&supervisor, VM, host.launch("exec /usr/bin/sleep 1000")).await.unwrap();
    assert!(start(&supervisor, VM, host.launch("exec /usr/bin/sleep 1000")).await.is_err());
    assert_eq!(supervisor.found().await.unwrap(), [(VM, started)]);
    supervisor.remove(VM).await.unwrap();
}

#[tokio::test]
async fn a_missing_program_leaves_nothing() {
    require!(is_root(), "root");
    let host = Host::new();
    let supervisor = host.supervisor();
    let launch = VmmCommand { argv: vec!["/no/such/vmm".into()], ..host.launch("") };
    let error = start(&supervisor, VM, launch).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/vmm"), "{error}");
    assert!(supervisor.found().await.unwrap().is_empty());
    assert!(names(&host.scratch.paths.socket_dir(VM)).is_empty());
}

#[tokio::test]
async fn a_garbage_record_does_no_harm() {
    require!(is_root(), "root");
    let host = Host::new();
    let supervisor = host.supervisor();
    let directory = host.scratch.paths.socket_dir(VM);
    for garbage in [&b""[..], b"{", b"{\"boot\":1}", b"\xff\0", &[b'['; 100_000]] {
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("process.json"), garbage).unwrap();
        assert!(supervisor.found().await.unwrap().is_empty());
        supervisor.remove(VM).await.unwrap();
    }
}

#[tokio::test]
async fn a_record_from_another_boot_or_of_another_process_is_ignored() {
    require!(is_root(), "root");
    let host = Host::new();
    let supervisor = host.supervisor();
    let directory = host.scratch.paths.socket_dir(VM);
    fs::create_dir_all(&directory).unwrap();
    let own = std::process::id();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for boot in [boot.trim(), "another"] {
        let record = format!(r#"{{"boot":"{boot}","pid":{own},"began":1,"user":61184}}"#);
        fs::write(directory.join("process.json"), record).unwrap();
        assert!(supervisor.found().await.unwrap().is_empty());
        // This process would be killed.
        supervisor.remove(VM).await.unwrap();
    }
    assert!(Path::new(&format!("/proc/{own}")).metadata().unwrap().uid() == 0);
}
