//! Tests of the stored captures: what is written comes back, and what does not verify is refused.
#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt;

use rustix::pipe::{PipeFlags, pipe_with};

use super::*;

const VM: VmId = VmId::from_bits(7);
const AT: Timestamp = Timestamp(1_000_000);

struct Host {
    _home: tempfile::TempDir,
    captures: LocalCaptures,
}

impl Host {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let captures = LocalCaptures::new(home.path().join("captures"));
        Self { _home: home, captures }
    }

    async fn receive(&self, content: &[u8], most: usize) -> Result<Box<dyn Unfinished>> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let content = content.to_vec();
        let writer = std::thread::spawn(move || drop(File::from(to).write_all(&content)));
        let received = self.captures.receive(VM, from, Bytes(most as u64)).await;
        writer.join().unwrap();
        received
    }

    async fn keep(&self, content: &[u8]) -> Stored {
        let unfinished = self.receive(content, content.len()).await.unwrap();
        unfinished.finish(&facts("QEMU 7.2.1"), AT, None).await.unwrap()
    }

    async fn send(&self) -> (Vec<u8>, Result<()>) {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let reader = std::thread::spawn(move || {
            let mut content = Vec::new();
            File::from(from).read_to_end(&mut content).unwrap();
            content
        });
        let sent = self.captures.send(VM, to).await;
        (reader.join().unwrap(), sent)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.captures.path(VM).join(name)
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(&self.captures.directory).is_ok_and(|mut entries| entries.next().is_none())
    }
}

fn facts(vmm: &str) -> HostFacts {
    [("the VMM".to_owned(), vmm.to_owned())].into()
}

fn memory() -> Vec<u8> {
    (0..3 * CHUNK + 5).map(|at| (at / 7) as u8).collect()
}

#[tokio::test]
async fn what_a_vmm_writes_comes_back_and_only_root_reads_it() {
    let host = Host::new();
    let stored = host.keep(&memory()).await;
    assert!(stored.size.0 >= 3 * CHUNK as u64 && stored.at == AT, "{stored:?}");
    assert_eq!(host.captures.stored(VM).await.unwrap(), Some(stored));
    host.captures.check(VM, &facts("QEMU 7.2.1")).await.unwrap();
    let (content, sent) = host.send().await;
    sent.unwrap();
    assert!(content == memory());
    for (path, mode) in [("", 0o700), (MANIFEST, 0o600), (STATE, 0o600)] {
        let found = fs::metadata(host.path(path)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{path:?}");
    }
    assert_eq!(host.captures.found().await.unwrap(), [VM]);
    for _ in 0..2 {
        host.captures.remove(VM).await.unwrap();
    }
    assert!(host.is_empty());
}

#[tokio::test]
async fn a_capture_has_no_name_before_it_is_complete_and_leaves_nothing_if_it_is_not() {
    let host = Host::new();
    let unfinished = host.receive(&memory(), memory().len()).await.unwrap();
    assert_eq!(host.captures.stored(VM).await.unwrap(), None);
    assert_eq!(host.captures.found().await.unwrap(), [VM], "recovery finds it");
    // As a stop does meanwhile: what was removed does not come back.
    host.captures.remove(VM).await.unwrap();
    assert!(unfinished.finish(&facts("QEMU 7.2.1"), AT, None).await.is_err());
    assert!(host.is_empty());
    drop(host.receive(&memory(), memory().len()).await.unwrap());
    assert!(host.is_empty());
}

#[tokio::test]
async fn a_vmm_that_writes_more_than_its_memory_is_refused() {
    let host = Host::new();
    assert!(host.receive(&memory(), memory().len() - 1).await.is_err());
    assert!(host.is_empty());
}

#[tokio::test]
async fn what_was_changed_or_is_missing_is_damaged() {
    let flip: fn(&Path) = |state| {
        let file = File::options().read(true).write(true).open(state).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 12345).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 12345).unwrap();
    };
    let cut: fn(&Path) = |state| File::options().write(true).open(state).unwrap().set_len(100).unwrap();
    let lengthen: fn(&Path) =
        |state| File::options().append(true).open(state).unwrap().write_all(b"x").unwrap();
    for damage in [flip, cut, lengthen] {
        let host = Host::new();
        host.keep(&memory()).await;
        damage(&host.path(STATE));
        let (_, sent) = host.send().await;
        assert!(matches!(sent, Err(Error::Damaged { .. })), "{sent:?}");
        // It stays for its owner to decide.
        assert!(host.captures.stored(VM).await.unwrap().is_some());
    }
    let host = Host::new();
    let missing = host.captures.check(VM, &facts("QEMU 7.2.1")).await;
    assert!(matches!(missing, Err(Error::Damaged { .. })), "{missing:?}");
    host.keep(&memory()).await;
    fs::write(host.path(MANIFEST), "{").unwrap();
    let garbled = host.captures.check(VM, &facts("QEMU 7.2.1")).await;
    assert!(matches!(garbled, Err(Error::Damaged { .. })), "{garbled:?}");
}

#[tokio::test]
async fn a_capture_is_loaded_only_where_it_was_made() {
    let host = Host::new();
    host.keep(&memory()).await;
    let differs = host.captures.check(VM, &facts("QEMU 8.0.0")).await;
    let expect = "the VMM (QEMU 7.2.1, now QEMU 8.0.0)";
    assert!(matches!(&differs, Err(Error::Differs { what }) if what == expect), "{differs:?}");
}

#[tokio::test]
async fn a_vmm_that_stops_reading_does_not_hide_damage() {
    for is_damaged in [false, true] {
        let host = Host::new();
        host.keep(&memory()).await;
        if is_damaged {
            File::options().append(true).open(host.path(STATE)).unwrap().write_all(b"x").unwrap();
        }
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(from);
        let sent = host.captures.send(VM, to).await;
        assert_eq!(matches!(sent, Err(Error::Damaged { .. })), is_damaged, "{sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_vmm_that_does_not_read_is_given_up_and_the_rest_is_verified() {
    let host = Host::new();
    host.keep(&memory()).await;
    let (unread, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    host.captures.send(VM, to).await.unwrap();
    drop(unread);
}
