//! An arm64 guest under QEMU's emulation: a distribution's kernel boots with the arguments that the service passes, until
//! its agent answers. Another guest continues from a capture of it.
//!
//! `BANGER_TEST_ARM64` names a directory with an unpacked kernel package (`boot/vmlinuz-<release>` and
//! `lib/modules/<release>/`) and the agent for arm64 (`banger-agent`). `cargo xtask test --levels 5 --only arm64` makes it.

use std::{
    fs::{self, File},
    io::Seek,
    path::Path,
    sync::Arc,
    time::Duration,
};

use banger_domain::{architecture::Architecture, id::VmId, launch_spec::LaunchSpec};
use banger_image::kernel::{
    extract::extract,
    initramfs::{agent_archive, modules_archive},
    modules::pick,
};
use banger_proto::size::Bytes;
use banger_system::{
    host::guest::link::AgentLink,
    ports::{guest_link::GuestLink, vmm::Vmm},
};

use crate::{
    scratch::{names, require},
    template::{Host, has_arm64_qemu},
};

const ARM64: Architecture = Architecture::Aarch64;
const TEMPLATE: VmId = VmId::from_bits(0xa64);
const CHILD: VmId = VmId::from_bits(0xa65);
/// Only a guest that never answers is waited for that long.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Returns the description of a guest with the kernel and the agent in this directory.
fn spec(host: &Host, vm: VmId, from: &Path) -> LaunchSpec {
    let boot = fs::read_dir(from.join("boot")).unwrap().map(|entry| entry.unwrap().path());
    let is_kernel = |path: &Path| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz-");
    let vmlinuz = boot.into_iter().find(|path| is_kernel(path)).unwrap();
    let kernel = extract(fs::read(vmlinuz).unwrap(), ARM64).unwrap();
    let mut modules = tar::Builder::new(tempfile::tempfile().unwrap());
    modules.append_dir_all("lib/modules", from.join("lib/modules")).unwrap();
    let mut modules: File = modules.into_inner().unwrap();
    modules.rewind().unwrap();
    let modules = modules_archive(&pick(modules, &kernel).unwrap()).unwrap();
    let agent = agent_archive(&fs::read(from.join("banger-agent")).unwrap()).unwrap();
    let state = &host.scratch.paths.state;
    let files = [("Image", kernel.vmlinux), ("modules", modules), ("agent", agent)].map(|(name, content)| {
        let path = state.join(name);
        fs::write(&path, content).unwrap();
        path
    });
    let [kernel, modules, agent] = files;
    LaunchSpec { kernel, initramfs: vec![modules, agent], memory: Bytes::mib(512), vcpus: 2, ..host.spec(vm) }
}

#[tokio::test]
async fn an_arm64_guest_boots_until_its_agent_answers_and_another_continues_from_it() {
    let files = std::env::var_os("BANGER_TEST_ARM64");
    require!(has_arm64_qemu() && files.is_some(), "root, QEMU for arm64 and BANGER_TEST_ARM64");
    let host = Host::emulating(ARM64);
    let files = files.unwrap();
    let link = AgentLink::new(Arc::clone(&host.vmm) as Arc<dyn Vmm>);
    let template = spec(&host, TEMPLATE, Path::new(&files));
    host.run(&template, host.vmm.prepare_template(&template)).await;
    let guest = link.wait_unconfigured(TEMPLATE, TIMEOUT).await;
    let said = host.said(TEMPLATE);
    assert!(guest.is_ok_and(|guest| !guest.early_devices), "{}", String::from_utf8_lossy(&said));
    let capture = host.vmm.capture(TEMPLATE).await.unwrap();
    host.remove(TEMPLATE).await;

    let child = spec(&host, CHILD, Path::new(&files));
    host.run(&child, host.vmm.prepare_child(&child, &capture)).await;
    host.vmm.resume(CHILD, &capture).await.unwrap();
    link.wait_unconfigured(CHILD, TIMEOUT).await.unwrap();
    host.remove(CHILD).await;
    assert!(names(&host.scratch.paths.sockets()).is_empty());
}
