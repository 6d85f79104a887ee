//! Templates under the real QEMU: a guest is captured, and two others continue from it.
//!
//! The guest is a few instructions that count, and print a character at each 2^22nd number. So its output shows
//! whether it began or continues, and the test needs no kernel.

use std::{
    fs::{self, File, Permissions},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, PermissionsExt},
    },
    sync::Arc,
    time::Duration,
};

use crate::scratch::{Scratch, is_root, names, require};
use banger_domain::{
    architecture::Architecture,
    id::{Uid, VmId},
    launch_spec::{Access, Drive, LaunchSpec, Medium},
    vmm::VmmChoice,
};
use banger_jail::ring::Reader;
use banger_proto::size::Bytes;
use banger_system::{
    host::{process::supervisor_process::ProcessSupervisor, vmm::qemu::Qemu},
    ports::{
        supervisor::{Ended, Supervisor},
        vmm::{Capture, Error, Vmm, VmmCommand},
    },
};
use sha2::{Digest, Sha256};

/// Longer than any step takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);
const MEMORY: Bytes = Bytes::mib(64);
/// Where the guest counts in its memory.
const COUNTER: u64 = 0x20_0000;
const SHIFT: u32 = 22;

const TEMPLATE: VmId = VmId::from_bits(0x7e);
const CHILDREN: [VmId; 2] = [VmId::from_bits(0xa), VmId::from_bits(0xb)];

/// The address of the counter in the guest's memory. It is not in the way of a kernel.
fn counter(architecture: Architecture) -> u64 {
    match architecture {
        Architecture::X86_64 => COUNTER,
        Architecture::Aarch64 => 0x100_0000,
    }
}

/// Returns the guest for a processor.
fn guest(architecture: Architecture) -> Vec<u8> {
    match architecture {
        Architecture::X86_64 => x86_64_guest(),
        Architecture::Aarch64 => arm64_guest(),
    }
}

/// Returns the guest as an `Image` (`Documentation/arch/arm64/booting.rst` of Linux), for QEMU's virt: memory begins at
/// 1 GiB, and the serial line is at 0x900_0000.
fn arm64_guest() -> Vec<u8> {
    let code: [u32; 12] = [
        0xd2a8_2001, // mov x1, #0x4100_0000 (the counter)
        0xd2a1_2002, // mov x2, #0x900_0000
        0xb940_0020, // ldr w0, [x1]
        0x1100_0400, // add w0, w0, #1
        0xb900_0020, // str w0, [x1]
        0x7200_541f, // tst w0, #(1 << SHIFT) - 1
        0x54ff_ff81, // b.ne to the load
        0x5316_7c00, // lsr w0, w0, #SHIFT
        0x1200_1400, // and w0, w0, #63
        0x1100_c000, // add w0, w0, #'0'
        0xb900_0040, // str w0, [x2]
        0x17ff_fff7, // b to the load
    ];
    let mut image = 0x1400_0010u32.to_le_bytes().to_vec(); // b over the header
    image.resize(0x10, 0);
    image.extend([0x1000, 0xa].map(u64::to_le_bytes).concat());
    image.resize(0x38, 0);
    image.extend(b"ARM\x64\0\0\0\0");
    image.extend(code.map(u32::to_le_bytes).concat());
    image.resize(4096, 0);
    image
}

