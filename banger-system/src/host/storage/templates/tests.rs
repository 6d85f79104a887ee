//! Tests of the stored templates: what is kept, what is given up, and what does not verify.
#![allow(clippy::unwrap_used)]
use super::*;

const MIB: u64 = 1 << 20;

struct Host {
    home: tempfile::TempDir,
    templates: LocalTemplates,
}

impl Host {
    fn new(most: Bytes) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("kernel"), "a kernel").unwrap();
        let templates = LocalTemplates::new(home.path().join("templates"), most);
        Self { home, templates }
    }

    /// Returns the same templates after the service was started again: nothing is in memory.
    fn restart(&mut self) {
        let files = self.templates.files.clone();
        self.templates = LocalTemplates::new(files.directory, files.most);
    }

    fn key(&self, memory: &str) -> TemplateKey {
        let kernel = self.home.path().join("kernel");
        TemplateKey {
            files: [(kernel.clone(), stamp(&kernel).unwrap())].into(),
            host: vec!["6.1.0".into()],
            arguments: vec![memory.into()],
        }
    }

    async fn keep(&self, key: &TemplateKey, capture: &Capture) -> Kept {
        self.templates.keep(key, capture).await.unwrap()
    }

    async fn has(&self, key: &TemplateKey) -> bool {
        self.templates.load(key).await.unwrap().is_some()
    }

    fn path(&self, key: &TemplateKey, name: &str) -> PathBuf {
        self.templates.files.directory.join(id_of(key)).join(name)
    }

    fn names(&self) -> Vec<String> {
        names(&self.templates.files.directory).unwrap()
    }
}

/// Returns a capture of 64 MiB of memory with this much data in it.
fn capture(data: u64) -> Capture {
    let memory = |size: u64, data: u64| -> OwnedFd {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&vec![7; data as usize], 8 * MIB).unwrap();
        memory::sealed_copy(&file).unwrap().into()
    };
    Capture { state: memory(16 * MIB, 4096), memory: memory(64 * MIB, data) }
}

