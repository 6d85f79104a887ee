//! Firecracker as a VMM: the real program as far as it gets without a guest, and fake ones that misbehave on its
//! socket. Guests boot in the test host.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use banger_domain::{
    id::{Uid, VmId},
    launch_spec::{Access, Drive, LaunchSpec, Medium},
    stream::Purpose,
    vmm::VmmChoice,
};
use banger_proto::size::Bytes;
use banger_system::{
    host::{process::supervisor_process::ProcessSupervisor, vmm::firecracker::Firecracker},
    ports::{
        HostError,
        guest_link::{self, Channel},
        supervisor::{Started, Supervisor},
        vmm::{Error, Vmm},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use crate::scratch::{Scratch, is_root, names, require};
use crate::skip;

/// Returns the real program: from the environment, else from the path.
fn real() -> Option<PathBuf> {
    let named = std::env::var_os("BANGER_TEST_FIRECRACKER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|directory| directory.join("firecracker"));
    named.or_else(|| found.find(|program| program.is_file()))
}

/// A host with jailed VMMs, and a sandbox on it.
struct Host {
    scratch: Scratch,
    vmm: Firecracker,
    supervisor: ProcessSupervisor,
    spec: LaunchSpec,
}

impl Host {
    fn new() -> Self {
        let scratch = Scratch::new();
        let paths = scratch.paths.clone();
        scratch.install("banger-shim");
        let program = paths.libexec.join("firecracker");
        let vm = VmId::from_bits(0xfc);
        fs::create_dir_all(paths.vm_dir(vm)).unwrap();
        fs::set_permissions(&paths.state, fs::Permissions::from_mode(0o700)).unwrap();
        let file = |name: &str, mode: u32| {
            let path = paths.state.join(name);
            fs::write(&path, vec![0; 1 << 20]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let spec = LaunchSpec {
            vm,
            owner: Uid(1000),
            name: "calm-otter".into(),
            vmm: VmmChoice::Auto,
            vcpus: 1,
            memory: Bytes::mib(128),
            kernel: file("vmlinux", 0o644),
            initramfs: Vec::new(),
            drives: vec![
                Drive { path: file("system", 0o600), access: Access::ReadWrite, medium: Medium::File },
                Drive { path: file("work", 0o444), access: Access::ReadOnly, medium: Medium::File },
            ],
            nics: Vec::new(),
        };
        let vmm = Firecracker::new(paths.clone(), Some(program));
        Self { vmm, supervisor: ProcessSupervisor::new(paths), spec, scratch }
    }

    /// Installs a program in place of Firecracker.
    fn install(&self, program: &Path) {
        fs::copy(program, self.scratch.paths.libexec.join("firecracker")).unwrap();
    }

    fn install_script(&self, script: &str) {
        let path = self.scratch.paths.libexec.join("firecracker");
        fs::write(&path, format!("#!/usr/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn start(&self) -> Started {
        let spec = self.vmm.jail_spec(&self.spec).await.unwrap();
        let jail = self.supervisor.start_jail(spec).await.unwrap();
        let launch = self.vmm.prepare_launch(&self.spec).await.unwrap();
        jail.run(launch).await.unwrap()
    }

    async fn boot(&self) -> Result<(), Error> {
        let started = self.start().await;
        self.vmm.configure(&self.spec, &started).await
    }

    /// Returns what the VMM wrote to its log.
    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.scratch.paths.vmm_log(self.spec.vm)).unwrap()).into_owned()
    }

    /// Undoes everything twice, and checks that nothing is left.
    async fn remove(self) {
        for _ in 0..2 {
            self.supervisor.remove(self.spec.vm).await.unwrap();
            self.vmm.remove_sockets(self.spec.vm).await.unwrap();
        }
        assert!(names(&self.scratch.paths.sockets()).is_empty());
        assert!(self.vmm.found().await.unwrap().is_empty());
    }

    /// Configures a sandbox against a fake API that answers with this function.
    async fn against<F>(&self, serve: impl FnOnce(UnixStream) -> F + Send + 'static) -> Error
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let directory = self.scratch.paths.vmm_dir(self.spec.vm);
        fs::create_dir_all(&directory).unwrap();
        let listener = UnixListener::bind(directory.join("api.sock")).unwrap();
        let server = tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
        let started = Started { unit: String::new(), pid: std::process::id(), user: 61_184 };
        let error = self.vmm.configure(&self.spec, &started).await.unwrap_err();
        server.abort();
        error
    }
}

/// Reads a request, and sends this answer.
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
async fn the_real_firecracker_accepts_every_request_and_says_why_it_cannot_boot() {
    let program = real();
    require!(
        is_root() && program.is_some(),
        "root and Firecracker, named by BANGER_TEST_FIRECRACKER or on PATH"
    );
    require!(skip::has_device("/dev/kvm"), "/dev/kvm");
    let host = Host::new();
    host.install(&program.unwrap());
    // The disks are root's and the process has another user; the kernel file is invalid, which is noticed last.
    let error = host.boot().await.unwrap_err().to_string();
    assert!(error.starts_with("Firecracker refuses PUT /actions: "), "{error}");
    let inside = host.scratch.paths.vmm_dir(host.spec.vm);
    assert_eq!(names(&inside), ["api.sock", "vsock.sock"]);
    host.remove().await;
}

#[tokio::test]
async fn a_vmm_that_ends_at_once_is_reported_with_its_last_log_line() {
    require!(is_root(), "root");
    let host = Host::new();
    host.install_script("echo first >&2; echo 'cannot open the /dev/kvm' >&2; exit 1");
    let error = host.boot().await.unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error:?}");
    assert_eq!(error.to_string(), "Firecracker ended at once: cannot open the /dev/kvm", "{}", host.log());
    host.remove().await;
}

#[tokio::test]
async fn a_missing_vmm_is_reported_before_anything_is_made() {
    let host = Host::new();
    let error = host.vmm.jail_spec(&host.spec).await.unwrap_err();
    assert!(
        matches!(&error, Error::Host(HostError::NotReady { message }) if message.contains("not installed")),
        "{error:?}"
    );
    assert!(names(&host.scratch.paths.sockets()).is_empty());
}

#[tokio::test]
async fn versions_that_are_too_old_or_too_new_are_refused() {
    for (version, expect) in
        [("1.7.0", "Firecracker 1.7 is not supported"), ("2.0.0", "Firecracker 2.0 is not supported")]
    {
        let host = Host::new();
        let body = format!("{{\"firecracker_version\":\"{version}\"}}");
        let error =
            host.against(|mut stream| async move { answer(&mut stream, "200 OK", &body).await }).await;
        assert!(
            matches!(&error, Error::Host(HostError::NotReady { message }) if message.starts_with(expect)),
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
async fn garbage_is_not_accepted() {
    for garbage in ["SSH-2.0-none\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"] {
        let host = Host::new();
        let error = host
            .against(move |mut stream| async move {
                stream.write_all(garbage.as_bytes()).await.unwrap();
            })
            .await;
        let text = error.to_string();
        assert!(text.starts_with("invalid reply from Firecracker to GET /version"), "{text}");
    }
    let host = Host::new();
    let error = host
        .against(|mut stream| async move {
            answer(&mut stream, "200 OK", "[]").await;
            std::future::pending().await
        })
        .await;
    assert_eq!(error.to_string(), "unexpected reply from Firecracker to GET /version");
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
    assert!(matches!(error, Error::Failed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_vmm_that_hangs_is_given_up() {
    let host = Host::new();
    let error = host
        .against(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream)
        })
        .await;
    assert!(
        matches!(&error, Error::Host(HostError::Timeout { after, .. }) if *after == Duration::from_secs(5)),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_guest_is_asked_for_by_the_agents_port_and_what_it_says_is_not_swallowed() {
    let host = Host::new();
    let directory = host.scratch.paths.vmm_dir(host.spec.vm);
    fs::create_dir_all(&directory).unwrap();
    let listener = UnixListener::bind(directory.join("vsock.sock")).unwrap();
    let vmm = tokio::spawn(async move {
        for reply in ["OK 1073741824\nhello", "", "no such port\n", "OK 99999999999999999999\n"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut order = [0; 13];
            stream.read_exact(&mut order).await.unwrap();
            assert_eq!(&order, b"CONNECT 1024\n");
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let connect = || host.vmm.connect(host.spec.vm, Channel::Stream(Purpose::Command));
    let mut said = String::new();
    connect().await.unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello");
    for expect in [
        "the guest does not listen",
        "unexpected reply from Firecracker",
        "unexpected reply from Firecracker",
    ] {
        let error = connect().await.unwrap_err();
        assert!(
            matches!(&error, guest_link::Error::Unavailable { message } if message.ends_with(expect)),
            "{error:?}"
        );
    }
    vmm.await.unwrap();
}