/// Returns the guest: an ELF file with a PVH entry (`xen/include/public/elfnote.h` of Xen), which qboot enters in
/// 32-bit mode.
fn x86_64_guest() -> Vec<u8> {
    const LOADED_AT: u64 = 0x10_0000;
    const NOTE_AT: u64 = 64 + 2 * 56;
    const CODE_AT: u64 = 4096;
    #[rustfmt::skip]
    let code: [u8; 33] = [
        0xff, 0x05, 0, 0, 0x20, 0,              // inc dword [COUNTER]
        0xa1, 0, 0, 0x20, 0,                    // mov eax, [COUNTER]
        0xa9, 0xff, 0xff, 0x3f, 0,              // test eax, (1 << SHIFT) - 1
        0x75, 0xee,                             // jnz to the start
        0xc1, 0xe8, SHIFT as u8,                // shr eax, SHIFT
        0x83, 0xe0, 0x3f,                       // and eax, 63
        0x04, b'0',                             // add al, '0'
        0x66, 0xba, 0xf8, 0x03,                 // mov dx, 0x3f8
        0xee,                                   // out dx, al
        0xeb, 0xdf,                             // jmp to the start
    ];
    let segment = |kind: u32, at: u64, address: u64, size: u64, align: u64| {
        let flags = 7u32;
        let words = [at, address, address, size, size, align];
        [kind.to_le_bytes(), flags.to_le_bytes()]
            .concat()
            .into_iter()
            .chain(words.map(u64::to_le_bytes).concat())
    };
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    elf.extend([LOADED_AT, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend(segment(1, CODE_AT, LOADED_AT, code.len() as u64, 4096));
    elf.extend(segment(4, NOTE_AT, 0, 24, 4));
    elf.extend([4u32, 8, 18].map(u32::to_le_bytes).concat());
    elf.extend(b"Xen\0");
    elf.extend(LOADED_AT.to_le_bytes());
    elf.resize(CODE_AT as usize, 0);
    elf.extend(code);
    elf.resize(2 * CODE_AT as usize, 0);
    elf
}

pub struct Host {
    pub scratch: Scratch,
    architecture: Architecture,
    pub vmm: Arc<Qemu>,
    pub supervisor: ProcessSupervisor,
}

impl Host {
    pub fn new() -> Self {
        Self::emulating(Architecture::HOST)
    }

    /// Returns a host that emulates guests of this architecture.
    pub fn emulating(architecture: Architecture) -> Self {
        let scratch = Scratch::new();
        scratch.install("banger-shim");
        let paths = scratch.paths.clone();
        for directory in [scratch.home.path(), paths.libexec.as_path()] {
            fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(&paths.state).unwrap();
        fs::write(paths.state.join("guest"), guest(architecture)).unwrap();
        let vmm = Arc::new(Qemu::emulating(paths.clone(), architecture));
        Self { scratch, architecture, vmm, supervisor: ProcessSupervisor::new(paths) }
    }

    pub fn spec(&self, vm: VmId) -> LaunchSpec {
        let paths = &self.scratch.paths;
        fs::create_dir_all(paths.vm_dir(vm)).unwrap();
        let disk = |name: &str, access, mib: u64| {
            let path = paths.vm_dir(vm).join(name);
            File::create(&path).unwrap().set_len(mib << 20).unwrap();
            Drive { path, access, medium: Medium::File }
        };
        LaunchSpec {
            vm,
            owner: Uid(1000),
            name: "calm-otter".into(),
            vmm: VmmChoice::Auto,
            vcpus: 1,
            memory: MEMORY,
            kernel: paths.state.join("guest"),
            initramfs: Vec::new(),
            drives: vec![disk("system", Access::ReadWrite, 3), disk("modules", Access::ReadOnly, 5)],
            nics: Vec::new(),
        }
    }

    pub async fn run(&self, spec: &LaunchSpec, launch: impl Future<Output = Result<VmmCommand, Error>>) {
        let jail = self.vmm.jail_spec(spec).await.unwrap();
        let jail = self.supervisor.start_jail(jail).await.unwrap();
        jail.run(launch.await.unwrap()).await.unwrap();
    }

    /// Boots the guest, and captures it after it has counted for a while.
    async fn capture(&self) -> Capture {
        let spec = self.spec(TEMPLATE);
        self.run(&spec, self.vmm.prepare_template(&spec)).await;
        self.until_said(TEMPLATE, 3).await;
        let capture = self.vmm.capture(TEMPLATE).await.unwrap();
        self.remove(TEMPLATE).await;
        capture
    }

    async fn start_child(&self, vm: VmId, capture: &Capture) -> Result<(), Error> {
        let spec = self.spec(vm);
        self.run(&spec, self.vmm.prepare_child(&spec, capture)).await;
        self.vmm.resume(vm, capture).await
    }

    pub fn said(&self, vm: VmId) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut reader = Reader::new(File::open(self.scratch.paths.console_log(vm)).unwrap()).unwrap();
        while reader.read(&mut bytes).unwrap() {}
        bytes
    }

    pub async fn until_said(&self, vm: VmId, count: usize) -> Vec<u8> {
        let said = async {
            loop {
                let said = self.said(vm);
                if said.len() >= count {
                    return said;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, said).await.unwrap()
    }

    pub async fn remove(&self, vm: VmId) {
        self.supervisor.remove(vm).await.unwrap();
        self.vmm.remove_sockets(vm).await.unwrap();
    }
}

pub fn has_qemu() -> bool {
    is_root() && Qemu::is_whole(Architecture::HOST)
}

/// Returns whether QEMU can emulate an arm64 guest on this host.
pub fn has_arm64_qemu() -> bool {
    is_root() && Qemu::is_whole(Architecture::Aarch64)
}

fn digest(file: &OwnedFd) -> Vec<u8> {
    let file = File::from(file.try_clone().unwrap());
    let mut content = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    Sha256::digest(content).to_vec()
}

fn count_in(capture: &Capture, architecture: Architecture) -> u32 {
    let (mut bytes, memory) = ([0; 4], File::from(capture.memory.try_clone().unwrap()));
    memory.read_exact_at(&mut bytes, counter(architecture)).unwrap();
    u32::from_le_bytes(bytes)
}

/// Returns the characters that the guest prints after it has counted to a number.
fn next_after(count: u32, characters: u32) -> Vec<u8> {
    (1..=characters).map(|step| b'0' + (((count >> SHIFT) + step) & 63) as u8).collect()
}

#[tokio::test]
async fn two_guests_continue_where_one_was_captured_and_leave_the_capture_as_it_is() {
    require!(has_qemu(), "root and QEMU");
    check_children(Host::new()).await;
}

#[tokio::test]
async fn two_arm64_guests_continue_where_one_was_captured() {
    require!(has_arm64_qemu(), "root and QEMU for arm64");
    check_children(Host::emulating(Architecture::Aarch64)).await;
}

async fn check_children(host: Host) {
    let capture = host.capture().await;
    let count = count_in(&capture, host.architecture);
    let (state, memory) = (digest(&capture.state), digest(&capture.memory));
    assert!(count >> SHIFT >= 3, "{count}");
    for vm in CHILDREN {
        host.start_child(vm, &capture).await.unwrap();
    }
    for vm in CHILDREN {
        let said = host.until_said(vm, 4).await;
        assert_eq!(&said[..4], next_after(count, 4));
    }
    assert_eq!((digest(&capture.state), digest(&capture.memory)), (state, memory));
    for vm in CHILDREN {
        host.remove(vm).await;
    }
    assert!(names(&host.scratch.paths.sockets()).is_empty());
}

#[tokio::test]
async fn the_process_of_a_child_cannot_change_the_memory_of_others() {
    require!(has_qemu(), "root and QEMU");
    let host = Host::new();
    let capture = host.capture().await;
    let memory = digest(&capture.memory);
    let spec = host.spec(CHILDREN[0]);
    let attack = async {
        let mut command = host.vmm.prepare_child(&spec, &capture).await?;
        assert!(command.files.iter().any(|(name, _)| name == "memory"));
        // Opening it for writing works, as it must for QEMU 7.2. Writing and truncating does not.
        let script = "echo attack >/proc/self/fd/{fd:memory}; echo attack >&{fd:memory}; \
                      /usr/bin/truncate -s 0 /proc/self/fd/{fd:memory}; \
                      /usr/bin/dd if=/dev/zero of=/proc/self/fd/{fd:memory} conv=notrunc count=1; \
                      (: <>/proc/self/fd/{fd:memory}) && echo opened";
        command.argv = ["/usr/bin/bash", "-c", script].map(str::to_owned).to_vec();
        Ok(command)
    };
    host.run(&spec, attack).await;
    let ended = tokio::time::timeout(TIMEOUT, host.supervisor.ended(CHILDREN[0])).await.unwrap().unwrap();
    assert_eq!(ended, Ended::Clean);
    assert_eq!(String::from_utf8_lossy(&host.said(CHILDREN[0])), "opened\n");
    assert_eq!(digest(&capture.memory), memory);
    host.remove(CHILDREN[0]).await;
}

#[tokio::test]
async fn a_state_that_does_not_fit_is_refused_and_leaves_nothing() {
    require!(has_qemu(), "root and QEMU");
    let host = Host::new();
    let mut capture = host.capture().await;
    let garbage = tempfile::tempfile().unwrap();
    garbage.write_all_at(&[0xff; 4096], 0).unwrap();
    capture.state = garbage.into();
    let error = host.start_child(CHILDREN[0], &capture).await.unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error}");
    host.remove(CHILDREN[0]).await;
    assert!(names(&host.scratch.paths.sockets()).is_empty());
}

#[tokio::test]
async fn only_a_template_can_be_captured() {
    require!(has_qemu(), "root and QEMU");
    let host = Host::new();
    let spec = host.spec(CHILDREN[0]);
    host.run(&spec, host.vmm.prepare_launch(&spec)).await;
    host.until_said(CHILDREN[0], 1).await;
    assert!(host.vmm.capture(CHILDREN[0]).await.is_err());
    let before = host.said(CHILDREN[0]).len();
    host.until_said(CHILDREN[0], before + 1).await;
    host.remove(CHILDREN[0]).await;
}
