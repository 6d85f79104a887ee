//! The configuration file, and what holds where it is silent: defaults that fit the host.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use banger_domain::{
    limits::Limits,
    name::Name,
    net::{nic::SameOwner, prefix::Prefix4, subnet::Subnet},
    vmm::VmmChoice,
};
use banger_image::catalog::{self, signature::Keys};
use banger_proto::size::Bytes;
use serde::Deserialize;

use crate::engine::{Settings, request::OnReboot};

/// Where the configuration is looked for.
pub const PATH: &str = "/etc/banger/config.toml";

const DEFAULT_IMAGE: &str = "debian-bookworm";
const DEFAULT_KERNEL: &str = "debian";
/// A guest under emulation, on a host that is busy with others, takes this long at the worst.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// Longer than the agent lets an image's init take: the agent then ends
/// the guest in order, which loses nothing.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Enough for somebody who starts machines by hand; each costs the kernel some 10 KiB.
const WARM_TAPS: usize = 4;
const MAX_WARM_TAPS: usize = 64;

/// The file systems that are made of layers and archives. What is not used takes no room, and what a guest writes
/// takes it in the guest's own files: this only bounds how much that can be.
const IMAGE_SIZE: Bytes = Bytes::gib(16);
const IMAGE_SIZES: std::ops::RangeInclusive<Bytes> = Bytes::mib(64)..=Bytes::gib(256);

/// The catalog that comes with the package.
const CATALOG: &str = "banger";
const CATALOG_INDEX: &str = "/usr/share/banger/catalog/index.json";
/// Where `NAME.pub` has keys of the catalog NAME: what the package trusts, and what an administrator trusts.
pub const CATALOG_KEYS: [&str; 2] = ["/usr/share/banger/keys", "/etc/banger/keys"];
const MAX_CATALOGS: usize = 16;

/// A dozen of images for development, packed.
const CACHE_SIZE: Bytes = Bytes::gib(10);

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The image of a machine for which none is named.
    pub default_image_name: Option<String>,
    /// The kernel of an image for which none is named.
    pub default_kernel_name: Option<String>,
    /// Size of the file system that is made of an image's layers or of an archive, such as `16GiB`.
    pub image_size: Option<String>,
    /// Seconds that a guest may take to become ready.
    pub ready_timeout: Option<u64>,
    /// Seconds that a guest may take to power off.
    pub stop_timeout: Option<u64>,
    /// What happens when a guest reboots: `boot` or `stop`.
    pub on_guest_reboot: Option<String>,
    /// The machine monitor of a machine for which none is named: `auto`, `firecracker` or `qemu`.
    pub vmm: Option<String>,
    /// Where Firecracker is; where packages put it when absent.
    pub firecracker: Option<PathBuf>,
    /// Machines for which no size is named.
    #[serde(default)]
    pub vm_defaults: VmDefaults,
    /// The network of guests.
    #[serde(default)]
    pub network: NetworkSection,
    /// Catalogs, in the order in which something is looked up in them; that of the package when absent.
    pub catalog: Option<Vec<CatalogSection>>,
    /// The cache of what registries sent.
    #[serde(default)]
    pub cache: CacheSection,
    /// Registries of images.
    #[serde(default)]
    pub registry: RegistrySection,
    /// What one user may have.
    #[serde(default)]
    pub limits: LimitsSection,
}

/// Registries of images.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySection {
    /// Ports of the host itself, at `localhost`, where every user may pull images from; none when absent.
    #[serde(default)]
    pub local_ports: BTreeSet<u16>,
}

/// A catalog.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogSection {
    /// What it is called here.
    pub name: String,
    /// Where its index is: an absolute path, or an address of the web.
    pub location: String,
    /// Public keys of minisign, each of which may sign it, beside those in `/etc/banger/keys/NAME.pub`.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// The cache of what registries sent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSection {
    /// What it may hold, such as `20GiB`; what was not used for the longest time goes first.
    pub size: Option<String>,
}

