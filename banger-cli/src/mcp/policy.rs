//! What an agent may do, as the options of `banger mcp` say. The service enforces the rights of the user; this narrows
//! them for one server.

use std::{str::FromStr, time::Duration};

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use serde_json::Value;

use super::{failure::not_allowed, host_dir::HostDir};
use crate::{
    client::{bus::Bus, object::Object},
    error::{Error, Result},
};

/// What an agent may do.
#[derive(Debug)]
pub struct Policy {
    /// How many sandboxes may exist at once.
    pub max: u32,
    /// The label that sandboxes need to be seen.
    pub label: Option<LabelRule>,
    /// Whether sandboxes may have internet access.
    pub network: bool,
    /// The images that sandboxes may be made of; all if empty.
    pub images: Vec<String>,
    /// The directory of the host for copies; none without access to files of the host.
    pub host_dir: Option<HostDir>,
    /// How long a command may run unless the call says otherwise.
    pub time_limit: Duration,
    /// How many bytes of each stream of a command are returned unless the call says otherwise.
    pub output_limit: usize,
}

/// A label that a sandbox must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRule {
    key: String,
    /// Any value if absent.
    value: Option<String>,
}

impl FromStr for LabelRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        match key.is_empty() {
            true => Err("a label needs a key".to_owned()),
            false => Ok(Self { key: key.to_owned(), value }),
        }
    }
}

impl LabelRule {
    /// Returns whether these labels include it.
    fn fits(&self, labels: &Value) -> bool {
        let found = labels.get(&self.key).and_then(Value::as_str);
        found.is_some_and(|found| self.value.as_deref().is_none_or(|value| value == found))
    }
}

impl std::fmt::Display for LabelRule {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(to, "{}={value}", self.key),
            None => to.write_str(&self.key),
        }
    }
}

impl Policy {
    /// Returns the sandboxes that the agent may see.
    pub async fn visible(&self, bus: &Bus) -> Result<Vec<Object>> {
        let mut sandboxes = bus.objects(VM_INTERFACE).await?;
        sandboxes.retain(|sandbox| self.shows(sandbox));
        Ok(sandboxes)
    }

    /// Returns whether the agent may see this sandbox.
    pub fn shows(&self, sandbox: &Object) -> bool {
        self.label.as_ref().is_none_or(|label| label.fits(&sandbox.json()["labels"]))
    }

    /// Returns the error for a sandbox that the agent may not see, which is the same as for one that does not exist.
    pub fn hidden(&self, reference: &str) -> Error {
        let label = self.label.as_ref().map(|label| format!(" with the label {label}")).unwrap_or_default();
        let message = format!("there is no sandbox {reference}{label}");
        Error::Service { name: ErrorName::NoSuchVm, message }
            .with_hint("the tool `list` shows the sandboxes.")
    }

    /// Refuses a sandbox with internet access if there may be none.
    pub fn check_network(&self, network: bool) -> Result<()> {
        match self.network || !network {
            true => Ok(()),
            false => Err(not_allowed("this server gives sandboxes no internet access")
                .with_hint("leave out `network`; the user can start the server without `--no-network`.")),
        }
    }

    /// Returns the image for a new sandbox: the one that was asked for if it is allowed, and the first allowed one by
    /// default.
    pub fn image(&self, wanted: Option<String>) -> Result<Option<String>> {
        match wanted {
            Some(image) if !self.images.is_empty() && !self.images.contains(&image) => {
                Err(not_allowed(format!("the image {image} is not allowed"))
                    .with_hint(format!("these are: {}.", self.images.join(", "))))
            }
            Some(image) => Ok(Some(image)),
            None => Ok(self.images.first().cloned()),
        }
    }

    /// Returns the labels of a new sandbox: those that were asked for, and the one that it needs to be seen.
    pub fn labels(
        &self,
        wanted: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<(String, String)>> {
        let mut labels: Vec<_> = wanted.into_iter().collect();
        let Some(rule) = &self.label else { return Ok(labels) };
        match (labels.iter().find(|(key, _)| *key == rule.key), &rule.value) {
            (Some((_, given)), Some(value)) if given != value => {
                return Err(not_allowed(format!("a sandbox of this server has the label {rule}")));
            }
            (Some(_), _) => {}
            (None, value) => labels.push((rule.key.clone(), value.clone().unwrap_or_default())),
        }
        Ok(labels)
    }

    /// Returns the directory for copies.
    pub fn host_dir(&self) -> Result<&HostDir> {
        self.host_dir.as_ref().ok_or_else(|| {
            not_allowed("this server has no access to files of the host").with_hint(
                "the user can start it with `banger mcp --host-dir DIR`; `read_file` and `write_file` transfer content.",
            )
        })
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    /// Returns a policy that allows everything.
    pub fn open() -> Policy {
        Policy {
            max: 10,
            label: None,
            network: true,
            images: Vec::new(),
            host_dir: None,
            time_limit: Duration::from_secs(1),
            output_limit: 100,
        }
    }

    #[test]
    fn a_label_has_a_key_and_perhaps_a_value() {
        let labels = json!({"agent": "a", "team": ""});
        for (rule, fits) in [
            ("agent", true),
            ("agent=a", true),
            ("agent=b", false),
            ("team=", true),
            ("team=x", false),
            ("x", false),
        ] {
            let parsed: LabelRule = rule.parse().unwrap();
            assert_eq!((parsed.fits(&labels), parsed.to_string().as_str()), (fits, rule), "{rule}");
        }
        assert!("".parse::<LabelRule>().is_err() && "=x".parse::<LabelRule>().is_err());
        assert!(!"x".parse::<LabelRule>().unwrap().fits(&Value::Null));
    }

    #[test]
    fn a_new_sandbox_has_the_label_of_the_server() {
        let labels = |rule: &str, given: &[(&str, &str)]| {
            let policy = Policy { label: Some(rule.parse().unwrap()), ..open() };
            let given = given.iter().map(|(key, value)| (key.to_string(), value.to_string()));
            policy.labels(given).ok().map(|labels| {
                labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
            })
        };
        assert_eq!(labels("agent=a", &[]).unwrap(), "agent=a");
        assert_eq!(labels("agent", &[("x", "y")]).unwrap(), "x=y agent=");
        assert_eq!(labels("agent", &[("agent", "b")]).unwrap(), "agent=b");
        assert_eq!(labels("agent=a", &[("agent", "a")]).unwrap(), "agent=a");
        assert_eq!(labels("agent=a", &[("agent", "b")]), None);
        assert_eq!(open().labels([]).unwrap(), []);
    }

    #[test]
    fn only_allowed_images_and_networks_pass() {
        let policy = Policy { images: vec!["debian".into(), "alpine:3.20".into()], network: false, ..open() };
        let image = |image: Option<&str>| policy.image(image.map(str::to_owned));
        assert_eq!(image(None).unwrap().as_deref(), Some("debian"));
        assert_eq!(image(Some("alpine:3.20")).unwrap().as_deref(), Some("alpine:3.20"));
        assert!(image(Some("alpine")).is_err());
        assert_eq!(open().image(None).unwrap(), None);
        assert!(policy.check_network(true).is_err() && policy.check_network(false).is_ok());
        assert!(open().check_network(true).is_ok());
        assert!(policy.host_dir().is_err());
    }
}
