//! The configuration file, and defaults that fit the host.

pub mod presets;
mod reach;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use banger_domain::{
    egress::Egress,
    limits::Limits,
    name::Name,
    net::{nic::SameOwner, prefix::Prefix4, subnet::Subnet},
    vmm::VmmChoice,
};
use banger_image::catalog::{self, signature::Keys};
use banger_proto::size::Bytes;
use serde::Deserialize;

pub use self::reach::MirrorSection;
use crate::engine::{HOST_KERNEL, Settings, request::OnReboot};

/// The default path of the configuration.
pub const PATH: &str = "/etc/banger/config.toml";

const DEFAULT_IMAGE: &str = "debian-bookworm";
/// The longest boot of an emulated guest on a busy host.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// Longer than the agent's own limit for an image's init, after which it powers the guest off without losing data.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Enough for interactive use; each costs some 10 KiB of kernel memory.
const WARM_TAPS: usize = 4;
const MAX_WARM_TAPS: usize = 64;

/// Size of file systems made from layers and archives. Unused space takes no room on the host, so this is only an
/// upper bound.
const IMAGE_SIZE: Bytes = Bytes::gib(16);
const IMAGE_SIZES: std::ops::RangeInclusive<Bytes> = Bytes::mib(64)..=Bytes::gib(256);

/// The package's catalog.
const CATALOG: &str = "banger";
const CATALOG_INDEX: &str = "/usr/share/banger/catalog/index.json";
/// Directories with the public keys of the catalog NAME in `NAME.pub`: the package's keys, and the administrator's.
pub const CATALOG_KEYS: [&str; 2] = ["/usr/share/banger/keys", "/etc/banger/keys"];
const MAX_CATALOGS: usize = 16;

/// Room for a dozen development images, compressed.
const CACHE_SIZE: Bytes = Bytes::gib(10);

/// Room for about twenty kernel templates.
const TEMPLATES_DISK: Bytes = Bytes::gib(2);

/// The parsed file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Image of a sandbox, unless the request names one.
    pub default_image_name: Option<String>,
    /// Kernel of an image that names none; the host's own if absent.
    pub default_kernel_name: Option<String>,
    /// Size of the file system that is made from an image's layers or from an archive, such as `16GiB`.
    pub image_size: Option<String>,
    /// Seconds that a guest may take to become ready.
    pub ready_timeout: Option<u64>,
    /// Seconds that a guest may take to power off.
    pub stop_timeout: Option<u64>,
    /// What happens when a guest reboots: `boot` or `stop`.
    pub on_guest_reboot: Option<String>,
    /// The most that a sandbox may reach beyond the host; everything if absent.
    pub egress: Option<Vec<String>>,
    /// The VMM of a sandbox that names none: `auto`, `firecracker` or `qemu`.
    pub vmm: Option<String>,
    /// Path of Firecracker; the packages' path if absent.
    pub firecracker: Option<PathBuf>,
    /// The proxy for registries and catalogs, such as `http://proxy.example:3128`.
    pub proxy: Option<String>,
    /// Hosts and networks that are reached without the proxy.
    #[serde(default)]
    pub no_proxy: Vec<String>,
    /// Mirrors of registries.
    #[serde(default)]
    pub mirror: Vec<MirrorSection>,
    /// Default sizes of sandboxes.
    #[serde(default)]
    pub vm_defaults: VmDefaults,
    /// The network of guests.
    #[serde(default)]
    pub network: NetworkSection,
    /// Catalogs, in the order of look-ups; the package's catalog if absent.
    pub catalog: Option<Vec<CatalogSection>>,
    /// The cache of registries.
    #[serde(default)]
    pub cache: CacheSection,
    /// Registries of images.
    #[serde(default)]
    pub registry: RegistrySection,
    /// Kernel templates.
    #[serde(default)]
    pub templates: TemplatesSection,
    /// Quotas of each user.
    #[serde(default)]
    pub limits: LimitsSection,
}

/// Kernel templates.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplatesSection {
    /// The room on the disk that they may take, such as `4GiB`; `0` for none.
    pub disk: Option<String>,
}

/// Registries of images.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySection {
    /// Ports of `localhost` where every user may pull images from; none if absent.
    #[serde(default)]
    pub local_ports: BTreeSet<u16>,
}

/// A catalog.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogSection {
    /// Its local name.
    pub name: String,
    /// Its index: an absolute path or a URL.
    pub location: String,
    /// Minisign public keys that may sign it, in addition to those in `/etc/banger/keys/NAME.pub`.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// The cache of registries.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSection {
    /// Its maximum size, such as `20GiB`; least recently used layers are removed first.
    pub size: Option<String>,
}

/// The network of guests.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSection {
    /// Network of the guests, such as `172.30.0.0/16`. Only the first start reads it.
    pub subnet: Option<String>,
    /// Whether sandboxes of the same owner reach each other; they do if absent.
    #[serde(alias = "siblings")]
    pub same_owner: Option<bool>,
    /// How many network interfaces are prepared for the next sandboxes; 0 for none.
    pub warm_taps: Option<usize>,
}

/// Default sizes of sandboxes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmDefaults {
    /// Virtual processors.
    pub vcpu: Option<u32>,
    /// Memory, such as `2GiB`.
    pub memory: Option<String>,
    /// Size of the work disk, such as `8GiB`.
    pub disk_size: Option<String>,
    /// Minimum size of the system disk, such as `16GiB`.
    pub root_size: Option<String>,
}