/// The network of guests.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSection {
    /// Where guests are to be, such as `172.30.0.0/16`. Only the first start asks.
    pub subnet: Option<String>,
    /// Whether guests of one owner reach each other; they do when absent.
    pub siblings: Option<bool>,
    /// How many interfaces are kept ready for the next machines; 0 for none.
    pub warm_taps: Option<usize>,
}

/// Machines for which no size is named.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmDefaults {
    /// Virtual processors.
    pub vcpu: Option<u32>,
    /// Memory, such as `2GiB`.
    pub memory: Option<String>,
    /// Size of the work disk, such as `8GiB`.
    pub disk_size: Option<String>,
    /// The least size of the system disk, such as `16GiB`.
    pub root_size: Option<String>,
}

/// What one user may have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsSection {
    /// Machines that exist.
    pub vms: Option<u32>,
    /// Machines that are up.
    pub running: Option<u32>,
    /// Virtual processors of one machine.
    pub vcpus: Option<u32>,
    /// Memory of all machines that are up.
    pub memory: Option<String>,
    /// Work disks of all machines, and what their system disks have beyond their images.
    pub disk: Option<String>,
    /// Images, and kernels.
    pub images: Option<u32>,
    /// What all images that are not shared take.
    pub image_disk: Option<String>,
}

/// What the defaults follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is there and cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("{path} is no valid configuration")]
    Parse {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: toml::de::Error,
    },
    /// A key has an impossible value.
    #[error("the configuration key {key} is {value:?}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

