//! The mounts of a devcontainer.json: volumes become directories of the sandbox, and nothing of the host is mounted.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::vm::workspace_args::guest_path;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A directory that lives as long as the sandbox.
    Volume(String),
    /// A file system in memory.
    Tmpfs(Tmpfs),
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Its path, which may refer to the id of the sandbox.
    pub target: String,
    /// Its mount options.
    pub options: String,
}

/// The fields of a mount.
#[derive(Debug, Default)]
struct Fields {
    kind: Option<String>,
    target: Option<String>,
    size: Option<u64>,
    mode: Option<u32>,
}

/// Reads a mount as an object or in the form of `docker run --mount`.
pub fn read(value: &Value, fill: &impl Fn(&str) -> Result<String, String>) -> Result<Mount, String> {
    let mut fields = Fields::default();
    match value {
        Value::String(text) => {
            for field in comma_separated(text) {
                let (key, value) = field.split_once('=').unwrap_or((&field, ""));
                fields.put(key, value);
            }
        }
        Value::Object(object) => {
            for (key, value) in object {
                if let Value::String(text) = value {
                    fields.put(key, text);
                }
            }
        }
        _ => return Err("it is not a mount".to_owned()),
    }
    fields.mount(fill)
}

/// Returns a short name for a mount in messages.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(object) => {
            let text = |key: &str| object.get(key).and_then(Value::as_str);
            text("target").or(text("source")).unwrap_or_default().to_owned()
        }
        other => other.to_string(),
    }
}

impl Fields {
    fn put(&mut self, key: &str, value: &str) {
        match key.trim() {
            "type" => self.kind = Some(value.to_owned()),
            "target" | "destination" | "dst" => self.target = Some(value.to_owned()),
            "tmpfs-size" => self.size = value.parse().ok(),
            "tmpfs-mode" => self.mode = u32::from_str_radix(value, 8).ok(),
            _ => {}
        }
    }

    fn mount(self, fill: &impl Fn(&str) -> Result<String, String>) -> Result<Mount, String> {
        let kind = self.kind.as_deref().unwrap_or("volume");
        if kind == "bind" {
            return Err("nothing of the host is mounted".to_owned());
        }
        let target = fill(self.target.as_deref().ok_or("it has no target")?)?;
        let target = guest_path(&target).map_err(|_| "its target is not an absolute path".to_owned())?;
        match kind {
            "volume" => Ok(Mount::Volume(target)),
            "tmpfs" => {
                let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
                options.extend(self.size.map(|size| format!("size={size}")));
                options.extend(self.mode.map(|mode| format!("mode={:o}", mode & 0o7777)));
                Ok(Mount::Tmpfs(Tmpfs { target, options: options.join(",") }))
            }
            kind => Err(format!("a sandbox has no mounts of type {kind}")),
        }
    }
}

/// Splits a text at commas outside of quotes, as Docker does (RFC 4180).
fn comma_separated(text: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for letter in text.chars() {
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            letter => fields.last_mut().into_iter().for_each(|field| field.push(letter)),
        }
    }
    fields
}
