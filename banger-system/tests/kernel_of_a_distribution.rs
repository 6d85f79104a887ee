//! Extracts and picks from real kernels.
//!
//! `BANGER_TEST_KERNELS` names directories, separated by `:`, that each hold one unpacked kernel package:
//! `boot/vmlinuz-<release>` and `lib/modules/<release>/`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod skip;

use std::{fs, fs::File, io::Seek, path::Path};

use banger_system::domain::kernel::{extract::extract, initramfs::modules_archive, modules::pick};

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

fn check(package: &Path) {
    let vmlinuz = fs::read_dir(package.join("boot"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz-"))
        .unwrap();
    let kernel = extract(fs::read(&vmlinuz).unwrap()).unwrap();
    let release = kernel.facts.release.clone();
    assert_eq!(vmlinuz.file_name().unwrap().to_str().unwrap(), format!("vmlinuz-{release}"));
    assert!(kernel.facts.pvh);
    let again = extract(kernel.vmlinux).unwrap();
    assert_eq!(again.facts.release, release, "the banner says the same as the setup header");

    let mut archive = tar::Builder::new(tempfile::tempfile().unwrap());
    archive.append_dir_all("lib/modules", package.join("lib/modules")).unwrap();
    let mut archive: File = archive.into_inner().unwrap();
    archive.rewind().unwrap();
    let picked = pick(archive, &release).unwrap();
    let names: Vec<_> = picked.modules.iter().map(|module| module.name.as_str()).collect();
    println!("{release}: {:?}, {names:?}, without {:?}", kernel.facts.compression, picked.absent);
    let at = |name: &str| names.iter().position(|other| *other == name);
    assert!(at("virtio") < at("virtio_blk"));
    assert!(at("failover") < at("virtio_net"));
    assert!(at("vsock") < at("vmw_vsock_virtio_transport"));
    assert!(modules_archive(&picked).unwrap().len() < 32 << 20);
}
