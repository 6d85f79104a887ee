//! What the agent is told at boot, as `/banger/guest.json` of the initramfs.

use core::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Where the configuration stands in the initramfs.
pub const PATH: &str = "/banger/guest.json";
/// Where the list of modules stands in the initramfs: an absolute path a line, in the order of loading.
pub const MODULES_PATH: &str = "/banger/modules";

/// The configuration of one boot.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestConfig {
    /// What a host must show to be served: 32 hexadecimal digits.
    pub token: String,
    /// The host name.
    pub hostname: String,
    /// The names under which the machine knows itself, the full one first.
    pub names: Vec<String>,
    /// The root file system, an ext4.
    pub root_device: String,
    /// The work disk.
    pub work_disk: Option<WorkDisk>,
    /// The disk with all modules of the kernel: an ext4 whose directory of the kernel's release has them.
    #[serde(default)]
    pub module_disk: Option<String>,
    /// What runs as the first process once the disks are mounted.
    pub init: Init,
    /// The time, in microseconds since the Unix epoch, for a guest without a clock.
    pub unix_usec: u64,
    /// The network interface.
    pub network: Option<GuestNetwork>,
    /// What an ssh server of the image is to present, and whom it is to let in.
    pub ssh: Option<GuestSsh>,
    /// The time zone; the image's own when absent.
    #[serde(default)]
    pub timezone: Option<GuestTimezone>,
    /// How the image wants its programs to be run.
    #[serde(default)]
    pub programs: Programs,
    /// Files that are written into the root file system, after the disks are mounted.
    #[serde(default)]
    pub files: Vec<GuestFile>,
}

/// A time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestTimezone {
    /// Its name in the time zone database, such as `Europe/Berlin`.
    pub name: String,
    /// What holds in it from now on, in the form of POSIX for `TZ`, where that is known.
    pub rule: Option<String>,
}

/// How an image wants its programs to be run, where nobody says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Programs {
    /// Variables of the environment.
    pub env: Vec<(String, String)>,
    /// `user`, `uid`, `user:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// Where they run, if it is there; the user's home when absent.
    pub working_dir: Option<String>,
    /// The image's own program with its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments that it gets when nobody gives it any.
    pub cmd: Vec<String>,
}

/// A disk that the agent fills at the first boot with what the image has at its mount point.
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
    /// The image's init where it has one, else the agent.
    Auto,
    /// The agent.
    Agent,
    /// This program of the image.
    Path(String),
}

/// The interface of a guest, which is routed: nothing but the gateways is on its link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestNetwork {
    /// The hardware address, by which the interface is found.
    pub mac: [u8; 6],
    /// The address.
    pub ipv4: Ipv4Addr,
    /// Where everything goes.
    pub gateway4: Ipv4Addr,
    /// The address.
    pub ipv6: Ipv6Addr,
    /// Where everything goes.
    pub gateway6: Ipv6Addr,
    /// The hardware address of both gateways, so that nobody has to ask for it.
    pub gateway_mac: [u8; 6],
    /// Who is asked for names.
    pub name_server: Ipv4Addr,
    /// The domain in which short names are looked for.
    pub search: String,
}

/// What concerns ssh.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestSsh {
    /// The key pair of the server, in the format of OpenSSH.
    pub host_key: String,
    /// Its public half, on one line.
    pub host_key_public: String,
    /// The public keys that are let in, a line each.
    pub authorized_keys: Vec<String>,
}

/// The secret half of the host key is never printed.
impl std::fmt::Debug for GuestSsh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestSsh").field("host_key", &self.host_key_public).finish_non_exhaustive()
    }
}

/// A file to be written.
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

/// The token is never printed.
impl std::fmt::Debug for GuestConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestConfig").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}
