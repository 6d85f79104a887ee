//! The conditions of `--filter`.

use serde_json::Value;

use crate::ui::suggest;

/// A condition on an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// It is in this state.
    State(&'static str),
    /// The text with this key contains this one.
    Part(&'static str, String),
    /// Its name, or the reference that it was pulled by, has these parts in this order.
    Reference(Vec<String>),
    /// The flag with this key has this value.
    Flag(&'static str, bool),
    /// Among the labels at this place, it has this one, with this value if given.
    Label(&'static str, String, Option<String>),
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    State,
    Part(&'static str),
    Reference,
    Flag(&'static str),
    Label(&'static str),
}

/// The words that the conditions on one kind of object begin with.
#[derive(Debug, Clone, Copy)]
pub struct Keys(&'static [(&'static str, What)]);

/// The conditions on sandboxes.
pub const SANDBOXES: Keys = Keys(&[
    ("state", What::State),
    ("name", What::Part("name")),
    ("image", What::Part("image_name")),
    ("kernel", What::Part("kernel_name")),
    ("label", What::Label("/labels")),
]);
/// The conditions on images.
pub const IMAGES: Keys = Keys(&[
    ("reference", What::Reference),
    ("name", What::Part("name")),
    ("shared", What::Flag("shared")),
    ("label", What::Label("/config/labels")),
]);
/// The conditions on kernels.
pub const KERNELS: Keys = Keys(&[
    ("name", What::Part("name")),
    ("version", What::Part("version")),
    ("shared", What::Flag("shared")),
]);

/// The states of a sandbox (`docs/lifecycle.md`).
pub const STATES: [&str; 11] = [
    "created",
    "starting",
    "running",
    "paused",
    "suspending",
    "suspended",
    "resuming",
    "stopping",
    "stopped",
    "failed",
    "deleting",
];
/// The values of a flag.
pub const FLAGS: [&str; 2] = ["true", "false"];

impl Keys {
    /// Returns the words.
    pub fn words(self) -> Vec<&'static str> {
        self.0.iter().map(|(word, _)| *word).collect()
    }

    /// Parses `WHAT=VALUE`.
    pub fn parse(self, text: &str) -> Result<Filter, String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        // Users of docker write `status`.
        let key = if key == "status" { "state" } else { key };
        let Some((_, what)) = self.0.iter().find(|(word, _)| *word == key) else {
            return Err(unknown("key", key, &self.words()));
        };
        if value.is_empty() {
            return Err(format!("{key} needs a value: write {key}=VALUE"));
        }
        Ok(match *what {
            What::State => match STATES.iter().find(|state| **state == value) {
                Some(state) => Filter::State(state),
                None => return Err(unknown("state", value, &STATES)),
            },
            What::Part(key) => Filter::Part(key, value.to_owned()),
            What::Reference => Filter::Reference(value.split('*').map(str::to_owned).collect()),
            What::Flag(key) => match FLAGS.contains(&value) {
                true => Filter::Flag(key, value == "true"),
                false => return Err(unknown("value of shared", value, &FLAGS)),
            },
            What::Label(place) => match value.split_once('=') {
                Some((label, value)) => Filter::Label(place, label.to_owned(), Some(value.to_owned())),
                None => Filter::Label(place, value.to_owned(), None),
            },
        })
    }
}

impl Filter {
    fn fits(&self, object: &Value) -> bool {
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        match self {
            Self::State(state) => text("state") == *state,
            Self::Part(key, part) => text(key).contains(part.as_str()),
            Self::Reference(parts) => ["name", "source"].iter().any(|key| has_in_order(text(key), parts)),
            Self::Flag(key, wanted) => object[key] == *wanted,
            Self::Label(place, label, wanted) => {
                let value = object.pointer(place).and_then(|labels| labels[label].as_str());
                value.is_some_and(|value| wanted.as_deref().is_none_or(|wanted| wanted == value))
            }
        }
    }

    /// Returns whether another condition is an alternative to this one.
    fn is_alternative(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::State(_), Self::State(_)) | (Self::Reference(_), Self::Reference(_)) => true,
            (Self::Part(one, _), Self::Part(other, _)) | (Self::Flag(one, _), Self::Flag(other, _)) => {
                one == other
            }
            _ => false,
        }
    }
}

/// Returns whether an object fits the conditions, as in docker: any of those about the same thing, and all labels.
pub fn fit_all(filters: &[Filter], object: &Value) -> bool {
    filters.iter().all(|filter| {
        filter.fits(object) || filters.iter().any(|other| filter.is_alternative(other) && other.fits(object))
    })
}

