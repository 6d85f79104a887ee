//! The files of kernels: the file that a VMM boots, the archive of the modules that a guest needs to boot, and
//! the file system of all modules. Also the archive of the agent, made again when the agent changes.

use std::{
    fs::{self, File},
    io::{BufReader, ErrorKind, Read, Seek, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use banger_domain::{
    architecture::Architecture,
    id::{ImageId, KernelId, Uid},
    resource::{KERNEL_FILE, MODULE_TREE_FILE, MODULES_FILE, Paths},
};
use banger_image::{
    ext4::{self, FileSystem},
    importer::message::{CopyFile, Extent, ModuleTree},
    installed::{InstalledKernel, modules},
    kernel::{
        drivers,
        extract::{self, extract},
        initramfs::{agent_archive, modules_archive},
        modules::{PickedModules, pick},
    },
    record::KernelFacts,
};
use banger_proto::{causes::with_causes, size::Bytes};
use sha2::{Digest, Sha256};

use super::{
    host_kernel::HostRoot,
    partial::Partial,
    staging::{self, Staging},
};
use crate::{
    host::{
        blocking::blocking,
        process::worker::{self, Job, Workers},
    },
    ports::{
        FromHost as _, NoProgress,
        kernel_files::{BootFiles, Error, HostKernel, KernelFiles, Result},
    },
};

/// Uncompressed modules of a distribution's kernel take up to 1.5 GiB.
const MAX_MODULES: Bytes = Bytes::gib(4);
/// Readable by everybody, as published by distributions, and writable by nobody.
const MODE: u32 = 0o444;
/// The file name of the agent.
const AGENT: &str = "banger-agent";

/// Kernels as files below [`Paths::kernels`].
#[derive(Clone)]
pub struct LocalKernels {
    paths: Paths,
    workers: Arc<dyn Workers>,
    host: HostRoot,
    /// The agent that this run of the service has put into the archive.
    archived: Arc<Mutex<Option<Build>>>,
}

impl LocalKernels {
    /// Returns the kernels below these paths. The workers read the files of users.
    pub fn new(paths: Paths, workers: Arc<dyn Workers>) -> Self {
        Self { paths, workers, host: HostRoot::default(), archived: Arc::default() }
    }

    /// Returns the same, with another root and release for the host's own kernel.
    pub fn with_host(self, root: impl Into<PathBuf>, running: impl Into<String>) -> Self {
        Self { host: HostRoot::at(root.into(), running.into()), ..self }
    }

    /// Returns a file without a name, which is gone when it is closed or the service is killed.
    async fn nameless(&self, doing: &str) -> Result<File> {
        let (parent, doing, id) = (self.paths.kernels(), doing.to_owned(), ImageId::random());
        blocking("begin a file", move || {
            // The directory is removed at once, or by the next start of the service if this one is killed before.
            let file = Staging::begin(&parent, &id.to_string()).and_then(|staging| staging.nameless());
            file.map_err(|source| Error::os(doing, source))
        })
        .await
    }

    /// Copies a user's file. The copy has no name and is positioned at its beginning.
    async fn take(&self, owner: Uid, file: OwnedFd, what: &str, max: Bytes) -> Result<File> {
        let doing = format!("copy {what}");
        let copy = self.nameless(&doing).await?;
        let order = CopyFile { what: what.to_owned(), max, extent: Extent::Whole };
        let files = (file, copy.try_clone().map_err(|source| Error::os(doing, source))?);
        let job = Job { id: ImageId::random(), owner };
        worker::copy_file(&*self.workers, job, order, files, None, Arc::new(NoProgress)).await?;
        Ok(copy)
    }

    /// Orders a worker to write the file system of all modules in an archive. Returns its size.
    async fn write_tree(&self, owner: Uid, archive: File, release: String, image: File) -> Result<Bytes> {
        let again = |error| Error::os("look at the modules", error);
        let written = image.try_clone().map_err(again)?;
        let job = Job { id: ImageId::random(), owner };
        let order = ModuleTree { release };
        let tree = worker::module_tree(&*self.workers, job, order, (archive, image)).await?;
        if tree.skipped > 0 {
            tracing::warn!(files = tree.skipped, "files of a kernel that are called modules are none");
        }
        blocking("look at the modules", move || {
            // The process that wrote it handled untrusted bytes, so the size is checked here.
            let size = Bytes(written.metadata().map_err(again)?.len());
            let mut head = [0; ext4::HEAD];
            written.read_exact_at(&mut head, 0).map_err(again)?;
            let unusable = |error| Error::other("check the modules that a worker wrote", error);
            let found = FileSystem::read(&head, size).map_err(unusable)?;
            match found.size == size && tree.size == size {
                true => Ok(size),
                false => Err(unusable(ext4::Unusable::Short { expected: tree.size, found: size })),
            }
        })
        .await
    }
}

#[async_trait]
impl KernelFiles for LocalKernels {
    async fn import(
        &self,
        kernel: KernelId,
        owner: Uid,
        vmlinuz: OwnedFd,
        modules: Option<OwnedFd>,
    ) -> Result<KernelFacts> {
        let mut image = self.take(owner, vmlinuz, "the kernel", extract::MAX_VMLINUX).await?;
        let extracted = blocking("extract a kernel", move || {
            let mut bytes = Vec::new();
            image.read_to_end(&mut bytes).map_err(|source| Error::os("read a kernel", source))?;
            extract(bytes, Architecture::HOST).map_err(|error| unsupported(&error))
        })
        .await?;
        let (parent, doing) =
            (self.paths.kernels(), move |error| Error::os(format!("write kernel {kernel}"), error));
        let begun = blocking("begin a kernel", move || {
            let staging = Staging::begin(&parent, &kernel.to_string()).map_err(doing)?;
            Ok::<_, Error>(staging)
        });
        let (staging, extracted, picked, module_tree) = match modules {
            None => {
                drivers::check(&extracted.vmlinux, extracted.facts.architecture)
                    .map_err(|error| unsupported(&error))?;
                let release = extracted.facts.release.clone();
                let none = PickedModules { release, modules: Vec::new(), absent: Vec::new() };
                (begun.await?, extracted, none, Bytes(0))
            }
            Some(modules) => {
                let tar = self.take(owner, modules, "the tar archive of the modules", MAX_MODULES).await?;
                let (extracted, picked, mut tar) = blocking("read the modules", move || {
                    let picked =
                        pick(BufReader::new(&tar), &extracted).map_err(|error| unsupported(&error))?;
                    Ok::<_, Error>((extracted, picked, tar))
                })
                .await?;
                tar.rewind().map_err(doing)?;
                let staging = begun.await?;
                let image = staging.file(MODULE_TREE_FILE, MODE).map_err(doing)?;
                let size = self.write_tree(owner, tar, picked.release.to_string(), image).await?;
                (staging, extracted, picked, size)
            }
        };
        blocking("write a kernel", move || write(staging, kernel, &extracted.vmlinux, &picked, module_tree))
            .await
    }

    async fn on_host(&self) -> Result<HostKernel> {
        let host = self.host.clone();
        blocking("look for the kernel of the host", move || host.find()).await
    }

    async fn import_from_host(&self, kernel: KernelId, from: &HostKernel) -> Result<KernelFacts> {
        let InstalledKernel { vmlinuz, modules, .. } = from.installed.clone();
        let vmlinuz = blocking("open the kernel of the host", move || {
            File::open(&vmlinuz).map_err(|source| os("open", &vmlinuz, source))
        })
        .await?;
        let modules = match modules {
            None => None,
            Some(directory) => {
                let file = self.nameless("pack the modules of the host").await?;
                let packed = blocking("pack the modules of the host", move || {
                    modules::archive(&directory, file)
                        .map_err(|error| Error::other("import the kernel of the host", error))
                })
                .await?;
                Some(packed.into())
            }
        };
        self.import(kernel, Uid::ROOT, vmlinuz.into(), modules).await
    }

    async fn boot_files(&self, kernel: KernelId) -> Result<BootFiles> {
        let (paths, archived) = (self.paths.clone(), Arc::clone(&self.archived));
        blocking("look for the files of a kernel", move || {
            let (elf, modules) = (paths.kernel(kernel), paths.kernel_modules(kernel));
            for file in [&elf, &modules] {
                if !file.try_exists().map_err(|source| os("look at", file, source))? {
                    let message =
                        format!("a file of the kernel is gone ({}); import the kernel again", file.display());
                    return Err(Error::not_ready(message));
                }
            }
            let tree = paths.module_tree(kernel);
            let has_tree = tree.try_exists().map_err(|source| os("look at", &tree, source))?;
            let initramfs = vec![modules, archive_agent(&paths, &archived)?];
            Ok(BootFiles { kernel: elf, initramfs, module_tree: has_tree.then_some(tree) })
        })
        .await
    }

    async fn remove(&self, kernel: KernelId) -> Result<()> {
        let parent = self.paths.kernels();
        blocking("remove a kernel", move || {
            staging::remove(&parent, &kernel.to_string())
                .map_err(|source| Error::os(format!("remove kernel {kernel}"), source))
        })
        .await
    }

    async fn found(&self) -> Result<Vec<KernelId>> {
        let parent = self.paths.kernels();
        blocking("look for kernels", move || {
            staging::found(&parent).map_err(|source| os("read", &parent, source))
        })
        .await
    }
}

fn write(
    staging: Staging,
    kernel: KernelId,
    vmlinux: &[u8],
    picked: &PickedModules,
    module_tree: Bytes,
) -> Result<KernelFacts> {
    let modules = modules_archive(picked).map_err(|error| unsupported(&error))?;
    let unwritten = |source| Error::os(format!("write kernel {kernel}"), source);
    for (name, content) in [(KERNEL_FILE, vmlinux), (MODULES_FILE, &modules)] {
        let mut file = staging.file(name, MODE).map_err(unwritten)?;
        file.write_all(content).map_err(unwritten)?;
    }
    staging.finish().map_err(unwritten)?;
    Ok(KernelFacts {
        digest: format!("sha256:{:x}", Sha256::digest(vmlinux)),
        release: picked.release.to_string(),
        modules: u32::try_from(picked.modules.len()).unwrap_or(u32::MAX),
        module_tree,
        size: Bytes((vmlinux.len() + modules.len()) as u64 + module_tree.0),
    })
}

/// Identifies a build of the agent by its file: installing another one changes at least one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Build {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Returns the archive of the current agent. Each run of the service compares it at least once, so that no archive of an
/// earlier run, perhaps half written, is ever booted. An equal one stays, and with it the templates that booted it.
fn archive_agent(paths: &Paths, archived: &Mutex<Option<Build>>) -> Result<PathBuf> {
    let (program, archive) = (paths.program(AGENT), paths.agent_archive());
    let mut agent = File::open(&program).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::not_ready(format!(
            "the guest agent {} is missing; install banger again",
            program.display()
        )),
        _ => os("open", &program, source),
    })?;
    let metadata = agent.metadata().map_err(|source| os("look at", &program, source))?;
    let build = Build {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    let mut archived = archived.lock().unwrap_or_else(PoisonError::into_inner);
    if *archived != Some(build) || !archive.exists() {
        let mut content = Vec::new();
        agent.read_to_end(&mut content).map_err(|source| os("read", &program, source))?;
        let content = agent_archive(&content)
            .map_err(|error| Error::other(format!("archive {}", program.display()), error))?;
        if !fs::read(&archive).is_ok_and(|old| old == content) {
            let unwritten = |source| os("write", &archive, source);
            let mut partial = Partial::begin(&archive, MODE).map_err(unwritten)?;
            partial.file.write_all(&content).map_err(unwritten)?;
            partial.replace().map_err(unwritten)?;
        }
        *archived = Some(build);
    }
    Ok(archive)
}

fn os(doing: &str, path: &Path, source: std::io::Error) -> Error {
    Error::os(format!("{doing} {}", path.display()), source)
}

/// Returns the error for a user's file that lacks something, with the causes.
fn unsupported(error: &dyn std::error::Error) -> Error {
    Error::Unsupported { message: with_causes(error) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::PermissionsExt};

    use banger_image::{fixtures::kernel as fixture, kernel::decompress::Compression};
    use tempfile::TempDir;

    use super::*;
    use crate::host::process::worker::in_process::InProcess;
    use crate::ports::HostError;

    const KERNEL: KernelId = KernelId::from_bits(0xdef);

    struct Scratch {
        home: TempDir,
        paths: Paths,
        kernels: LocalKernels,
    }

    impl Scratch {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let at = |name| home.path().join(name);
            let paths = Paths { state: at("state"), runtime: at("run"), libexec: at("libexec") };
            fs::create_dir(&paths.libexec).unwrap();
            fs::write(paths.program(AGENT), "an agent").unwrap();
            let kernels = LocalKernels::new(paths.clone(), Arc::new(InProcess));
            Self { home, paths, kernels }
        }

        fn file(&self, content: &[u8]) -> OwnedFd {
            let path = self.home.path().join("file");
            let _ = fs::remove_file(&path);
            fs::write(&path, content).unwrap();
            File::open(&path).unwrap().into()
        }

        fn vmlinuz(&self) -> OwnedFd {
            self.file(&fixture::bzimage(&fixture::payload(Compression::Zstd, &fixture::vmlinux())))
        }

        fn modules(&self, names: &[&str]) -> OwnedFd {
            let directory = format!("lib/modules/{}", fixture::RELEASE);
            let file = |name: &&str| (format!("{directory}/kernel/{name}.ko"), fixture::module_needing(""));
            let mut files: Vec<_> = names.iter().map(file).collect();
            files.push((format!("{directory}/modules.builtin"), b"kernel/fs/ext4/ext4.ko\n".to_vec()));
            let files: Vec<_> =
                files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect();
            self.file(&fixture::tar(&files).into_inner())
        }

        async fn import(&self) -> Result<KernelFacts> {
            self.kernels.import(KERNEL, Uid(1000), self.vmlinuz(), Some(self.modules(&NEEDED))).await
        }

        fn left(&self) -> Vec<String> {
            let Ok(entries) = fs::read_dir(self.paths.kernels()) else { return Vec::new() };
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    const NEEDED: [&str; 5] = ["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_console", "virtio_net"];

    fn content_of_archive(scratch: &Scratch) -> Vec<u8> {
        fs::read(scratch.paths.agent_archive()).unwrap()
    }

    #[tokio::test]
    async fn a_kernel_becomes_an_elf_file_and_an_archive_of_its_modules() {
        let scratch = Scratch::new();
        let facts = scratch.import().await.unwrap();
        let elf = fs::read(scratch.paths.kernel(KERNEL)).unwrap();
        assert_eq!(elf, fixture::vmlinux());
        assert_eq!(facts.digest, format!("sha256:{:x}", Sha256::digest(&elf)));
        assert_eq!(facts.release, fixture::RELEASE);
        assert_eq!(facts.modules, 5);
        let archive = scratch.paths.kernel_modules(KERNEL);
        let tree = scratch.paths.module_tree(KERNEL);
        let length = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!(facts.module_tree.0, length(&tree));
        assert_eq!(facts.size.0, elf.len() as u64 + length(&archive) + length(&tree));
        for file in [scratch.paths.kernel(KERNEL), archive, tree] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o444);
        }
        assert_eq!(scratch.kernels.found().await.unwrap(), [KERNEL]);
        for _ in 0..2 {
            scratch.kernels.remove(KERNEL).await.unwrap();
            assert!(scratch.left().is_empty());
        }
    }

    #[tokio::test]
    async fn a_kernel_without_modules_has_an_archive_with_an_empty_list() {
        let scratch = Scratch::new();
        let facts = scratch.kernels.import(KERNEL, Uid(1000), scratch.vmlinuz(), None).await.unwrap();
        assert_eq!((facts.modules, facts.module_tree), (0, Bytes(0)));
        assert_eq!(scratch.kernels.boot_files(KERNEL).await.unwrap().module_tree, None);
        let archive = fs::read(scratch.paths.kernel_modules(KERNEL)).unwrap();
        assert!(archive.windows(14).any(|part| part == b"banger/modules"));
    }

    #[tokio::test]
    async fn an_import_that_fails_leaves_nothing_and_says_what_is_wrong() {
        let scratch = Scratch::new();
        let check = async |vmlinuz, modules, expect: &str| {
            let error = scratch.kernels.import(KERNEL, Uid(1000), vmlinuz, modules).await.unwrap_err();
            assert!(error.to_string().contains(expect), "{error}");
            assert!(scratch.left().is_empty());
            assert_eq!(scratch.kernels.found().await.unwrap(), []);
            error
        };
        let vmlinuz = || scratch.vmlinuz();
        let bare = || {
            let mut kernel = fixture::vmlinux();
            let at = kernel.windows(10).position(|part| part == b"virtio_blk").unwrap();
            kernel[at] = b'V';
            scratch.file(&kernel)
        };
        let kinds = [
            check(scratch.file(b"no kernel"), None, "not a Linux kernel").await,
            check(vmlinuz(), Some(scratch.file(&[b'x'; 2000])), "tar archive").await,
            check(vmlinuz(), Some(scratch.modules(&NEEDED[1..])), "has no virtio_mmio").await,
            check(bare(), None, "has no virtio_blk built in").await,
        ];
        assert!(kinds.iter().all(|kind| matches!(kind, Error::Unsupported { .. })), "{kinds:?}");

        let no_reading = fs::OpenOptions::new().write(true).open(scratch.home.path().join("file"));
        let kinds = [
            check(no_reading.unwrap().into(), None, "the kernel is open for writing only").await,
            check(File::open("/dev/null").unwrap().into(), None, "the kernel is not a regular file").await,
            check(vmlinuz(), Some(File::open("/").unwrap().into()), "modules is not a regular file").await,
            check(vmlinuz(), Some(scratch.file(b"")), "modules is empty").await,
        ];
        assert!(kinds.iter().all(|kind| matches!(kind, Error::BadFile { .. })), "{kinds:?}");
    }

    #[tokio::test]
    async fn an_existing_kernel_is_kept() {
        let scratch = Scratch::new();
        scratch.import().await.unwrap();
        let modules = fs::read(scratch.paths.kernel_modules(KERNEL)).unwrap();
        assert!(scratch.kernels.import(KERNEL, Uid(1000), scratch.vmlinuz(), None).await.is_err());
        assert_eq!(fs::read(scratch.paths.kernel_modules(KERNEL)).unwrap(), modules);
        assert_eq!(scratch.left(), [KERNEL.to_string()]);
    }

    #[tokio::test]
    async fn a_vm_boots_the_kernel_its_modules_and_the_agent() {
        let scratch = Scratch::new();
        scratch.import().await.unwrap();
        let boot = scratch.kernels.boot_files(KERNEL).await.unwrap();
        let paths = &scratch.paths;
        assert_eq!(boot.kernel, paths.kernel(KERNEL));
        assert_eq!(boot.initramfs, [paths.kernel_modules(KERNEL), paths.agent_archive()]);
        assert_eq!(boot.module_tree, Some(paths.module_tree(KERNEL)));
        assert_eq!(content_of_archive(&scratch), agent_archive(b"an agent").unwrap());
        assert_eq!(fs::metadata(paths.agent_archive()).unwrap().permissions().mode() & 0o7777, 0o444);
        assert_eq!(scratch.kernels.found().await.unwrap(), [KERNEL]);
    }

    #[tokio::test]
    async fn the_archive_of_the_agent_is_made_once_for_each_agent() {
        let scratch = Scratch::new();
        scratch.import().await.unwrap();
        let inode = async || {
            scratch.kernels.boot_files(KERNEL).await.unwrap();
            fs::metadata(scratch.paths.agent_archive()).unwrap().ino()
        };
        let first = inode().await;
        assert_eq!(inode().await, first);

        // As a package manager does it, even if size and time stay the same.
        let (program, newer) = (scratch.paths.program(AGENT), scratch.paths.program("newer"));
        fs::write(&newer, "no agent").unwrap();
        let modified = fs::metadata(&program).unwrap().modified().unwrap();
        File::options().write(true).open(&newer).unwrap().set_modified(modified).unwrap();
        fs::rename(&newer, &program).unwrap();
        inode().await;
        assert_eq!(content_of_archive(&scratch), agent_archive(b"no agent").unwrap());

        fs::remove_file(scratch.paths.agent_archive()).unwrap();
        inode().await;
        assert_eq!(content_of_archive(&scratch), agent_archive(b"no agent").unwrap());
    }

    #[tokio::test]
    async fn another_run_of_the_service_keeps_an_equal_archive() {
        let scratch = Scratch::new();
        scratch.import().await.unwrap();
        let stamp = || crate::host::storage::templates::stamp(&scratch.paths.agent_archive()).unwrap();
        scratch.kernels.boot_files(KERNEL).await.unwrap();
        let first = stamp();
        let later = LocalKernels::new(scratch.paths.clone(), Arc::new(InProcess));
        later.boot_files(KERNEL).await.unwrap();
        assert_eq!(stamp(), first);
    }

    #[tokio::test]
    async fn an_archive_that_an_earlier_run_left_is_not_trusted() {
        let scratch = Scratch::new();
        scratch.import().await.unwrap();
        fs::write(scratch.paths.agent_archive(), "torn").unwrap();
        scratch.kernels.boot_files(KERNEL).await.unwrap();
        assert_eq!(content_of_archive(&scratch), agent_archive(b"an agent").unwrap());
    }

    #[tokio::test]
    async fn a_host_without_the_agent_or_the_kernel_is_not_ready() {
        let scratch = Scratch::new();
        let check = async |expect: &str| match scratch.kernels.boot_files(KERNEL).await {
            Err(Error::Host(HostError::NotReady { message })) => {
                assert!(message.contains(expect), "{message}")
            }
            other => panic!("{other:?}"),
        };
        check("import the kernel again").await;
        scratch.import().await.unwrap();
        fs::remove_file(scratch.paths.program(AGENT)).unwrap();
        check("install banger again").await;
        assert!(!scratch.paths.agent_archive().exists());
    }
}
