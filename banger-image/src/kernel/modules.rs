//! Picks the kernel modules that a guest needs to boot, with their dependencies, in load order.
//!
//! Dependencies come from the modules themselves (`depends` in their `.modinfo` section, written by the kernel's
//! build) and not from `modules.dep`, which depmod makes on installation and an unpacked package lacks. Names follow
//! `modprobe`: `-` and `_` are the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Seek},
};

use banger_domain::architecture::Architecture;
use banger_proto::size::Bytes;

use super::{
    decompress, drivers, elf,
    extract::Kernel,
    module_file::{self, ModInfo, name_of},
    release::Release,
    tree::{self, Tree},
};

/// The picked modules have at most 1.5 MiB; the largest of all (graphics) have about 30 MiB.
const MAX_MODULE: Bytes = Bytes::mib(32);

/// `modules.builtin` of a distribution's kernel has about 40 KiB.
const MAX_BUILTIN: Bytes = Bytes::mib(4);

/// Distribution kernels need 15 to 25 modules. More than this many means a crafted tree.
const MAX_PICKED: usize = 128;

/// Whether a guest can do without a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    /// Guests of this architecture need it, and others do not have it. A kernel that registers a driver of this name has it
    /// built in: kernels before 5.9 do not list `pci_host_generic` in `modules.builtin`.
    RequiredOn(Architecture, &'static str),
    Optional,
}

/// The modules that guests need, in load order.
const WANTED: [(&str, Need); 14] = [
    // ext4 and jbd2 request crc32c from the crypto API by name, which no `depends` line mentions. Recent kernels have
    // it in a library instead.
    ("crc32c_generic", Need::Optional),
    // The PCI bus of QEMU's virt.
    ("pci_host_generic", Need::RequiredOn(Architecture::Aarch64, drivers::ARM64_PCI)),
    // The transports of virtio devices: Firecracker uses the first, QEMU the second.
    ("virtio_mmio", Need::Required),
    ("virtio_pci", Need::Required),
    ("virtio_blk", Need::Required),
    ("ext4", Need::Required),
    ("virtio_console", Need::Required),
    ("virtio_rng", Need::Optional),
    ("virtio_net", Need::Required),
    ("vmw_vsock_virtio_transport", Need::Optional),
    ("virtio_balloon", Need::Optional),
    ("af_packet", Need::Optional),
    ("overlay", Need::Optional),
    // systemd wants it for its automount units.
    ("autofs4", Need::Optional),
];

/// A module as the guest loads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name as `lsmod` shows it.
    pub name: String,
    /// Its path below `lib/modules/<release>/`, ending in `.ko`.
    pub path: String,
    /// The decompressed ELF file.
    pub content: Vec<u8>,
}

/// The modules that a guest loads before it mounts its root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickedModules {
    /// The release of their kernel.
    pub release: Release,
    /// The modules in load order, without built-in ones.
    pub modules: Vec<Module>,
    /// Optional modules that the kernel does not have, such as `vmw_vsock_virtio_transport`.
    pub absent: Vec<&'static str>,
}

/// Why the modules for a guest cannot be picked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive cannot be read.
    #[error("cannot read the modules of kernel {release}")]
    Tree {
        /// The kernel's release.
        release: Release,
        /// What is wrong with the archive.
        source: tree::Error,
    },
    /// The list of built-in modules is missing, so missing modules cannot be detected.
    #[error("the modules of kernel {0} have no file modules.builtin")]
    NoBuiltinList(Release),
    /// Required modules are neither built in nor in the tree.
    #[error("kernel {release} has no {}, which every guest needs", missing.join(", "))]
    Missing {
        /// The kernel's release.
        release: Release,
        /// The missing modules.
        missing: Vec<&'static str>,
    },
    /// A dependency of a module is neither built in nor in the tree.
    #[error("module {module} needs {needs}, which is not in the tree")]
    MissingDependency {
        /// The module that has the dependency.
        module: String,
        /// The missing module.
        needs: String,
    },
    /// The tree has more dependencies than any kernel.
    #[error("the modules have more than {MAX_PICKED} dependencies")]
    TooMany,
    /// A compressed module cannot be unpacked.
    #[error("cannot unpack module {path}")]
    Unpack {
        /// The file in the tree.
        path: String,
        /// What the decoder says.
        source: decompress::Error,
    },
    /// A file is not a kernel module.
    #[error("{path} is not a kernel module")]
    NotAModule {
        /// The file in the tree.
        path: String,
        /// What is wrong with it.
        source: elf::Error,
    },
    /// A module was built for another processor.
    #[error("module {path} is not built for {wanted}")]
    OtherArchitecture {
        /// The file in the tree.
        path: String,
        /// The kernel's architecture.
        wanted: Architecture,
    },
    /// A module was built for another kernel.
    #[error("module {path} is for kernel {found:?}, not {wanted}")]
    OtherRelease {
        /// The file in the tree.
        path: String,
        /// The release in the module's `vermagic`.
        found: String,
        /// The kernel's release.
        wanted: Release,
    },
}

