//! The configuration of one boot, which the host sends to the agent over the control channel.
//!
//! The agent in the initramfs has none at first, so everything until then is the same for every sandbox with this
//! kernel.

use core::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Path of the list of modules in the initramfs: one absolute path per line, in loading order.
pub const MODULES_PATH: &str = "/banger/modules";

/// What a guest gets once in each boot, before it uses a disk or the network, and before a second process exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BootConfig {
    /// The configuration.
    pub guest: GuestConfig,
    /// Random bytes of the host. The guest's random number generator starts from them, whatever its state was.
    pub entropy: Entropy,
}

/// Random bytes. Secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Entropy(pub [[u8; 32]; 2]);

impl Entropy {
    /// Returns the bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

/// Omits the bytes.
impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy")
    }
}

/// The configuration of one boot.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestConfig {
    /// The token that a host must present: 32 hexadecimal digits.
    pub token: String,
    /// The host name.
    pub hostname: String,
    /// The guest's own names, the fully qualified name first.
    pub names: Vec<String>,
    /// The root file system, an ext4.
    pub root_device: String,
    /// The work disk.
    pub work_disk: Option<WorkDisk>,
    /// The disk with all modules of the kernel: an ext4 file system with a directory named after the kernel's
    /// release.
    #[serde(default)]
    pub module_disk: Option<String>,
    /// What runs as the first process once the disks are mounted.
    pub init: Init,
    /// The time of the host, in microseconds since the Unix epoch.
    pub unix_usec: u64,
    /// The network interface.
    pub network: Option<GuestNetwork>,
    /// The host key of an ssh server in the image, and the public keys that it accepts.
    pub ssh: Option<GuestSsh>,
    /// The time zone; the image's own when absent.
    #[serde(default)]
    pub timezone: Option<GuestTimezone>,
    /// How to run programs of the image.
    #[serde(default)]
    pub programs: Programs,
    /// Files to write into the root file system after the disks are mounted.
    #[serde(default)]
    pub files: Vec<GuestFile>,
}

/// A time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestTimezone {
    /// Its name in the time zone database, such as `Europe/Berlin`.
    pub name: String,
    /// Its rule in the POSIX format of `TZ`, if known.
    pub rule: Option<String>,
}

/// Defaults of the image for running programs; a request overrides them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Programs {
    /// Variables of the environment.
    pub env: Vec<(String, String)>,
    /// `user`, `uid`, `user:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// The working directory, if it exists; the user's home when absent.
    pub working_dir: Option<String>,
    /// The image's own program with its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments that it gets unless the request has others.
    pub cmd: Vec<String>,
}

/// A disk that the agent fills at the first boot with the image's content of its mount point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WorkDisk {
    /// The device, an ext4.
    pub device: String,
    /// Where it is mounted, an absolute path.
    pub mount_point: String,
}

/// What runs as the first process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// The image's init if it has one, else the agent.
    Auto,
    /// The agent.
    Agent,
    /// This program in the image.
    Path(String),
}

/// The hardware address of an interface in a guest that continues from a template. The agent replaces it before the
/// interface is up.
pub const TEMPLATE_MAC: [u8; 6] = [0x02, 0x67, 0, 0, 0, 0];

/// The interface of a guest. It is routed: only the gateways are on its link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestNetwork {
    /// The hardware address, by which the interface is found.
    pub mac: [u8; 6],
    /// The address.
    pub ipv4: Ipv4Addr,
    /// The IPv4 gateway.
    pub gateway4: Ipv4Addr,
    /// The address.
    pub ipv6: Ipv6Addr,
    /// The IPv6 gateway.
    pub gateway6: Ipv6Addr,
    /// The hardware address of both gateways, so that no ARP or neighbour discovery is needed.
    pub gateway_mac: [u8; 6],
    /// The name servers.
    pub name_server: Ipv4Addr,
    /// The search domain.
    pub search: String,
}

/// The ssh configuration of a guest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestSsh {
    /// The key pair of the server, in the format of OpenSSH.
    pub host_key: String,
    /// Its public half, on one line.
    pub host_key_public: String,
    /// The public keys that may log in, one per line.
    pub authorized_keys: Vec<String>,
}

/// Omits the secret half of the host key.
impl std::fmt::Debug for GuestSsh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestSsh").field("host_key", &self.host_key_public).finish_non_exhaustive()
    }
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestFile {
    /// An absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub content: String,
}

/// Omits the token.
impl std::fmt::Debug for GuestConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestConfig").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}