impl Config {
    /// Reads the file. One that is not there is an empty one.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let name = || path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(Error::Read { path: name(), source }),
        };
        toml::from_str(&text).map_err(|source| Error::Parse { path: name(), source })
    }

    /// What is wished of the choice of a machine monitor.
    pub fn vmm(&self) -> Result<VmmChoice, Error> {
        let Some(word) = &self.vmm else { return Ok(VmmChoice::Auto) };
        VmmChoice::parse(word).ok_or_else(|| Error::Value { key: "vmm", value: word.clone() })
    }

    /// How many interfaces are kept ready.
    pub fn warm_taps(&self) -> usize {
        self.network.warm_taps.unwrap_or(WARM_TAPS).min(MAX_WARM_TAPS)
    }

    /// Size of the file systems that are made of layers and archives, in whole MiB.
    pub fn image_size(&self) -> Result<Bytes, Error> {
        let size = size("image_size", &self.image_size)?.unwrap_or(IMAGE_SIZE);
        if !IMAGE_SIZES.contains(&size) {
            return Err(Error::Value { key: "image_size", value: size.to_string() });
        }
        Ok(Bytes::mib(size.in_mib()))
    }

    /// What the cache of registries may hold.
    pub fn cache_size(&self) -> Result<Bytes, Error> {
        Ok(size("cache.size", &self.cache.size)?.unwrap_or(CACHE_SIZE))
    }

    /// The catalogs.
    pub fn catalogs(&self) -> Result<Vec<catalog::Source>, Error> {
        let wrong = |key, value: &str| Error::Value { key, value: value.to_owned() };
        let Some(sections) = &self.catalog else {
            let name = name("catalog.name", &None, CATALOG)?;
            let location = CATALOG_INDEX.parse().map_err(|_| wrong("catalog.location", CATALOG_INDEX))?;
            return Ok(vec![catalog::Source { name, location, keys: Keys::default() }]);
        };
        let mut sources: Vec<catalog::Source> = Vec::new();
        for section in sections {
            let source = catalog::Source {
                name: section.name.parse().map_err(|_| wrong("catalog.name", &section.name))?,
                location: section
                    .location
                    .parse()
                    .map_err(|_| wrong("catalog.location", &section.location))?,
                keys: Keys::parse(&section.keys.join("\n"))
                    .map_err(|_| wrong("catalog.keys", &section.keys.join(" ")))?,
            };
            if sources.iter().any(|other| other.name == source.name) || sources.len() == MAX_CATALOGS {
                return Err(wrong("catalog.name", &section.name));
            }
            sources.push(source);
        }
        Ok(sources)
    }

    fn subnet(&self) -> Result<Option<Prefix4>, Error> {
        let Some(text) = &self.network.subnet else { return Ok(None) };
        let wrong = || Error::Value { key: "network.subnet", value: text.clone() };
        let prefix: Prefix4 = text.parse().map_err(|_| wrong())?;
        Subnet::at(prefix, [0; 5]).map(|_| Some(prefix)).ok_or_else(wrong)
    }

    /// What the engine is to go by on this host.
    pub fn settings(&self, host: Host) -> Result<Settings, Error> {
        let mut limits = Limits::of_host(host.cpus, host.memory);
        let section = &self.limits;
        set(&mut limits.vms, section.vms);
        set(&mut limits.running, section.running);
        set(&mut limits.vcpus, section.vcpus);
        set(&mut limits.memory, size("limits.memory", &section.memory)?);
        set(&mut limits.disk, size("limits.disk", &section.disk)?);
        set(&mut limits.images, section.images);
        set(&mut limits.image_disk, size("limits.image_disk", &section.image_disk)?);

        let defaults = &self.vm_defaults;
        // A quarter of the processors and an eighth of the memory, within what suits most work.
        let vcpus = defaults.vcpu.unwrap_or((host.cpus / 4).clamp(2, 4)).min(limits.vcpus);
        let memory = match size("vm_defaults.memory", &defaults.memory)? {
            Some(memory) => memory,
            None => Bytes::mib(Bytes(host.memory.0 / 8).in_mib())
                .clamp(Bytes::gib(2), Bytes::gib(8))
                .min(limits.memory),
        };
        Ok(Settings {
            default_image: {
                let text = self.default_image_name.as_deref().unwrap_or(DEFAULT_IMAGE);
                let wrong = |_| Error::Value { key: "default_image_name", value: text.to_owned() };
                text.parse().map_err(wrong)?
            },
            default_kernel: name("default_kernel_name", &self.default_kernel_name, DEFAULT_KERNEL)?,
            vcpus,
            memory,
            disk_size: size("vm_defaults.disk_size", &defaults.disk_size)?.unwrap_or(Bytes::gib(8)),
            root_size: size("vm_defaults.root_size", &defaults.root_size)?.unwrap_or(Bytes(0)),
            ready_timeout: self.ready_timeout.map_or(READY_TIMEOUT, Duration::from_secs),
            stop_timeout: self.stop_timeout.map_or(STOP_TIMEOUT, Duration::from_secs),
            on_reboot: match self.on_guest_reboot.as_deref() {
                None | Some("boot") => OnReboot::Boot,
                Some("stop") => OnReboot::Stop,
                Some(other) => {
                    return Err(Error::Value { key: "on_guest_reboot", value: other.to_owned() });
                }
            },
            subnet: self.subnet()?,
            siblings: match self.network.siblings {
                Some(false) => SameOwner::Apart,
                None | Some(true) => SameOwner::Connected,
            },
            limits,
        })
    }
}

fn set<T>(value: &mut T, configured: Option<T>) {
    if let Some(configured) = configured {
        *value = configured;
    }
}

fn size(key: &'static str, value: &Option<String>) -> Result<Option<Bytes>, Error> {
    let Some(value) = value else { return Ok(None) };
    value.parse().map(Some).map_err(|_| Error::Value { key, value: value.clone() })
}