/// Picks the modules that a guest of this kernel needs from the tar of its modules tree.
pub fn pick(archive: impl Read + Seek, kernel: &Kernel) -> Result<PickedModules, Error> {
    let (release, architecture) = (&kernel.facts.release, kernel.facts.architecture);
    let in_tree = |source| Error::Tree { release: release.clone(), source };
    let mut tree = Tree::open(archive, release).map_err(in_tree)?;
    let builtin = tree
        .read("modules.builtin", MAX_BUILTIN)
        .map_err(in_tree)?
        .ok_or_else(|| Error::NoBuiltinList(release.clone()))?;
    let builtin = String::from_utf8_lossy(&builtin).lines().filter_map(name_of).collect();
    let present = index(tree.paths());
    let (seen, picked) = (BTreeSet::new(), Vec::new());
    let mut picker = Picker { tree, release, architecture, builtin, present, seen, picked };

    let mut missing = Vec::new();
    let mut absent = Vec::new();
    for (name, need) in WANTED {
        if matches!(need, Need::RequiredOn(other, _) if other != architecture) {
            continue;
        }
        match (picker.add(name)?, need) {
            (Found::Yes, _) => {}
            (Found::No, Need::RequiredOn(_, driver)) if drivers::has_text(&kernel.vmlinux, driver) => {}
            (Found::No, Need::Required | Need::RequiredOn(..)) => missing.push(name),
            (Found::No, Need::Optional) => absent.push(name),
        }
    }
    if !missing.is_empty() {
        return Err(Error::Missing { release: release.clone(), missing });
    }
    Ok(PickedModules { release: release.clone(), modules: picker.picked, absent })
}

/// Returns the files of modules by name. As with `depmod`, a file in `updates/` takes precedence over the kernel's
/// own.
pub(super) fn index<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut present = BTreeMap::new();
    let (updates, others): (Vec<&str>, Vec<&str>) = paths.partition(|path| path.starts_with("updates/"));
    for path in others.into_iter().chain(updates) {
        if let Some(name) = name_of(path) {
            present.insert(name, path.to_owned());
        }
    }
    present
}

enum Found {
    Yes,
    No,
}

struct Picker<'a, R> {
    tree: Tree<R>,
    release: &'a Release,
    architecture: Architecture,
    builtin: BTreeSet<String>,
    /// Path in the tree by name.
    present: BTreeMap<String, String>,
    /// Modules that are picked or being picked, so that a circle of dependencies ends.
    seen: BTreeSet<String>,
    picked: Vec<Module>,
}