/// Quotas of each user.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsSection {
    /// Sandboxes that exist.
    pub vms: Option<u32>,
    /// Running sandboxes.
    pub running: Option<u32>,
    /// Virtual processors of one sandbox.
    pub vcpus: Option<u32>,
    /// Memory of all running sandboxes.
    pub memory: Option<String>,
    /// Work disks of all sandboxes, and the growth of system disks beyond their images.
    pub disk: Option<String>,
    /// Images, and kernels.
    pub images: Option<u32>,
    /// Disk space of all private images.
    pub image_disk: Option<String>,
}

/// The host's size, which defaults depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be parsed.
    #[error("{path} is not a valid configuration")]
    Parse {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: toml::de::Error,
    },
    /// A key has an invalid value, which may have a password in it.
    #[error("the configuration key {key} is not {expected}")]
    Hidden {
        /// The key.
        key: &'static str,
        /// What it has to be.
        expected: String,
    },
    /// A key has an invalid value.
    #[error("the configuration key {key} is {value:?}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

impl Config {
    /// Reads the file. A missing file counts as empty.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let name = || path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(Error::Read { path: name(), source }),
        };
        Self::parse(&text).map_err(|source| Error::Parse { path: name(), source })
    }

    /// Parses the text of a file. The error quotes neither a line about the proxy, which may have a password, nor its
    /// value, which serde puts into the message.
    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let Some(span) = error.span() else { return error };
            let start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
            let end = text[span.end..].find('\n').map_or(text.len(), |at| span.end + at);
            let quoted = &text[start..end];
            if !quoted.contains("proxy") && !quoted.contains('@') {
                return error;
            }
            let line = text[..start].matches('\n').count() + 1;
            let message = format!("line {line} has an unknown key, or a value of the wrong type or form");
            <toml::de::Error as serde::de::Error>::custom(message)
        })
    }

    /// Returns the configured choice of VMM.
    pub fn vmm(&self) -> Result<VmmChoice, Error> {
        let Some(word) = &self.vmm else { return Ok(VmmChoice::Auto) };
        VmmChoice::parse(word).ok_or_else(|| Error::Value { key: "vmm", value: word.clone() })
    }

    /// Returns how many network interfaces are prepared.
    pub fn warm_taps(&self) -> usize {
        self.network.warm_taps.unwrap_or(WARM_TAPS).min(MAX_WARM_TAPS)
    }

    /// Returns the size of file systems made from layers and archives, in whole MiB.
    pub fn image_size(&self) -> Result<Bytes, Error> {
        let size = size("image_size", &self.image_size)?.unwrap_or(IMAGE_SIZE);
        if !IMAGE_SIZES.contains(&size) {
            return Err(Error::Value { key: "image_size", value: size.to_string() });
        }
        Ok(Bytes::mib(size.in_mib()))
    }

    /// Returns the maximum size of the cache.
    pub fn cache_size(&self) -> Result<Bytes, Error> {
        Ok(size("cache.size", &self.cache.size)?.unwrap_or(CACHE_SIZE))
    }

    /// Returns the room on the disk that kernel templates may take. Without any, each sandbox boots.
    pub fn templates_disk(&self) -> Result<Bytes, Error> {
        Ok(size("templates.disk", &self.templates.disk)?.unwrap_or(TEMPLATES_DISK))
    }

    /// Returns the catalogs.
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

    /// Returns the most that a sandbox may reach.
    fn egress_ceiling(&self) -> Result<Egress, Error> {
        let Some(words) = &self.egress else { return Ok(Egress::Everything) };
        Egress::parse(words).map_err(|_| Error::Value { key: "egress", value: words.join(" ") })
    }

    fn subnet(&self) -> Result<Option<Prefix4>, Error> {
        let Some(text) = &self.network.subnet else { return Ok(None) };
        let wrong = || Error::Value { key: "network.subnet", value: text.clone() };
        let prefix: Prefix4 = text.parse().map_err(|_| wrong())?;
        Subnet::at(prefix, [0; 5]).map(|_| Some(prefix)).ok_or_else(wrong)
    }

    /// Returns the engine's settings for this host.
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
        // A quarter of the processors and an eighth of the memory, within bounds that suit most work.
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
            default_kernel: name("default_kernel_name", &self.default_kernel_name, HOST_KERNEL)?,
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
            same_owner: match self.network.same_owner {
                Some(false) => SameOwner::Apart,
                None | Some(true) => SameOwner::Connected,
            },
            templates: self.templates_disk()? > Bytes(0),
            presets: Arc::default(),
            egress_ceiling: self.egress_ceiling()?,
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
    fn the_default_kernel_is_the_host_s_own() {
        assert_eq!(Config::default().settings(HOST).unwrap().default_kernel.as_str(), "host");
        let config = Config::parse("default_kernel_name = \"debian\"").unwrap();
        assert_eq!(config.settings(HOST).unwrap().default_kernel.as_str(), "debian");
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
        let network = read("[network]\nsubnet = \"10.9.0.0/16\"\nsame_owner = false\nwarm_taps = 0").unwrap();
        let settings = network.settings(HOST).unwrap();
        assert_eq!((settings.same_owner, network.warm_taps()), (SameOwner::Apart, 0));
        assert_eq!(settings.subnet.unwrap().to_string(), "10.9.0.0/16");
        let earlier = read("[network]\nsiblings = false").unwrap().settings(HOST).unwrap();
        assert_eq!(earlier.same_owner, SameOwner::Apart);
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
    fn an_error_in_a_line_that_may_have_a_password_names_the_line_only() {
        for text in ["mirror = \"https://user:secret@m\"", "no_proxy = \"http://user:secret@p\""] {
            let error = Config::parse(&format!("vmm = \"qemu\"\n{text}")).unwrap_err().to_string();
            assert!(error.contains("line 2 ") && !error.contains("secret"), "{error}");
        }
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
