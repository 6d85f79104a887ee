//! Suspending under the real QEMU: a running guest is saved, its VMM ends, and another one continues with its memory.
//!
//! The guest is the counter of `template.rs`: its output has neither a gap nor a repetition if its memory is right.

use std::{
    fs::{self, File},
    io::Write,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use banger_domain::{
    architecture::Architecture,
    id::{Timestamp, VmId},
    launch_spec::LaunchSpec,
};
use banger_proto::size::Bytes;
use banger_system::{
    host::storage::captures::LocalCaptures,
    ports::{
        HostError,
        captures::{Captures, Error, HostFacts, Stored},
        supervisor::Supervisor,
        vmm::{self, Vmm},
    },
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{
    scratch::{Scratch, is_root, names, require},
    template::{Host, has_arm64_qemu, has_qemu},
};

const VM: VmId = VmId::from_bits(0x5);
const MOST: Bytes = Bytes::mib(128);
const AT: Timestamp = Timestamp(1);

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

impl Host {
    fn captures(&self) -> LocalCaptures {
        LocalCaptures::new(self.scratch.paths.captures())
    }

    async fn suspend(&self, facts: &HostFacts) -> Stored {
        let (from, to) = pipe();
        let captures = self.captures();
        let (received, saved) = tokio::join!(captures.receive(VM, from, MOST), self.vmm.save(VM, to));
        saved.unwrap();
        received.unwrap().finish(facts, AT, None).await.unwrap()
    }

    /// Loads the capture into another VMM. Its guest does not run yet.
    async fn load(&self, spec: &LaunchSpec) -> (Result<(), Error>, Result<(), vmm::Error>) {
        self.run(spec, self.vmm.prepare_resume(spec)).await;
        let (from, to) = pipe();
        let captures = self.captures();
        tokio::join!(captures.send(VM, to), self.vmm.load(VM, from))
    }
}

/// Returns whether each character follows the one before it.
pub fn counts(said: &[u8]) -> bool {
    said.windows(2).all(|pair| (pair[0] - b'0' + 1) & 63 == pair[1] - b'0')
}

#[tokio::test]
async fn a_saved_guest_continues_in_another_vmm_where_it_stood() {
    require!(has_qemu(), "root and QEMU");
    check_suspended_guest(Host::new()).await;
}

#[tokio::test]
async fn a_saved_arm64_guest_continues_where_it_stood() {
    require!(has_arm64_qemu(), "root and QEMU for arm64");
    check_suspended_guest(Host::emulating(Architecture::Aarch64)).await;
}

async fn check_suspended_guest(host: Host) {
    let spec = host.spec(VM);
    host.run(&spec, host.vmm.prepare_launch(&spec)).await;
    host.until_said(VM, 3).await;
    // What was loaded once can be saved again.
    for _ in 0..2 {
        let facts = host.vmm.facts(VM).await.unwrap();
        assert!(facts["the VMM"].starts_with("QEMU "), "{facts:?}");
        let stored = host.suspend(&facts).await;
        assert!(stored.size < Bytes::mib(32), "pages of zeros take no room: {stored:?}");
        let said = host.said(VM);
        assert!(counts(&said), "{said:?}");
        host.remove(VM).await;

        let (sent, loaded) = host.load(&spec).await;
        sent.unwrap();
        loaded.unwrap();
        assert_eq!(host.vmm.facts(VM).await.unwrap(), facts);
        host.captures().check(VM, &facts).await.unwrap();
        assert!(!host.vmm.has_begun(VM).await.unwrap());
        assert_eq!(host.said(VM), b"", "it stands still");
        host.vmm.go_on(VM).await.unwrap();
        assert!(host.vmm.has_begun(VM).await.unwrap());
        let before = said.last().copied().unwrap();
        let next = host.until_said(VM, 4).await;
        assert!(counts(&[&[before], &next[..]].concat()), "{before} {next:?}");
    }
    host.remove(VM).await;
    assert!(names(&host.scratch.paths.sockets()).is_empty());
}

#[tokio::test]
async fn a_guest_runs_on_after_it_was_saved_or_could_not_be() {
    require!(has_qemu(), "root and QEMU");
    let host = Host::new();
    let spec = host.spec(VM);
    host.run(&spec, host.vmm.prepare_launch(&spec)).await;
    host.until_said(VM, 2).await;

    // Nobody reads, as when the disk is full.
    let (from, to) = pipe();
    drop(from);
    assert!(host.vmm.save(VM, to).await.is_err());
    // A VMM that writes more than its memory.
    let (from, to) = pipe();
    let captures = host.captures();
    let (received, saved) = tokio::join!(captures.receive(VM, from, Bytes::kib(64)), host.vmm.save(VM, to));
    assert!(received.is_err(), "{saved:?}");
    for _ in 0..2 {
        host.vmm.go_on(VM).await.unwrap();
    }
    let before = host.said(VM).len();
    host.until_said(VM, before + 2).await;

    host.suspend(&HostFacts::new()).await;
    let before = host.said(VM).len();
    host.vmm.go_on(VM).await.unwrap();
    let said = host.until_said(VM, before + 2).await;
    assert!(counts(&said), "{said:?}");
    host.remove(VM).await;
}

#[tokio::test]
async fn a_damaged_capture_is_noticed_before_its_guest_runs() {
    require!(has_qemu(), "root and QEMU");
    let host = Host::new();
    let spec = host.spec(VM);
    host.run(&spec, host.vmm.prepare_launch(&spec)).await;
    host.until_said(VM, 2).await;
    host.suspend(&HostFacts::new()).await;
    host.remove(VM).await;
    let state = host.scratch.paths.captures().join(VM.to_string()).join("state");
    let file = File::options().read(true).write(true).open(state).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    file.write_all_at(b"damage", middle).unwrap();
    let (sent, _) = host.load(&spec).await;
    assert!(matches!(sent, Err(Error::Damaged { .. })), "{sent:?}");
    host.supervisor.remove(VM).await.unwrap();
    assert_eq!(host.said(VM), b"");
    host.remove(VM).await;
}

#[test]
fn a_capture_leaves_room_for_the_disks_of_others() {
    require!(is_root(), "root, to mount a small file system");
    let scratch = Scratch::on_small_file_system(260 << 20);
    fs::create_dir_all(scratch.paths.captures()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let captures = LocalCaptures::new(scratch.paths.captures());
        let (from, to) = pipe();
        let writer = std::thread::spawn(move || File::from(to).write_all(&vec![7; 32 << 20]));
        let Err(error) = captures.receive(VM, from, MOST).await else { panic!("the reserve was used") };
        assert!(matches!(error, Error::Host(HostError::NoSpace { .. })), "{error}");
        assert!(writer.join().unwrap().is_err());
        assert_eq!(captures.found().await.unwrap(), []);
    });
}
