//! Where the repository goes, and where its commands run.

use serde_json::{Map, Value};

use super::{Around, fill::Known};
use crate::command::vm::workspace_args::{DEFAULT, guest_path};

/// Path of repositories in editors, used for users who cannot access the home of root.
const WORKSPACES: &str = "/workspaces";

/// Two paths in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The repository.
    pub root: String,
    /// The directory in it in which commands run.
    pub directory: String,
}

impl Folder {
    /// Reads `workspaceFolder` and `workspaceMount`. The second value lists what cannot be used, with the reason.
    pub fn read(
        fields: &Map<String, Value>,
        around: &Around,
        known: &Known,
        is_root: bool,
    ) -> (Self, Vec<(String, String)>) {
        let mut ignored = Vec::new();
        let mut path = |key: &str, text: Result<Option<String>, String>| {
            let path = text.and_then(|text| match text.map(|text| guest_path(&text)) {
                None => Ok(None),
                Some(Ok(path)) => Ok(Some(path)),
                Some(Err(_)) => Err("it is not an absolute path".to_owned()),
            });
            path.unwrap_or_else(|why| {
                ignored.push((key.to_owned(), why));
                None
            })
        };
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        let mount = path("workspaceMount", text("workspaceMount").map(target_of).transpose());
        let folder = text("workspaceFolder").map(|text| known.fill_all(text)).transpose();
        let folder = path("workspaceFolder", folder);
        (Self::choose(around, mount, folder, is_root), ignored)
    }

    fn choose(around: &Around, mount: Option<String>, folder: Option<String>, is_root: bool) -> Self {
        let below = around.below.as_str();
        let usual = format!("{WORKSPACES}/{}", around.repository);
        if let Some(root) = &around.guest_path {
            return Self::within(root.clone(), below);
        }
        let is_in = |path: &str, root: &str| {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match (mount, folder) {
            (Some(mount), folder) => {
                let root = without(&mount, below);
                match folder {
                    Some(directory) if is_in(&directory, &root) => Self { root, directory },
                    _ => Self::within(root, below),
                }
            }
            (None, Some(directory)) if is_in(&directory, &usual) => Self { root: usual, directory },
            (None, Some(folder)) => Self::within(without(&folder, below), below),
            (None, None) if is_root => Self::within(DEFAULT.to_owned(), below),
            (None, None) => Self::within(usual, below),
        }
    }

    fn within(root: String, below: &str) -> Self {
        let directory = if below.is_empty() { root.clone() } else { format!("{root}/{below}") };
        Self { root, directory }
    }
}

/// Returns the path of a repository whose directory `below` has this path, or the path itself.
fn without(path: &str, below: &str) -> String {
    let root = path.strip_suffix(below).and_then(|root| root.strip_suffix('/'));
    root.filter(|root| !root.is_empty() && !below.is_empty()).unwrap_or(path).to_owned()
}

/// Returns where a mount puts the directory on the host. Nothing is mounted, but the files go there.
fn target_of(mount: &str) -> Result<String, String> {
    let fields: Vec<_> = mount.split(',').filter_map(|field| field.split_once('=')).collect();
    let field = |names: &[&str]| {
        fields.iter().find(|(name, _)| names.contains(name)).map(|(_, value)| value.trim_matches('"'))
    };
    match (field(&["source", "src"]), field(&["target", "destination", "dst"])) {
        (Some("${localWorkspaceFolder}"), Some(target)) => Ok(target.to_owned()),
        _ => Err("nothing of the host is mounted".to_owned()),
    }
}
