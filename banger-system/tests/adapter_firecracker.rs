//! Firecracker as a monitor: the real one as far as it goes without a guest, and others that answer on its
//! socket as no Firecracker should. Guests boot in the test host.
#![allow(clippy::unwrap_used, missing_docs)]

mod scratch;
mod skip;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use banger_domain::{
    id::{Uid, VmId},
    machine::{Access, Drive, Machine, Medium},
    monitor::Wish,
    stream::Purpose,
};
use banger_proto::size::Bytes;
use banger_system::{
    host::{firecracker::Firecracker, supervisor_process::ProcessSupervisor},
    ports::{Channel, Error, Started, Supervisor, Vmm},
};
use scratch::{Scratch, is_root, names, require};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

/// The real program: the one that is named, else the one on the path.
fn real() -> Option<PathBuf> {
    let named = std::env::var_os("BANGER_TEST_FIRECRACKER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|directory| directory.join("firecracker"));
    named.or_else(|| found.find(|program| program.is_file()))
}

/// A host on which monitors run behind walls, and a machine of it.
struct Host {
    scratch: Scratch,
    vmm: Firecracker,
    supervisor: ProcessSupervisor,
    machine: Machine,
}

impl Host {
    fn new() -> Self {
        let scratch = Scratch::new();
        let places = scratch.places.clone();
        scratch.install("banger-shim");
        let program = places.libexec.join("firecracker");
        let vm = VmId::from_bits(0xfc);
        fs::create_dir_all(places.vm_dir(vm)).unwrap();
        fs::set_permissions(&places.state, fs::Permissions::from_mode(0o700)).unwrap();
        let file = |name: &str, mode: u32| {
            let path = places.state.join(name);
            fs::write(&path, vec![0; 1 << 20]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let machine = Machine {
            vm,
            owner: Uid(1000),
            name: "calm-otter".into(),
            vmm: Wish::Auto,
            vcpus: 1,
            memory: Bytes::mib(128),
            kernel: file("vmlinux", 0o644),
            initramfs: Vec::new(),
            guest_archive: b"070701".to_vec(),
            drives: vec![
                Drive { path: file("system", 0o600), access: Access::ReadWrite, medium: Medium::File },
                Drive { path: file("work", 0o444), access: Access::ReadOnly, medium: Medium::File },
            ],
            nics: Vec::new(),
        };
        let vmm = Firecracker::new(places.clone(), Some(program));
        Self { vmm, supervisor: ProcessSupervisor::new(places), machine, scratch }
    }

    /// Installs a program in Firecracker's place.
    fn install(&self, program: &Path) {
        fs::copy(program, self.scratch.places.libexec.join("firecracker")).unwrap();
    }

    fn install_script(&self, script: &str) {
        let path = self.scratch.places.libexec.join("firecracker");
        fs::write(&path, format!("#!/usr/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn start(&self) -> Started {
        let confinement = self.vmm.jail_spec(&self.machine).await.unwrap();
        let confined = self.supervisor.start_jail(confinement).await.unwrap();
        let launch = self.vmm.prepare_launch(&self.machine).await.unwrap();
        confined.run(launch).await.unwrap()
    }

    async fn boot(&self) -> Result<(), Error> {
        let started = self.start().await;
        self.vmm.configure(&self.machine, &started).await
    }

    /// What the monitor wrote to its log.
    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.scratch.places.vmm_log(self.machine.vm)).unwrap()).into_owned()
    }

    /// Undoes everything, twice, and sees that nothing is left.
    async fn remove(self) {
        for _ in 0..2 {
            self.supervisor.remove(self.machine.vm).await.unwrap();
            self.vmm.remove_sockets(self.machine.vm).await.unwrap();
        }
        assert!(names(&self.scratch.places.sockets()).is_empty());
        assert!(self.vmm.found().await.unwrap().is_empty());
    }

    /// Answers on the socket of the API as this function does, and configures a machine against it.
    async fn against<F>(&self, serve: impl FnOnce(UnixStream) -> F + Send + 'static) -> Error
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let directory = self.scratch.places.machine_dir(self.machine.vm);
        fs::create_dir_all(&directory).unwrap();
        let listener = UnixListener::bind(directory.join("api.sock")).unwrap();
        let server = tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
        let started = Started { unit: String::new(), pid: std::process::id(), user: 61_184 };
        let error = self.vmm.configure(&self.machine, &started).await.unwrap_err();
        server.abort();
        error
    }
}

/// Reads a request, whose answer is this.
async fn answer(stream: &mut UnixStream, status: &str, body: &str) {
    let mut seen = Vec::new();
    while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        assert_ne!(count, 0, "hung up");
        seen.extend_from_slice(&bytes[..count]);
    }
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn the_real_one_takes_every_word_and_says_why_it_cannot_boot() {
    let program = real();
    require!(
        is_root() && program.is_some(),
        "root and Firecracker, named by BANGER_TEST_FIRECRACKER or on PATH"
    );
    require!(Path::new("/dev/kvm").exists(), "/dev/kvm");
    let host = Host::new();
    host.install(&program.unwrap());
    // The disks are root's, and the process is another user's; the kernel is none, which is seen last of all.
    let error = host.boot().await.unwrap_err().to_string();
    assert!(error.starts_with("Firecracker refuses PUT /actions: "), "{error}");
    let inside = host.scratch.places.machine_dir(host.machine.vm);
    assert_eq!(names(&inside), ["api.sock", "vsock.sock"]);
    host.remove().await;
}

#[tokio::test]
async fn one_that_ends_at_once_is_told_with_its_last_words() {
    require!(is_root(), "root");
    let host = Host::new();
    host.install_script("echo first >&2; echo 'cannot open the /dev/kvm' >&2; exit 1");
    let error = host.boot().await.unwrap_err();
    assert!(matches!(error, Error::Vmm { .. }), "{error:?}");
    assert_eq!(error.to_string(), "Firecracker ended at once: cannot open the /dev/kvm", "{}", host.log());
    host.remove().await;
}

#[tokio::test]
async fn one_that_is_not_there_is_told_before_anything_is_made() {
    let host = Host::new();
    let error = host.vmm.jail_spec(&host.machine).await.unwrap_err();
    assert!(
        matches!(&error, Error::HostNotReady { message } if message.contains("not installed")),
        "{error:?}"
    );
    assert!(names(&host.scratch.places.sockets()).is_empty());
}

#[tokio::test]
async fn an_old_one_and_one_of_the_future_are_refused() {
    for (version, expect) in
        [("1.7.0", "Firecracker 1.7 is not supported"), ("2.0.0", "Firecracker 2.0 is not supported")]
    {
        let host = Host::new();
        let body = format!("{{\"firecracker_version\":\"{version}\"}}");
        let error =
            host.against(|mut stream| async move { answer(&mut stream, "200 OK", &body).await }).await;
        assert!(
            matches!(&error, Error::HostNotReady { message } if message.starts_with(expect)),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_refusal_is_passed_on_in_its_own_words() {
    let host = Host::new();
    let error = host
        .against(|mut stream| async move {
            answer(&mut stream, "200 OK", "{\"firecracker_version\":\"1.16.1\"}").await;
            answer(&mut stream, "400 Bad Request", "{\"fault_message\":\"Too much memory.\"}").await;
            std::future::pending().await
        })
        .await;
    assert_eq!(error.to_string(), "Firecracker refuses PUT /machine-config: Too much memory.");
}

#[tokio::test]
async fn garbage_is_no_answer() {
    for garbage in ["SSH-2.0-none\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"] {
        let host = Host::new();
        let error = host
            .against(move |mut stream| async move {
                stream.write_all(garbage.as_bytes()).await.unwrap();
            })
            .await;
        let text = error.to_string();
        assert!(text.starts_with("Firecracker gives no proper answer to GET /version"), "{text}");
    }
    let host = Host::new();
    let error = host
        .against(|mut stream| async move {
            answer(&mut stream, "200 OK", "[]").await;
            std::future::pending().await
        })
        .await;
    assert_eq!(error.to_string(), "Firecracker answers nonsense to GET /version");
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let host = Host::new();
    let error = host
        .against(|mut stream| async move {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n").await.unwrap();
            while stream.write_all(&[b' '; 4096]).await.is_ok() {}
        })
        .await;
    assert!(matches!(error, Error::Vmm { .. }), "{error:?}");
}

#[tokio::test]
async fn one_that_hangs_is_given_up() {
    let host = Host::new();
    let error = host
        .against(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream)
        })
        .await;
    assert!(matches!(&error, Error::Timeout { after, .. } if *after == Duration::from_secs(5)), "{error:?}");
}

#[tokio::test]
async fn a_guest_is_asked_for_by_the_agents_port_and_what_it_says_is_not_swallowed() {
    let host = Host::new();
    let directory = host.scratch.places.machine_dir(host.machine.vm);
    fs::create_dir_all(&directory).unwrap();
    let listener = UnixListener::bind(directory.join("vsock.sock")).unwrap();
    let monitor = tokio::spawn(async move {
        for reply in ["OK 1073741824\nhello", "", "no such port\n", "OK 99999999999999999999\n"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut order = [0; 13];
            stream.read_exact(&mut order).await.unwrap();
            assert_eq!(&order, b"CONNECT 1024\n");
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let connect = || host.vmm.connect(host.machine.vm, Channel::Stream(Purpose::Command));
    let mut said = String::new();
    connect().await.unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello");
    for expect in ["the guest does not listen", "answers nonsense", "answers nonsense"] {
        let error = connect().await.unwrap_err();
        assert!(matches!(&error, Error::Agent { message } if message.ends_with(expect)), "{error:?}");
    }
    monitor.await.unwrap();
}