fn name(key: &'static str, value: &Option<String>, default: &str) -> Result<Name, Error> {
    let value = value.as_deref().unwrap_or(default);
    value.parse().map_err(|_| Error::Value { key, value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOST: Host = Host { cpus: 16, memory: Bytes::gib(32) };

    #[test]
    fn an_empty_configuration_fits_the_host() {
        let settings = Config::default().settings(HOST).unwrap();
        assert_eq!((settings.vcpus, settings.memory, settings.root_size), (4, Bytes::gib(4), Bytes(0)));
        let small = Config::default().settings(Host { cpus: 1, memory: Bytes::gib(2) }).unwrap();
        assert_eq!((small.vcpus, small.memory), (2, Bytes::gib(1)));
        assert!(small.limits.check_sizes(small.vcpus, small.memory, small.disk_size).is_ok());
    }

    #[test]
    fn keys_are_read_and_wrong_ones_refused() {
        let read = |text: &str| toml::from_str::<Config>(text);
        let config = read("default_image_name = \"mine\"\n[vm_defaults]\nmemory = \"3G\"\n").unwrap();
        let settings = config.settings(HOST).unwrap();
        assert_eq!((settings.default_image.to_string(), settings.memory), ("mine".to_owned(), Bytes::gib(3)));
        let root = read("[vm_defaults]\nroot_size = \"20GiB\"").unwrap().settings(HOST).unwrap().root_size;
        assert_eq!(root, Bytes::gib(20));
        assert!(read("no_such_key = 1").is_err());
        let network = read("[network]\nsubnet = \"10.9.0.0/16\"\nsiblings = false\nwarm_taps = 0").unwrap();
        let settings = network.settings(HOST).unwrap();
        assert_eq!((settings.siblings, network.warm_taps()), (SameOwner::Apart, 0));
        assert_eq!(settings.subnet.unwrap().to_string(), "10.9.0.0/16");
        assert!(read("[network]\nsubnet = \"10.9.0.0/24\"").unwrap().settings(HOST).is_err());
        let image_size = |text| read(text).unwrap().image_size();
        assert_eq!(image_size("").unwrap(), Bytes::gib(16));
        assert_eq!(image_size("image_size = \"20GiB\"").unwrap(), Bytes::gib(20));
        assert!(image_size("image_size = \"1MiB\"").is_err() && image_size("image_size = \"1TiB\"").is_err());
        let on_reboot = |text| read(text).unwrap().settings(HOST).map(|settings| settings.on_reboot);
        assert_eq!(on_reboot("").unwrap(), OnReboot::Boot);
        assert_eq!(on_reboot("on_guest_reboot = \"stop\"").unwrap(), OnReboot::Stop);
        assert!(on_reboot("on_guest_reboot = \"never\"").is_err());
        assert!(config.registry.local_ports.is_empty());
        assert!(read("[registry]\nlocal_ports = [5000]").unwrap().registry.local_ports.contains(&5000));
        assert_eq!(config.catalogs().unwrap()[0].location.to_string(), CATALOG_INDEX);
        assert!(read("catalog = []").unwrap().catalogs().unwrap().is_empty());
        let wrong = read("[vm_defaults]\nmemory = \"much\"").unwrap().settings(HOST).unwrap_err();
        assert_eq!(wrong.to_string(), "the configuration key vm_defaults.memory is \"much\"");
    }

    #[test]
    fn catalogs_are_read_in_their_order_and_each_has_its_name() {
        let read = |text: &str| toml::from_str::<Config>(text).unwrap().catalogs();
        let mine = "[[catalog]]\nname = \"mine\"\nlocation = \"/srv/index.json\"\n";
        let other = "[[catalog]]\nname = \"other\"\nlocation = \"https://example.org/index.json\"\n";
        let sources = read(&format!("{other}{mine}")).unwrap();
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(names, ["other", "mine"]);
        assert!(sources[0].keys.is_empty());
        for text in [
            format!("{mine}{mine}"),
            mine.replace("mine", "../mine"),
            mine.replace("/srv", "srv"),
            mine.replace("/srv", "http://example.org"),
            format!("{mine}keys = [\"nonsense\"]"),
        ] {
            assert!(read(&text).is_err(), "{text}");
        }
    }
}
