//! Checks that a kernel without modules has the drivers for a guest's root disk and agent built in.

use banger_domain::architecture::Architecture;

/// The driver of the PCI bus of QEMU's `virt`. The kernel finds that of q35 without a driver.
pub(super) const ARM64_PCI: &str = "pci-host-generic";

/// For each need, the drivers that satisfy it, by a string in the kernel: the name under which a driver or file
/// system is registered is a constant wherever it is built in.
const NEEDED: [&[&str]; 4] = [
    &["virtio-mmio", "virtio-pci"],
    &["virtio_blk"],
    &["ext4"],
    &["virtio_console", "vmw_vsock_virtio_transport"],
];

/// Needs of arm64 guests alone: Firecracker has the first, QEMU the second.
const NEEDED_ON_ARM64: [&[&str]; 1] = [&["virtio-mmio", ARM64_PCI]];

/// The kernel lacks drivers, both built in and as modules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel has no {} built in, without which a guest finds neither its root disk nor its agent; \
     import it with its modules (--modules DIRECTORY)",
    .0.join(" and no ")
)]
pub struct Missing(pub Vec<String>);

/// Checks an extracted kernel that is imported without modules.
pub fn check(vmlinux: &[u8], architecture: Architecture) -> Result<(), Missing> {
    let of_architecture: &[&[&str]] = match architecture {
        Architecture::X86_64 => &[],
        Architecture::Aarch64 => &NEEDED_ON_ARM64,
    };
    let missing: Vec<String> = NEEDED
        .iter()
        .chain(of_architecture)
        .filter(|names| !names.iter().any(|name| has_text(vmlinux, name)))
        .map(|names| names.join(" or ").replace('-', "_"))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
}

/// Returns whether the text is there, followed by a NUL.
pub(super) fn has_text(bytes: &[u8], text: &str) -> bool {
    let (text, mut rest) = (text.as_bytes(), bytes);
    while let Some(at) = rest.iter().position(|&byte| byte == text[0]) {
        rest = &rest[at..];
        if rest.strip_prefix(text).is_some_and(|behind| behind.first() == Some(&0)) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_missing(kernel: &[u8], expect: &[&str]) {
        check_missing_on(Architecture::X86_64, kernel, expect);
    }

    fn check_missing_on(architecture: Architecture, kernel: &[u8], expect: &[&str]) {
        let missing = check(kernel, architecture).err().map_or(Vec::new(), |Missing(missing)| missing);
        assert_eq!(missing, expect);
    }

    #[test]
    fn a_driver_that_is_not_built_in_is_named() {
        check_missing(b"\0virtio-pci\0virtio_blk\0ext4\0virtio_console\0", &[]);
        check_missing(b"virtio-mmio\0fs-ext4\0virtio_blk\0vmw_vsock_virtio_transport\0", &[]);
        check_missing(b"virtio-pci\0virtio_blk.queue_depth\0ext4\0virtio_console\0", &["virtio_blk"]);
        check_missing(b"virtio_blk\0virtio_console\0", &["virtio_mmio or virtio_pci", "ext4"]);
        let all = [
            "virtio_mmio or virtio_pci",
            "virtio_blk",
            "ext4",
            "virtio_console or vmw_vsock_virtio_transport",
        ];
        check_missing(b"", &all);
        let text = Missing(vec!["ext4".into(), "virtio_blk".into()]).to_string();
        assert!(text.starts_with("the kernel has no ext4 and no virtio_blk built in,"), "{text}");
    }

    #[test]
    fn an_arm64_kernel_needs_the_pci_bus_of_qemu_or_the_devices_of_firecracker() {
        let check = |bus: &str, expect: &[&str]| {
            let kernel = format!("{bus}\0virtio_blk\0ext4\0virtio_console\0");
            check_missing_on(Architecture::Aarch64, kernel.as_bytes(), expect);
        };
        check("virtio-pci", &["virtio_mmio or pci_host_generic"]);
        check("virtio-pci\0pci-host-generic", &[]);
        check("virtio-mmio", &[]);
        check("pci-host-generic", &["virtio_mmio or virtio_pci"]);
    }
}
