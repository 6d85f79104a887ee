//! What an agent may do, as the options of `banger mcp` say. The service enforces the rights of the user; this narrows
//! them for one server.

use std::{str::FromStr, time::Duration};

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use serde_json::Value;

use super::{
    egress_bound::EgressBound,
    failure::{invalid, not_allowed},
    host_dir::HostDir,
};
use crate::{
    client::{bus::Bus, object::Object},
    error::{Error, Result},
    user::settings::Settings,
};

/// What an agent may do.
#[derive(Debug)]
pub struct Policy {
    /// How many sandboxes may exist at once.
    pub max: u32,
    /// The label that sandboxes need to be seen.
    pub label: Option<LabelRule>,
    /// The most that sandboxes may reach beyond the host; for new ones, that is the policy in the user's settings if absent.
    pub egress: Option<EgressBound>,
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

    /// Refuses a sandbox that reaches more than sandboxes of this server may.
    pub fn check_reach(&self, sandbox: &Object) -> Result<()> {
        let Some(bound) = &self.egress else { return Ok(()) };
        let policy = sandbox.strings("Egress");
        match bound.first_beyond(&policy) {
            None => Ok(()),
            Some(entry) => Err(refused(bound, entry)),
        }
    }

    /// Returns what a new sandbox may reach: what was asked for if that is within the bound, and otherwise what the user's
    /// settings say, as far as it is within the bound. `network` alone asks for all that the bound allows.
    pub fn egress(
        &self,
        network: Option<bool>,
        wanted: Option<Vec<String>>,
        settings: &Settings,
    ) -> Result<Vec<String>> {
        let usual = settings.egress();
        let bound = match &self.egress {
            Some(bound) => bound.clone(),
            // A policy in the settings is not for agents to widen, and one that allows nothing is a policy.
            None => match &usual {
                None => EgressBound::Everything,
                Some(usual) => EgressBound::of(usual).map_err(|error| {
                    Error::Refused(format!("cannot use the egress policy of the user's settings: {error}"))
                })?,
            },
        };
        match (network, wanted) {
            (Some(false), Some(wanted)) if !wanted.is_empty() => {
                Err(invalid("`egress` needs `network`, which is false"))
            }
            (Some(false), _) => Ok(Vec::new()),
            (_, Some(wanted)) => {
                let wanted = EgressBound::of(&wanted).map_err(|error| invalid(error.to_string()))?.words();
                match bound.first_beyond(&wanted) {
                    None => Ok(wanted),
                    Some(entry) => Err(refused(&bound, entry)),
                }
            }
            (Some(true), None) => match bound.words() {
                words if words.is_empty() => Err(refused(&bound, "")),
                words => Ok(words),
            },
            (None, None) => Ok(bound.cut(usual.unwrap_or_default())),
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

/// Returns the error for an entry that is not within the bound.
fn refused(bound: &EgressBound, entry: &str) -> Error {
    match bound.words().as_slice() {
        [] => not_allowed("this server gives sandboxes no internet access").with_hint(
            "leave out `network` and `egress`: the options of this server or the user's settings allow none.",
        ),
        words => not_allowed(format!("this server lets no sandbox reach {entry:?}"))
            .with_hint(format!("these entries, and parts of them, are allowed: {}.", words.join(", "))),
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use zbus::{OwnedVariant, Variant};

    use super::*;
    use crate::user::defaults::{Defaults, Key};

    /// Returns a policy that allows everything.
    pub fn open() -> Policy {
        Policy {
            max: 10,
            label: None,
            egress: None,
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
    fn only_allowed_images_pass() {
        let policy = Policy { images: vec!["debian".into(), "alpine:3.20".into()], ..open() };
        let image = |image: Option<&str>| policy.image(image.map(str::to_owned));
        assert_eq!(image(None).unwrap().as_deref(), Some("debian"));
        assert_eq!(image(Some("alpine:3.20")).unwrap().as_deref(), Some("alpine:3.20"));
        assert!(image(Some("alpine")).is_err());
        assert_eq!(open().image(None).unwrap(), None);
        assert!(policy.host_dir().is_err());
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn settings(key: Key, value: &str) -> Settings {
        let values = [(key, key.parse(value).unwrap())].into();
        Settings { defaults: Defaults::of([(values, "file".to_owned())]), ..Settings::default() }
    }

    #[test]
    fn a_request_narrows_what_a_sandbox_reaches_and_never_widens_it() {
        let (none, all) = (Settings::default(), settings(Key::Nat, "true"));
        let list = settings(Key::Egress, "git,a.example");
        let check = |bound: Option<&str>, settings: &Settings, network, wanted: Option<&str>, expect| {
            let egress = bound.map(|bound| EgressBound::of(&words(bound)).unwrap());
            let policy = Policy { egress, ..open() };
            let found = policy.egress(network, wanted.map(words), settings).ok();
            assert_eq!(found, Option::map(expect, words), "{bound:?} {network:?} {wanted:?}");
        };
        // Without a bound, the settings count, and their policy is one.
        check(None, &none, None, None, Some(""));
        check(None, &none, Some(true), None, Some("all"));
        check(None, &none, None, Some("b.example"), Some("b.example"));
        check(None, &all, None, None, Some("all"));
        check(None, &all, Some(false), None, Some(""));
        check(None, &list, None, None, Some("git a.example"));
        check(None, &list, Some(true), None, Some("git a.example"));
        check(None, &list, None, Some("a.example:443"), Some("a.example:443"));
        check(None, &list, None, Some("b.example"), None);
        check(None, &list, None, Some("all"), None);
        // One that allows nothing is a policy, too, and so is one that is hidden.
        let nothing = settings(Key::Egress, "none");
        let off = settings(Key::Nat, "false");
        let source = |key: Key, value: &str| ([(key, key.parse(value).unwrap())].into(), String::new());
        let hidden = Defaults::of([source(Key::Nat, "false"), source(Key::Egress, "git")]);
        let hidden = Settings { defaults: hidden, ..Settings::default() };
        for closed in [&nothing, &hidden] {
            check(None, closed, None, None, Some(""));
            check(None, closed, Some(true), None, None);
            check(None, closed, None, Some("git"), None);
        }
        check(None, &off, None, None, Some(""));
        check(None, &off, Some(true), None, Some("all"));
        // With one, it counts, and what the settings say goes no further.
        check(Some("git"), &none, None, None, Some(""));
        check(Some("git"), &all, None, None, Some("git"));
        check(Some("git"), &list, None, None, Some("git"));
        check(Some("git b.example"), &list, Some(true), None, Some("git b.example"));
        check(Some("git b.example"), &list, None, Some("b.example"), Some("b.example"));
        check(Some("git"), &all, Some(true), Some("all"), None);
        check(Some("git"), &none, None, Some("git b.example"), None);
        check(Some("git"), &none, None, Some("none"), Some(""));
        check(Some("none"), &all, None, None, Some(""));
        check(Some("none"), &all, Some(true), None, None);
        check(Some("all"), &list, Some(true), None, Some("all"));
        check(None, &none, Some(false), Some("git"), None);
        check(None, &none, None, Some("git all"), None);
    }

    #[test]
    fn a_sandbox_that_reaches_more_is_not_used() {
        let sandbox = |policy: &str| {
            let egress = OwnedVariant::try_from(Variant::from(words(policy))).unwrap();
            Object::new([("Egress".to_owned(), egress)].into())
        };
        let check = |bound: Option<&str>, policy: &str, expect| {
            let egress = bound.map(|bound| EgressBound::of(&words(bound)).unwrap());
            let found = Policy { egress, ..open() }.check_reach(&sandbox(policy)).is_ok();
            assert_eq!(found, expect, "{bound:?} {policy}");
        };
        check(None, "all", true);
        check(Some("none"), "", true);
        check(Some("none"), "git", false);
        check(Some("git"), "git", true);
        check(Some("git"), "git a.example", false);
        check(Some("git"), "all", false);
        check(Some("all"), "all", true);
    }
}
