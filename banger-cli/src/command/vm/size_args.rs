//! The sizes of a sandbox: options that `vm run`, `vm create` and `vm set` share.

use banger_proto::{
    bus::{option::create, proxy::Options},
    size::Bytes,
};
use clap::{Arg, Args};
use zbus::Variant;

use super::numbers::positive;
use crate::user::defaults::{Defaults, Key};

/// The sizes of a sandbox.
#[derive(Debug, Clone, Default, Args)]
pub struct SizeArgs {
    /// Virtual processors
    #[arg(long, alias = "cpus", value_name = "COUNT", value_parser = positive)]
    vcpu: Option<u32>,
    /// Memory, such as 512MiB or 4GiB; a number without a unit is in MiB
    #[arg(short, long, value_name = "SIZE", value_parser = size)]
    memory: Option<Bytes>,
    /// Size of the system disk (/), such as 20GiB; a number without a unit is in MiB
    #[arg(long, visible_alias = "disk", value_name = "SIZE", value_parser = size)]
    root_size: Option<Bytes>,
    /// Size of the work disk (/root), such as 8GiB; a number without a unit is in MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    disk_size: Option<Bytes>,
}

/// The ids of these options, and where their defaults for a new sandbox come from.
const DEFAULTS: [(&str, &str); 4] = [
    ("vcpu", "the service's"),
    ("memory", "the service's"),
    ("root_size", "the image's"),
    ("disk_size", "the service's"),
];

impl SizeArgs {
    /// The ids of the options.
    pub const IDS: [&str; 4] = [DEFAULTS[0].0, DEFAULTS[1].0, DEFAULTS[2].0, DEFAULTS[3].0];

    /// Returns the same sizes, with the user's defaults for those that were not given.
    pub fn with(&self, defaults: &Defaults) -> Self {
        Self {
            vcpu: self.vcpu.or_else(|| defaults.count(Key::Vcpus)),
            memory: self.memory.or_else(|| defaults.size(Key::Memory)),
            root_size: self.root_size.or_else(|| defaults.size(Key::RootSize)),
            disk_size: self.disk_size.or_else(|| defaults.size(Key::DiskSize)),
        }
    }

    /// Creates sizes as if they were given.
    pub fn new(vcpu: Option<u32>, memory: Option<Bytes>, root: Option<Bytes>, disk: Option<Bytes>) -> Self {
        Self { vcpu, memory, root_size: root, disk_size: disk }
    }

    /// Returns these sizes, completed with others.
    pub fn or(&self, others: &Self) -> Self {
        Self {
            vcpu: self.vcpu.or(others.vcpu),
            memory: self.memory.or(others.memory),
            root_size: self.root_size.or(others.root_size),
            disk_size: self.disk_size.or(others.disk_size),
        }
    }

    /// Returns the sizes that were given, as options of `CreateVM` and `Configure`.
    pub fn options(&self) -> Options<'static> {
        let mut options = Options::new();
        if let Some(count) = self.vcpu {
            options.insert(create::VCPUS, Variant::from(count));
        }
        let sizes = [
            (create::MEMORY, self.memory),
            (create::ROOT_SIZE, self.root_size),
            (create::DISK_SIZE, self.disk_size),
        ];
        for (key, size) in sizes {
            if let Some(Bytes(size)) = size {
                options.insert(key, Variant::from(size));
            }
        }
        options
    }
}

/// Adds the default for a new sandbox to the help of one of these options.
pub fn with_default(arg: Arg) -> Arg {
    let default = DEFAULTS.iter().find(|(id, _)| *id == arg.get_id().as_str());
    match (default, arg.get_help()) {
        (Some((_, default)), Some(help)) => {
            let help = format!("{help} [default: {default}]");
            arg.help(help)
        }
        _ => arg,
    }
}

/// Parses a size greater than zero.
pub fn size(text: &str) -> Result<Bytes, String> {
    match text.parse::<Bytes>() {
        Ok(Bytes(0)) => Err("it must be more than 0".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}