impl<R: Read + Seek> Picker<'_, R> {
    /// Adds a module after its dependencies.
    fn add(&mut self, name: &str) -> Result<Found, Error> {
        if self.builtin.contains(name) || self.seen.contains(name) {
            return Ok(Found::Yes);
        }
        let Some(path) = self.present.get(name).cloned() else { return Ok(Found::No) };
        if self.seen.len() == MAX_PICKED {
            return Err(Error::TooMany);
        }
        self.seen.insert(name.to_owned());
        let module = self.load(name, &path)?;
        for needs in self.dependencies(&path, &module)? {
            if let Found::No = self.add(&needs)? {
                return Err(Error::MissingDependency { module: name.to_owned(), needs });
            }
        }
        self.picked.push(module);
        Ok(Found::Yes)
    }

    fn load(&mut self, name: &str, path: &str) -> Result<Module, Error> {
        let content = self
            .tree
            .read(path, MAX_MODULE)
            .map_err(|source| Error::Tree { release: self.release.clone(), source })?
            .unwrap_or_default();
        let content = module_file::unpack(path, content, MAX_MODULE)
            .map_err(|source| Error::Unpack { path: path.to_owned(), source })?;
        let path = module_file::unpacked_path(path).0.to_owned();
        Ok(Module { name: name.to_owned(), path, content })
    }

    /// Returns the module's dependencies, after a check of its processor and its `vermagic`.
    fn dependencies(&self, path: &str, module: &Module) -> Result<Vec<String>, Error> {
        let info = ModInfo::parse(&module.content)
            .map_err(|source| Error::NotAModule { path: path.to_owned(), source })?;
        if info.architecture() != Some(self.architecture) {
            return Err(Error::OtherArchitecture { path: path.to_owned(), wanted: self.architecture });
        }
        let vermagic = info.first("vermagic").unwrap_or_default();
        let found = vermagic.split(' ').next().unwrap_or_default();
        if found != self.release.as_str() {
            return Err(Error::OtherRelease {
                path: path.to_owned(),
                found: found.chars().take(64).collect(),
                wanted: self.release.clone(),
            });
        }
        Ok(info.depends().collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::kernel::{RELEASE, module, module_needing, pack, release, tar};
    use crate::kernel::{decompress::Compression, extract::Facts};

    const X86: Architecture = Architecture::X86_64;
    const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\nkernel/net/packet/af_packet.ko\n";

    fn kernel(architecture: Architecture) -> Kernel {
        let facts = Facts { release: release(), architecture, compression: None, pvh: false };
        Kernel { vmlinux: Vec::new(), facts }
    }

    /// Returns the files of a small kernel, below its release's directory.
    fn tree() -> Vec<(String, Vec<u8>)> {
        let file = |path: &str, content: Vec<u8>| (path.to_owned(), content);
        vec![
            file("kernel/drivers/block/virtio_blk.ko", module_needing("virtio,virtio_ring")),
            file("kernel/drivers/char/virtio_console.ko", module_needing("virtio,virtio_ring")),
            file("kernel/drivers/char/hw_random/virtio-rng.ko", module_needing("virtio,virtio_ring")),
            file("kernel/drivers/gpu/drm/bochs/bochs.ko", module_needing("drm")),
            file("kernel/drivers/net/net_failover.ko", module_needing("failover")),
            file("kernel/drivers/net/virtio_net.ko", module_needing("virtio,virtio_ring,net_failover")),
            file("kernel/drivers/virtio/virtio.ko", module_needing("")),
            file("kernel/drivers/virtio/virtio_mmio.ko", module_needing("virtio,virtio_ring")),
            file("kernel/drivers/virtio/virtio_pci.ko", module_needing("virtio,virtio_ring")),
            file("kernel/drivers/virtio/virtio_ring.ko", module_needing("virtio")),
            file("kernel/net/core/failover.ko", module_needing("")),
            file("modules.builtin", BUILTIN.into()),
        ]
    }

    fn packed(prefix: &str, tree: &[(String, Vec<u8>)]) -> std::io::Cursor<Vec<u8>> {
        let named: Vec<_> =
            tree.iter().map(|(path, content)| (format!("{prefix}{path}"), content.clone())).collect();
        tar(&named.iter().map(|(path, content)| (path.as_str(), content.clone())).collect::<Vec<_>>())
    }

    fn names(picked: &PickedModules) -> Vec<&str> {
        picked.modules.iter().map(|module| module.name.as_str()).collect()
    }

    fn check_refused(tree: &[(String, Vec<u8>)], text: &str) {
        let error = pick(packed("", tree), &kernel(X86)).unwrap_err();
        let mut texts = vec![error.to_string()];
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            texts.push(error.to_string());
            source = error.source();
        }
        assert_eq!(texts.join(": "), text);
    }

    #[test]
    fn dependencies_come_before_what_needs_them_and_the_builtin_is_left_out() {
        let picked = pick(packed("", &tree()), &kernel(X86)).unwrap();
        assert_eq!(
            names(&picked),
            [
                "virtio",
                "virtio_ring",
                "virtio_mmio",
                "virtio_pci",
                "virtio_blk",
                "virtio_console",
                "virtio_rng",
                "failover",
                "net_failover",
                "virtio_net"
            ]
        );
        assert_eq!(picked.modules[6].path, "kernel/drivers/char/hw_random/virtio-rng.ko");
        assert_eq!(picked.release, release());
        assert_eq!(
            picked.absent,
            ["crc32c_generic", "vmw_vsock_virtio_transport", "virtio_balloon", "overlay", "autofs4"]
        );
    }

    #[test]
    fn each_distributions_layout_gives_the_same_modules() {
        let expect = pick(packed("", &tree()), &kernel(X86)).unwrap();
        for prefix in
            ["lib/modules/R/", "./lib/modules/R/", "usr/lib/modules/R/", "./usr/lib/modules/R/", "R/", "./"]
        {
            let prefix = prefix.replace('R', RELEASE);
            assert_eq!(pick(packed(&prefix, &tree()), &kernel(X86)).unwrap(), expect, "{prefix}");
        }
    }

    #[test]
    fn another_kernel_in_the_same_archive_is_passed_over() {
        let mut files: Vec<_> = tree()
            .into_iter()
            .map(|(path, content)| (format!("lib/modules/{RELEASE}/{path}"), content))
            .collect();
        files.insert(0, ("lib/modules/5.10.0-1-amd64/kernel/drivers/virtio/virtio.ko".into(), vec![1]));
        files.push(("lib/modules/6.12.0-1-amd64/kernel/drivers/virtio/virtio.ko".into(), vec![1]));
        assert_eq!(
            pick(packed("", &files), &kernel(X86)).unwrap(),
            pick(packed("", &tree()), &kernel(X86)).unwrap()
        );
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        for (suffix, compression) in
            [("xz", Compression::Xz), ("zst", Compression::Zstd), ("gz", Compression::Gzip)]
        {
            let mut files = tree();
            for (path, content) in files.iter_mut().filter(|(path, _)| path.ends_with(".ko")) {
                *content = pack(compression, content);
                path.push('.');
                path.push_str(suffix);
            }
            assert_eq!(
                pick(packed("", &files), &kernel(X86)).unwrap(),
                pick(packed("", &tree()), &kernel(X86)).unwrap()
            );
        }
    }

    #[test]
    fn a_kernel_with_everything_built_in_needs_no_modules() {
        // As in kernels for virtual machines, and with the dashes of some paths.
        let builtin: String = WANTED
            .iter()
            .map(|(name, _)| format!("kernel/drivers/{}.ko\n", name.replace('_', "-")))
            .collect();
        let files = [("modules.builtin".to_owned(), builtin.into_bytes())];
        let picked = pick(packed(&format!("usr/lib/modules/{RELEASE}/"), &files), &kernel(X86)).unwrap();
        assert_eq!((picked.modules.len(), picked.absent.len()), (0, 0));
    }

    #[test]
    fn a_module_in_updates_wins() {
        let mut files = tree();
        files.push(("updates/dkms/virtio_blk.ko".into(), module_needing("virtio")));
        let picked = pick(packed("", &files), &kernel(X86)).unwrap();
        let chosen = picked.modules.iter().find(|module| module.name == "virtio_blk").unwrap();
        assert_eq!(chosen.path, "updates/dkms/virtio_blk.ko");
    }

    #[test]
    fn missing_modules_are_named() {
        let without: Vec<_> = tree()
            .into_iter()
            .filter(|(path, _)| !path.contains("virtio_blk") && !path.contains("virtio_console"))
            .collect();
        check_refused(
            &without,
            "kernel 6.1.0-41-cloud-amd64 has no virtio_blk, virtio_console, which every guest needs",
        );
        let without: Vec<_> = tree().into_iter().filter(|(path, _)| !path.contains("/failover")).collect();
        check_refused(&without, "module net_failover needs failover, which is not in the tree");
        let without: Vec<_> = tree().into_iter().filter(|(path, _)| path != "modules.builtin").collect();
        check_refused(&without, "the modules of kernel 6.1.0-41-cloud-amd64 have no file modules.builtin");
    }

    #[test]
    fn arm64_guests_need_the_pci_bus_of_qemu_wherever_it_is() {
        let mut files = tree();
        files.iter_mut().filter(|(path, _)| path.ends_with(".ko")).for_each(|(_, module)| module[18] = 183);
        let arm64 = |vmlinux: &[u8], files: &[(String, Vec<u8>)]| {
            let kernel = Kernel { vmlinux: vmlinux.into(), ..kernel(Architecture::Aarch64) };
            pick(packed("", files), &kernel)
        };
        let missing = arm64(b"pci-host-generic.", &files);
        assert!(matches!(missing, Err(Error::Missing { missing, .. }) if missing == ["pci_host_generic"]));
        // Built in, with or without a line in modules.builtin.
        assert!(arm64(b"pci-host-generic\0", &files).is_ok());
        let mut listed = files.clone();
        let builtin = listed.iter_mut().find(|(path, _)| path == "modules.builtin").unwrap();
        builtin.1.extend(b"kernel/drivers/pci/controller/pci-host-generic.ko\n");
        assert!(arm64(b"", &listed).is_ok());
        let mut bus = module_needing("");
        bus[18] = 183;
        files.push(("kernel/drivers/pci/controller/pci-host-generic.ko".into(), bus));
        let picked = arm64(b"", &files).unwrap();
        assert_eq!(names(&picked)[0], "pci_host_generic");
    }

    #[test]
    fn the_tree_of_another_kernel_is_refused() {
        let moved: Vec<_> = tree()
            .into_iter()
            .map(|(path, content)| (format!("lib/modules/6.12.1/{path}"), content))
            .collect();
        check_refused(
            &moved,
            "cannot read the modules of kernel 6.1.0-41-cloud-amd64: \
             the modules are for kernel 6.12.1, but the kernel is 6.1.0-41-cloud-amd64",
        );
        let mut files = tree();
        files.retain(|(path, _)| !path.ends_with("/virtio.ko"));
        files.push(("extra/virtio.ko".into(), module(&["vermagic=6.12.1 SMP ", "depends="])));
        check_refused(&files, "module extra/virtio.ko is for kernel \"6.12.1\", not 6.1.0-41-cloud-amd64");
        let mut files = tree();
        let first = &mut files[0].1;
        first[18] = 183;
        check_refused(&files, "module kernel/drivers/block/virtio_blk.ko is not built for x86-64");
        files.iter_mut().filter(|(path, _)| path.ends_with(".ko")).for_each(|(_, module)| module[18] = 183);
        let arm64 = Kernel { vmlinux: b"pci-host-generic\0".into(), ..kernel(Architecture::Aarch64) };
        assert!(pick(packed("", &files), &arm64).is_ok());
        check_refused(
            &[],
            "cannot read the modules of kernel 6.1.0-41-cloud-amd64: the tar archive has no kernel modules",
        );
    }

    #[test]
    fn an_invalid_module_is_refused() {
        let mut files = tree();
        files.retain(|(path, _)| !path.ends_with("/virtio.ko"));
        files.push(("extra/virtio.ko".into(), b"text".to_vec()));
        check_refused(&files, "extra/virtio.ko is not a kernel module: this is not an ELF file");
    }

    #[test]
    fn modules_that_need_each_other_in_a_circle_come_to_an_end() {
        let mut files = tree();
        files.retain(|(path, _)| !path.ends_with("/virtio.ko"));
        files.push(("extra/virtio.ko".into(), module_needing("virtio-blk")));
        assert!(names(&pick(packed("", &files), &kernel(X86)).unwrap()).contains(&"virtio"));
    }

    #[test]
    fn an_endless_chain_of_dependencies_is_refused() {
        let mut files = tree();
        files.retain(|(path, _)| !path.ends_with("/virtio.ko"));
        files.push(("extra/virtio.ko".into(), module_needing("m0")));
        files.extend((0..200).map(|n| (format!("extra/m{n}.ko"), module_needing(&format!("m{}", n + 1)))));
        check_refused(&files, "the modules have more than 128 dependencies");
    }

    #[test]
    fn a_header_that_announces_a_huge_name_costs_nothing() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let archive = std::io::Cursor::new([header.as_bytes().as_slice(), &[b'a'; 1 << 20]].concat());
        let error = pick(archive, &kernel(X86)).unwrap_err();
        assert!(matches!(error, Error::Tree { source: tree::Error::Tar(_), .. }), "{error:?}");
    }

    #[test]
    fn names_that_leave_the_tree_are_not_modules() {
        let mut files = tree();
        files.retain(|(path, _)| !path.ends_with("virtio_blk.ko"));
        let mut archive = packed("", &files).into_inner();
        archive.truncate(archive.len() - 1024);
        for path in ["../virtio_blk.ko", "kernel/../../virtio_blk.ko", "kernel/a\nb/virtio_blk.ko"] {
            let content = module_needing("virtio");
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(content.len() as u64);
            header.set_cksum();
            archive.extend(header.as_bytes());
            archive.extend(&content);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
        archive.extend([0; 1024]);
        let error = pick(std::io::Cursor::new(archive), &kernel(X86)).unwrap_err();
        assert!(matches!(error, Error::Missing { missing, .. } if missing == ["virtio_blk"]));
    }

    proptest! {
        #[test]
        fn no_change_of_the_archive_makes_it_panic(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut archive = packed("lib/modules/6.1.0-41-cloud-amd64/", &tree()).into_inner();
            for (at, value) in flips {
                let at = at.index(archive.len());
                archive[at] = value;
            }
            archive.truncate(cut.index(archive.len() * 2).min(archive.len()));
            let _ = pick(std::io::Cursor::new(archive), &kernel(X86));
        }

        #[test]
        fn no_module_makes_it_panic(flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8)) {
            let mut content = module_needing("");
            for (at, value) in flips {
                let at = at.index(content.len());
                content[at] = value;
            }
            let mut files = tree();
            files.retain(|(path, _)| !path.ends_with("/virtio.ko"));
            files.push(("extra/virtio.ko".into(), content));
            let _ = pick(packed("", &files), &kernel(X86));
        }
    }
}
