//! The sizes that a devcontainer.json requires of a host.

use banger_proto::size::Bytes;
use serde_json::{Map, Value};

/// Sizes that the service gives a sandbox by default, at least. Only more than these is asked for.
const DEFAULT_CPUS: u32 = 2;
const DEFAULT_MEMORY: Bytes = Bytes::gib(2);
const DEFAULT_STORAGE: Bytes = Bytes::gib(8);

/// Minimum sizes of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requirements {
    /// Processors.
    pub cpus: Option<u32>,
    /// Memory.
    pub memory: Option<Bytes>,
    /// Disk space where the repository is.
    pub storage: Option<Bytes>,
}

impl Requirements {
    /// Reads `hostRequirements`. The second value lists what cannot be used, with the reason.
    pub fn read(fields: &Map<String, Value>) -> (Self, Vec<(String, String)>) {
        let (mut sizes, mut ignored) = (Self::default(), Vec::new());
        for (name, value) in fields {
            let done = match name.as_str() {
                "cpus" => cpus(value).map(|cpus| sizes.cpus = cpus.filter(|cpus| *cpus > DEFAULT_CPUS)),
                "memory" => size(value).map(|size| sizes.memory = Some(size).filter(|s| *s > DEFAULT_MEMORY)),
                "storage" => {
                    size(value).map(|size| sizes.storage = Some(size).filter(|s| *s > DEFAULT_STORAGE))
                }
                "gpu" if matches!(value, Value::Bool(false)) || *value == "optional" => Ok(()),
                "gpu" => Err("a sandbox has no GPU".to_owned()),
                _ => Err(String::new()),
            };
            if let Err(why) = done {
                ignored.push((format!("hostRequirements.{name}"), why));
            }
        }
        (sizes, ignored)
    }
}

fn cpus(value: &Value) -> Result<Option<u32>, String> {
    let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
    count.map(Some).ok_or_else(|| "it is not a number of processors".to_owned())
}

/// Reads a size: a number of bytes, or a number with a unit such as `8gb`.
fn size(value: &Value) -> Result<Bytes, String> {
    let size = match value {
        Value::Number(number) => number.as_u64().map(Bytes),
        Value::String(text) => text.parse().map(Bytes).ok().or_else(|| text.parse::<Bytes>().ok()),
        _ => None,
    };
    size.ok_or_else(|| "it is not a size".to_owned())
}
