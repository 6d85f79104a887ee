//! Extracts and picks from real kernels.
//!
//! `BANGER_TEST_KERNELS` names directories, separated by `:`, that each hold one unpacked kernel package:
//! `boot/vmlinuz-<release>` and `lib/modules/<release>/`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "../../banger-system/tests/skip/mod.rs"]
mod skip;

use std::{
    collections::BTreeSet,
    fs,
    fs::File,
    io::Seek,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use banger_domain::architecture::Architecture;
use banger_image::kernel::{
    depmod::{Beside, Depmod},
    drivers,
    extract::{Kernel, extract},
    initramfs::modules_archive,
    module_file,
    modules::pick,
};

#[test]
fn a_distributions_kernel_and_its_modules_become_bootable() {
    let Some(packages) = std::env::var_os("BANGER_TEST_KERNELS") else {
        skip::skipped("BANGER_TEST_KERNELS names no kernel package");
        return;
    };
    for package in std::env::split_paths(&packages) {
        check(&package);
    }
}

#[test]
fn our_tables_say_what_those_of_depmod_say() {
    let Some(packages) = std::env::var_os("BANGER_TEST_KERNELS") else {
        skip::skipped("BANGER_TEST_KERNELS names no kernel package");
        return;
    };
    if !Path::new("/sbin/depmod").exists() {
        skip::skipped("this test needs kmod");
        return;
    }
    std::env::split_paths(&packages).for_each(|package| compare(&package));
}

#[test]
fn a_modular_kernel_without_its_modules_is_refused() {
    let Some(packages) = std::env::var_os("BANGER_TEST_KERNELS") else {
        skip::skipped("BANGER_TEST_KERNELS names no kernel package");
        return;
    };
    for package in std::env::split_paths(&packages) {
        let boot = fs::read_dir(package.join("boot")).unwrap().map(|entry| entry.unwrap().path());
        let vmlinuz =
            boot.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz"));
        let kernel = kernel(&vmlinuz.unwrap());
        let check = || drivers::check(&kernel.vmlinux, kernel.facts.architecture);
        let modules = fs::read_dir(package.join("lib/modules")).unwrap().next().unwrap().unwrap().path();
        let builtin = fs::read_to_string(modules.join("modules.builtin")).unwrap();
        let has = |name: &str| builtin.contains(&format!("/{name}.ko"));
        let has_pci = has("virtio_pci")
            && (kernel.facts.architecture == Architecture::X86_64 || has("pci-host-generic"));
        let boots = has("virtio_blk") && has("ext4") && (has_pci || has("virtio_mmio"));
        assert_eq!(check().is_ok(), boots, "{}: {:?}", package.display(), check());
    }
}

fn compare(package: &Path) {
    let modules = fs::read_dir(package.join("lib/modules")).unwrap().next().unwrap().unwrap().path();
    let release = modules.file_name().unwrap().to_str().unwrap();
    let home = tempfile::tempdir().unwrap();
    let (ours, theirs) = (home.path().join("ours"), home.path().join("theirs"));
    for root in [&ours, &theirs] {
        let directory = root.join("lib/modules").join(release);
        fs::create_dir_all(&directory).unwrap();
        symlink(modules.join("kernel"), directory.join("kernel")).unwrap();
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            fs::copy(modules.join(name), directory.join(name)).unwrap();
        }
    }
    let mut depmod = Depmod::default();
    for file in files(&modules) {
        let path = file.strip_prefix(&modules).unwrap().to_str().unwrap();
        let (unpacked, _) = module_file::unpacked_path(path);
        if unpacked.ends_with(".ko") {
            let limit = banger_proto::size::Bytes::mib(128);
            let content = module_file::unpack(path, fs::read(&file).unwrap(), limit).unwrap();
            depmod.add(path, &content).unwrap();
        }
    }
    let read = |name: &str| fs::read(modules.join(name)).unwrap();
    let builtin = String::from_utf8(read("modules.builtin")).unwrap();
    let beside = Beside { builtin, builtin_modinfo: read("modules.builtin.modinfo") };
    for (name, content) in depmod.tables(&beside).unwrap() {
        fs::write(ours.join("lib/modules").join(release).join(name), content).unwrap();
    }
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    said("/sbin/depmod", &["-b", theirs.to_str().unwrap(), release]);

    for name in ["modules.alias", "modules.dep", "modules.devname", "modules.softdep", "modules.symbols"] {
        let table = |root: &Path| {
            let text = fs::read_to_string(root.join("lib/modules").join(release).join(name)).unwrap();
            // The order of dependencies is ours if several are valid.
            let sorted = |line: &str| {
                let mut words: Vec<&str> = line.split(' ').collect();
                words.sort();
                words.join(" ")
            };
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(sorted).collect::<BTreeSet<String>>()
        };
        let (ours, theirs) = (table(&ours), table(&theirs));
        let differ: Vec<_> = ours.symmetric_difference(&theirs).take(5).collect();
        assert!(differ.is_empty(), "{name}: {differ:?}");
        println!("{name}: {} lines", ours.len());
    }
    // The binary tables, as kmod reads them.
    let modprobe = |root: &Path, arguments: &[&str]| {
        let root = root.to_str().unwrap();
        let said = said("/sbin/modprobe", &[&["-d", root, "-S", release], arguments].concat());
        said.lines().map(|line| line.replace(root, "")).collect::<BTreeSet<String>>()
    };
    for arguments in [
        &["--showconfig"][..],
        &["--show-depends", "br_netfilter"],
        &["--show-depends", "fs-overlay"],
        &["--show-depends", "ext4"],
        &["--show-depends", "rtnl-link-wireguard"],
        &["--show-depends", "virtio:d00000001v00001AF4"],
    ] {
        let (ours, theirs) = (modprobe(&ours, arguments), modprobe(&theirs, arguments));
        let differ: Vec<_> = ours.symmetric_difference(&theirs).take(5).collect();
        assert!(differ.is_empty() && !ours.is_empty(), "{arguments:?}: {differ:?}");
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(self::files(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

/// Returns the kernel in a file, of the architecture that its name ends in.
fn kernel(vmlinuz: &Path) -> Kernel {
    let is_arm64 = ["arm64", "aarch64"].iter().any(|name| vmlinuz.to_str().unwrap().ends_with(name));
    let architecture = if is_arm64 { Architecture::Aarch64 } else { Architecture::X86_64 };
    extract(fs::read(vmlinuz).unwrap(), architecture).unwrap()
}

fn check(package: &Path) {
    let vmlinuz = fs::read_dir(package.join("boot"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz-"))
        .unwrap();
    let kernel = kernel(&vmlinuz);
    let architecture = kernel.facts.architecture;
    let release = kernel.facts.release.clone();
    assert_eq!(vmlinuz.file_name().unwrap().to_str().unwrap(), format!("vmlinuz-{release}"));
    assert_eq!(kernel.facts.pvh, architecture == Architecture::X86_64);
    let again = extract(kernel.vmlinux.clone(), architecture).unwrap();
    assert_eq!(again.facts.release, release, "the banner says the same as the setup header");

    let mut archive = tar::Builder::new(tempfile::tempfile().unwrap());
    archive.append_dir_all("lib/modules", package.join("lib/modules")).unwrap();
    let mut archive: File = archive.into_inner().unwrap();
    archive.rewind().unwrap();
    let picked = pick(archive, &kernel).unwrap();
    let names: Vec<_> = picked.modules.iter().map(|module| module.name.as_str()).collect();
    println!("{release}: {:?}, {names:?}, without {:?}", kernel.facts.compression, picked.absent);
    let at = |name: &str| names.iter().position(|other| *other == name);
    assert!(at("virtio") < at("virtio_blk"));
    assert!(at("failover") < at("virtio_net"));
    assert!(at("vsock") < at("vmw_vsock_virtio_transport"));
    assert!(modules_archive(&picked).unwrap().len() < 32 << 20);
}