/// Returns whether a text has parts, one after the other.
fn has_in_order(text: &str, parts: &[String]) -> bool {
    let mut rest = Some(text);
    for part in parts {
        rest = rest.and_then(|rest| rest.split_once(part.as_str())).map(|(_, rest)| rest);
    }
    rest.is_some()
}

/// Returns the message about an unknown word.
fn unknown(what: &str, word: &str, known: &[&str]) -> String {
    let suggestion = suggest::closest(word, known.iter().copied());
    let suggestion = suggestion.map(|word| format!("did you mean {word}? ")).unwrap_or_default();
    format!("there is no {what} {word:?}; {suggestion}choose one of {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::ui::schema;

    #[test]
    fn filters_are_read_as_in_docker() {
        let sandbox = json!({
            "state": "running", "name": "web-1", "image_name": "debian-bookworm", "kernel_name": "host",
            "labels": {"team": "web"},
        });
        let fit = |texts: &[&str]| {
            let filters: Vec<Filter> = texts.iter().map(|text| SANDBOXES.parse(text).unwrap()).collect();
            fit_all(&filters, &sandbox)
        };
        for (texts, expect) in [
            (&[][..], true),
            (&["state=running"], true),
            (&["status=running"], true),
            (&["state=stopped"], false),
            (&["name=web"], true),
            (&["name=b-1"], true),
            (&["name=Web"], false),
            (&["image=bookworm", "kernel=host"], true),
            (&["image=alpine", "name=web"], false),
            (&["state=stopped", "state=running"], true),
            (&["name=db", "name=web"], true),
            (&["name=db", "state=running"], false),
            (&["label=team"], true),
            (&["label=team=web"], true),
            (&["label=team=db"], false),
            (&["label=team", "label=other"], false),
        ] {
            assert_eq!(fit(texts), expect, "{texts:?}");
        }
    }

    #[test]
    fn unknown_keys_and_states_are_refused_with_a_suggestion() {
        for (text, part) in [
            ("colour=red", "there is no key \"colour\"; choose one of state, name"),
            ("nmae=web", "did you mean name?"),
            ("state=runing", "there is no state \"runing\"; did you mean running? choose one of created"),
            ("state=exited", "there is no state \"exited\"; choose one of created"),
            ("running", "there is no key \"running\""),
            ("state=", "state needs a value: write state=VALUE"),
            ("label", "label needs a value: write label=VALUE"),
        ] {
            let message = SANDBOXES.parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn images_and_kernels_are_filtered_alike() {
        let image = json!({
            "name": "alpine-3", "source": "docker.io/library/alpine:3", "shared": true,
            "config": {"labels": {"team": "web"}},
        });
        let kernel = json!({ "name": "host", "version": "6.1.0-18-amd64", "shared": false });
        for (keys, object, texts, expect) in [
            (IMAGES, &image, &["reference=alpine"][..], true),
            (IMAGES, &image, &["reference=docker.io/*:3"], true),
            (IMAGES, &image, &["reference=*/alpine:*"], true),
            (IMAGES, &image, &["reference=:3*alpine"], false),
            (IMAGES, &image, &["reference=debian", "reference=alpine"], true),
            (IMAGES, &image, &["name=library"], false),
            (IMAGES, &image, &["shared=true", "label=team=web"], true),
            (IMAGES, &image, &["shared=false"], false),
            (IMAGES, &image, &["label=team=db"], false),
            (KERNELS, &kernel, &["version=6.1", "shared=false"], true),
            (KERNELS, &kernel, &["version=5."], false),
            // An object without labels has none.
            (IMAGES, &kernel, &["label=team"], false),
        ] {
            let filters: Vec<Filter> = texts.iter().map(|text| keys.parse(text).unwrap()).collect();
            assert_eq!(fit_all(&filters, object), expect, "{texts:?}");
        }
        for (keys, text, part) in [
            (
                IMAGES,
                "dangling=true",
                "there is no key \"dangling\"; choose one of reference, name, shared, label",
            ),
            (IMAGES, "state=running", "there is no key \"state\""),
            (IMAGES, "shared=yes", "there is no value of shared \"yes\"; choose one of true, false"),
            (KERNELS, "label=a", "choose one of name, version, shared"),
            (KERNELS, "version", "version needs a value"),
        ] {
            let message = keys.parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn the_states_are_those_of_the_schema() {
        let schema = schema::of_verb("vm show").unwrap();
        assert_eq!(schema["properties"]["state"]["enum"], json!(STATES));
    }
}
