//! The key of templates: what a guest depends on until it is configured.

use std::{fs, path::PathBuf};

use banger_domain::{architecture::Architecture, launch_spec::LaunchSpec};

use super::args::{self, Acceleration, Role};
use crate::{
    host::storage::templates::stamp,
    ports::{
        FromHost as _,
        captures::HostFacts,
        templates::TemplateKey,
        vmm::{Error, Result},
    },
};

/// The lines of `/proc/cpuinfo` that the state of a virtual processor depends on.
const PROCESSOR: &[&str] = &[
    // x86-64
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "microcode",
    "flags",
    // arm64
    "Features",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "CPU revision",
];

/// Returns the key of a sandbox. `vmm` are the program and its firmware.
pub fn of(
    spec: &LaunchSpec,
    architecture: Architecture,
    acceleration: Acceleration,
    vmm: Vec<PathBuf>,
    host: Vec<String>,
) -> Result<TemplateKey> {
    let paths = vmm.into_iter().chain([spec.kernel.clone()]).chain(spec.initramfs.clone());
    let stamped = paths.map(|path| match stamp(&path) {
        Ok(stamp) => Ok((path, stamp)),
        Err(error) => Err(Error::os(format!("look at {}", path.display()), error)),
    });
    Ok(TemplateKey {
        files: stamped.collect::<Result<_>>()?,
        host,
        arguments: args::of(architecture, "", spec, acceleration, Role::Template),
    })
}

/// Returns the facts about the host: its kernel, its processor and its microcode.
pub fn host() -> Result<Vec<String>> {
    let cpuinfo =
        fs::read_to_string("/proc/cpuinfo").map_err(|error| Error::os("read /proc/cpuinfo", error))?;
    let kernel = rustix::system::uname();
    let mut facts = vec![
        kernel.release().to_string_lossy().into_owned(),
        kernel.version().to_string_lossy().into_owned(),
    ];
    facts.extend(processor(&cpuinfo));
    Ok(facts)
}

/// Returns what the state of a guest in a running VMM depends on, beside its own disks. `host` is what [`host`] returns.
pub fn facts(version: String, acceleration: Acceleration, host: &[String]) -> HostFacts {
    let (kernel, processor) = host.split_at(host.len().min(2));
    let parts = [
        ("the VMM", version),
        ("the acceleration", format!("{acceleration:?}")),
        ("the host's kernel", kernel.join(" ")),
        ("the host's processor", processor.join(" ")),
    ];
    parts.into_iter().map(|(part, value)| (part.to_owned(), value)).collect()
}

/// Returns the facts about the first processor.
fn processor(cpuinfo: &str) -> Vec<String> {
    let first = cpuinfo.lines().take_while(|line| !line.trim().is_empty());
    let facts =
        first.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.trim(), value.trim()));
    let facts = facts.filter(|(name, _)| PROCESSOR.contains(name));
    facts.map(|(name, value)| format!("{name}: {value}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_domain::{
        id::{Uid, VmId},
        launch_spec::{Access, Drive, Medium, Nic},
        vmm::VmmChoice,
    };
    use banger_proto::size::Bytes;

    use super::*;

    struct Host {
        home: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let host = Self { home: tempfile::tempdir().unwrap() };
            for name in ["qemu", "firmware", "kernel", "modules", "agent"] {
                fs::write(host.path(name), name).unwrap();
            }
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.home.path().join(name)
        }

        fn spec(&self) -> LaunchSpec {
            LaunchSpec {
                vm: VmId::from_bits(1),
                owner: Uid(1000),
                name: "calm-otter".into(),
                vmm: VmmChoice::Auto,
                vcpus: 2,
                memory: Bytes::gib(1),
                kernel: self.path("kernel"),
                initramfs: vec![self.path("modules"), self.path("agent")],
                drives: vec![Drive {
                    path: self.path("disk"),
                    access: Access::ReadWrite,
                    medium: Medium::File,
                }],
                nics: vec![Nic { tap: "bgr-0".into(), mac: "02:67:00:00:00:01".into() }],
            }
        }

        fn key(&self, spec: &LaunchSpec) -> TemplateKey {
            let vmm = vec![self.path("qemu"), self.path("firmware")];
            of(spec, Architecture::X86_64, Acceleration::Tcg, vmm, vec!["6.1.0".into()]).unwrap()
        }
    }

    #[test]
    fn sandboxes_that_differ_only_in_identity_and_content_have_one_key() {
        let host = Host::new();
        let one = host.spec();
        let other = LaunchSpec {
            vm: VmId::from_bits(2),
            owner: Uid(1001),
            name: "brave-heron".into(),
            drives: vec![Drive {
                path: "/another/disk".into(),
                access: Access::ReadOnly,
                medium: Medium::BlockDevice,
            }],
            nics: vec![Nic { tap: "bgr-1".into(), mac: "02:67:00:00:00:02".into() }],
            ..host.spec()
        };
        assert_eq!(host.key(&one), host.key(&other));
        let text = format!("{:?}", host.key(&one));
        assert!(!text.contains("otter") && !text.contains("token") && !text.contains("1000"), "{text}");
    }

    #[test]
    fn each_part_of_the_machine_is_in_the_key() {
        let host = Host::new();
        let spec = host.spec();
        let key = host.key(&spec);
        let drive = spec.drives[0].clone();
        for other in [
            LaunchSpec { vcpus: 1, ..spec.clone() },
            LaunchSpec { memory: Bytes::gib(2), ..spec.clone() },
            LaunchSpec { drives: vec![drive.clone(), drive], ..spec.clone() },
            LaunchSpec { nics: Vec::new(), ..spec.clone() },
            LaunchSpec { initramfs: vec![host.path("agent")], ..spec.clone() },
        ] {
            assert_ne!(host.key(&other), key, "{other:?}");
        }
        let key_of = |architecture, acceleration, release: &str| {
            let vmm = vec![host.path("qemu"), host.path("firmware")];
            of(&spec, architecture, acceleration, vmm, vec![release.into()]).unwrap()
        };
        let x86 = Architecture::X86_64;
        assert_eq!(key_of(x86, Acceleration::Tcg, "6.1.0"), key);
        assert_ne!(key_of(x86, Acceleration::Kvm, "6.1.0"), key);
        assert_ne!(key_of(x86, Acceleration::Tcg, "6.1.1"), key);
        assert_ne!(key_of(Architecture::Aarch64, Acceleration::Tcg, "6.1.0"), key);
    }

    #[test]
    fn each_file_is_in_the_key() {
        let host = Host::new();
        for name in ["qemu", "firmware", "kernel", "modules", "agent"] {
            let before = host.key(&host.spec());
            // As packages and imports do: a new file in place of the old one.
            fs::write(host.path("new"), name).unwrap();
            fs::rename(host.path("new"), host.path(name)).unwrap();
            assert_ne!(host.key(&host.spec()), before, "{name}");
        }
    }

    #[test]
    fn the_facts_are_those_of_the_first_processor() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: A\nmodel name\t: B: C\ncpu MHz\t\t: 2449.998\nmicrocode\t: 0x1\n\n\
                       processor\t: 1\nmicrocode\t: 0x2\n";
        assert_eq!(processor(cpuinfo), ["vendor_id: A", "model name: B: C", "microcode: 0x1"]);
        let arm = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n";
        assert_eq!(processor(arm), ["Features: fp asimd", "CPU implementer: 0x41", "CPU part: 0xd0c"]);
        assert!(host().unwrap().len() > 4);
    }
}