fn content(file: &OwnedFd) -> Vec<u8> {
    let file = File::from(file.try_clone().unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[tokio::test]
async fn a_template_is_found_again_after_a_restart_and_is_sealed() {
    let mut host = Host::new(Bytes::gib(1));
    let (key, made) = (host.key("64M"), capture(MIB));
    assert!(!host.has(&key).await);
    assert_eq!(host.keep(&key, &made).await, Kept::Yes);
    host.restart();
    host.templates.tidy().await.unwrap();
    let found = host.templates.load(&key).await.unwrap().unwrap();
    assert!(content(&found.state) == content(&made.state));
    assert!(content(&found.memory) == content(&made.memory));
    assert!(File::from(found.memory.try_clone().unwrap()).write_all_at(b"x", 0).is_err());
    let stored = fs::metadata(host.path(&key, MEMORY)).unwrap();
    assert!(stored.blocks() * 512 < 2 * MIB, "it is not sparse");
}

#[tokio::test]
async fn a_template_is_used_only_for_its_own_key() {
    let host = Host::new(Bytes::gib(1));
    let key = host.key("64M");
    host.keep(&key, &capture(MIB)).await;
    let kernel = host.home.path().join("kernel");
    for other in [
        TemplateKey { arguments: vec!["128M".into()], ..key.clone() },
        TemplateKey { host: vec!["6.1.1".into()], ..key.clone() },
        TemplateKey { files: [(kernel, "1-2-3".into())].into(), ..key.clone() },
        TemplateKey { files: BTreeMap::new(), ..key.clone() },
    ] {
        assert!(!host.has(&other).await, "{other:?}");
    }
    assert!(host.has(&key).await);
}

#[tokio::test]
async fn a_damaged_template_is_moved_aside_and_shown() {
    for name in [STATE, MEMORY, MANIFEST] {
        let mut host = Host::new(Bytes::gib(1));
        let key = host.key("64M");
        host.keep(&key, &capture(MIB)).await;
        host.restart();
        let file = File::options().write(true).open(host.path(&key, name)).unwrap();
        file.write_all_at(b"?", 9 * MIB - 1).unwrap();
        assert!(!host.has(&key).await, "{name}");
        assert_eq!(host.names(), [DAMAGED], "{name}");
        let check = host.templates.checks().await.remove(0);
        assert!(
            check.message.starts_with("0 templates take ") && check.message.contains("damaged"),
            "{check:?}"
        );
        assert_eq!(host.keep(&key, &capture(MIB)).await, Kept::Yes);
        assert!(host.has(&key).await, "{name}");
    }
}

#[tokio::test]
async fn a_missing_file_is_damage_too() {
    for name in [STATE, MEMORY, MANIFEST] {
        let host = Host::new(Bytes::gib(1));
        let key = host.key("64M");
        host.keep(&key, &capture(MIB)).await;
        fs::remove_file(host.path(&key, name)).unwrap();
        assert!(!host.has(&key).await, "{name}");
    }
}

#[tokio::test]
async fn a_template_that_a_start_failed_with_is_not_used_again() {
    let host = Host::new(Bytes::gib(1));
    let key = host.key("64M");
    host.keep(&key, &capture(MIB)).await;
    assert!(host.has(&key).await);
    for _ in 0..2 {
        host.templates.quarantine(&key).await.unwrap();
        assert!(!host.has(&key).await);
    }
}

#[tokio::test]
async fn unfinished_and_outdated_templates_are_removed() {
    let mut host = Host::new(Bytes::gib(1));
    let key = host.key("64M");
    host.keep(&key, &capture(MIB)).await;
    let unfinished = staging::Staging::begin(&host.templates.files.directory, "interrupted").unwrap();
    let manifest = fs::read(host.path(&key, MANIFEST)).unwrap();
    unfinished.file(MANIFEST, 0o600).unwrap().write_all_at(&manifest, 0).unwrap();
    std::mem::forget(unfinished);
    host.restart();
    host.templates.tidy().await.unwrap();
    assert_eq!(host.names(), [id_of(&key)]);
    fs::write(host.home.path().join("kernel"), "a newer kernel").unwrap();
    host.templates.tidy().await.unwrap();
    assert!(host.names().is_empty());
}

#[tokio::test]
async fn the_templates_that_were_not_used_for_longest_make_room() {
    let mut host = Host::new(Bytes::mib(9));
    let keys = ["a", "b", "c"].map(|memory| host.key(memory));
    for (key, age) in keys[..2].iter().zip([10, 20]) {
        assert_eq!(host.keep(key, &capture(3 * MIB)).await, Kept::Yes);
        let manifest = File::options().write(true).open(host.path(key, MANIFEST)).unwrap();
        manifest.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    assert!(host.has(&keys[1]).await, "it is older, but was used just now");
    assert_eq!(host.keep(&keys[2], &capture(3 * MIB)).await, Kept::Yes);
    host.restart();
    let mut kept = Vec::new();
    for key in &keys {
        kept.push(host.has(key).await);
    }
    assert_eq!(kept, [false, true, true]);
    let large = host.key("large");
    assert_eq!(host.keep(&large, &capture(20 * MIB)).await, Kept::TooLarge);
    assert!(!host.has(&large).await && host.has(&keys[1]).await);
}

#[tokio::test]
async fn without_room_all_templates_are_removed() {
    let mut host = Host::new(Bytes::gib(1));
    let keys = ["a", "b"].map(|memory| host.key(memory));
    for key in &keys {
        host.keep(key, &capture(MIB)).await;
    }
    host.templates.quarantine(&keys[0]).await.unwrap();
    host.templates.files.most = Bytes(0);
    host.restart();
    host.templates.tidy().await.unwrap();
    assert!(host.names().is_empty());
    assert_eq!(host.keep(&keys[1], &capture(MIB)).await, Kept::TooLarge);
}

#[tokio::test(start_paused = true)]
async fn a_template_leaves_memory_when_it_is_idle() {
    let host = Host::new(Bytes::gib(1));
    let key = host.key("64M");
    host.keep(&key, &capture(MIB)).await;
    assert!(host.has(&key).await);
    assert_eq!(lock(&host.templates.loaded).len(), 1);
    tokio::time::sleep(IDLE / 2).await;
    assert!(host.has(&key).await);
    tokio::time::sleep(IDLE * 3 / 4).await;
    assert_eq!(lock(&host.templates.loaded).len(), 1, "it was used meanwhile");
    tokio::time::sleep(IDLE * 2).await;
    assert!(lock(&host.templates.loaded).is_empty());
}

#[test]
fn the_digest_does_not_depend_on_holes() {
    let (dense, sparse) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    dense.write_all_at(&vec![0; 2 * MIB as usize], 0).unwrap();
    sparse.set_len(2 * MIB).unwrap();
    for file in [&dense, &sparse] {
        file.write_all_at(b"data", MIB + 5).unwrap();
    }
    assert_eq!(digest(&dense).unwrap(), digest(&sparse).unwrap());
    sparse.write_all_at(b"data", MIB + 4096 + 5).unwrap();
    assert_ne!(digest(&dense).unwrap(), digest(&sparse).unwrap());
    sparse.set_len(MIB).unwrap();
    dense.set_len(MIB + 1).unwrap();
    assert_ne!(digest(&dense).unwrap(), digest(&sparse).unwrap());
}
