//! The configuration of an image: how to run its programs, and the digests of its decompressed layers.

use std::collections::BTreeMap;

use banger_domain::digest::Digest;
use banger_proto::count::counted;
use serde::{Deserialize, Serialize};

use super::{
    LayerFacts, Unusable,
    manifest::{MAX_CONFIG, Manifest},
    platform::{Platform, Stated},
    printable,
};

/// The largest configuration that is kept, counting all texts. Each sandbox of the image gets it.
const MAX_KEPT: usize = 128 << 10;

/// How to run the programs of an image. The texts come from the image: they are never used to run anything on the
/// host, and have no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ImageConfig {
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; root when empty.
    pub user: String,
    /// The working directory, absolute; `/` when empty.
    pub working_dir: String,
    /// The program to run, with its first arguments.
    pub entrypoint: Vec<String>,
    /// The default arguments; the program itself if there is no entry point.
    pub cmd: Vec<String>,
    /// The signal that asks the program to exit, such as `SIGQUIT`; SIGTERM when empty.
    pub stop_signal: String,
    /// Ports that it listens on, such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Labels of its author.
    pub labels: BTreeMap<String, String>,
}

/// A change of a configuration. Absent values stay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigChange {
    /// New variables, instead of all others.
    pub env: Option<Vec<String>>,
    /// The new user.
    pub user: Option<String>,
    /// The new working directory.
    pub working_dir: Option<String>,
    /// The new entry point.
    pub entrypoint: Option<Vec<String>>,
    /// The new default arguments.
    pub cmd: Option<Vec<String>>,
    /// The new signal.
    pub stop_signal: Option<String>,
    /// New ports, instead of all others.
    pub exposed_ports: Option<Vec<String>>,
    /// Labels to add.
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// Returns the configuration with this change, if it is one that an image may have.
    pub fn changed(self, change: ConfigChange) -> Result<Self, Unusable> {
        let mut labels = self.labels;
        labels.extend(change.labels);
        let config = Self {
            env: change.env.unwrap_or(self.env),
            user: change.user.unwrap_or(self.user),
            working_dir: change.working_dir.unwrap_or(self.working_dir),
            entrypoint: change.entrypoint.unwrap_or(self.entrypoint),
            cmd: change.cmd.unwrap_or(self.cmd),
            stop_signal: change.stop_signal.unwrap_or(self.stop_signal),
            exposed_ports: change.exposed_ports.unwrap_or(self.exposed_ports),
            labels,
        };
        if !config.env.iter().all(|pair| is_variable(pair)) {
            return Err(Unusable::new("its configuration sets a variable without a name or a value"));
        }
        if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
            return Err(Unusable::new("its working directory is not absolute"));
        }
        check(&config)?;
        Ok(config)
    }
}

/// What a configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The layers of the manifest with their digests, the lowest first.
    pub layers: Vec<LayerFacts>,
    /// How to run the programs of the image.
    pub config: ImageConfig,
    /// What was assumed or left out, as sentences without a full stop.
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(flatten)]
    stated: RawStated,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawStated {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

impl RawStated {
    fn stated(self) -> Stated {
        Stated {
            os: self.os.unwrap_or_default(),
            architecture: self.architecture.unwrap_or_default(),
            variant: self.variant.unwrap_or_default(),
        }
    }
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<String>,
}

/// A null value counts as absent.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// A command. Docker takes a single text for a list of one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl Words {
    fn list(self) -> Vec<String> {
        match self {
            Self::Many(list) => list,
            Self::One(word) => vec![word],
        }
    }
}

/// Returns the configuration of an image of this one layer, as a document. It has no time and no author, so that the
/// same image gives the same bytes.
pub fn write(config: &ImageConfig, architecture: &str, layer: Digest) -> Vec<u8> {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let list = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    let mut fields = serde_json::Map::new();
    let mut set = |key: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            fields.insert(key.to_owned(), value);
        }
    };
    set("Env", list(&config.env).map(Into::into));
    set("User", text(&config.user).map(Into::into));
    set("WorkingDir", text(&config.working_dir).map(Into::into));
    set("Entrypoint", list(&config.entrypoint).map(Into::into));
    set("Cmd", list(&config.cmd).map(Into::into));
    set("StopSignal", text(&config.stop_signal).map(Into::into));
    let ports = config.exposed_ports.iter().map(|port| (port.clone(), serde_json::json!({})));
    set(
        "ExposedPorts",
        (!config.exposed_ports.is_empty()).then(|| ports.collect::<serde_json::Map<_, _>>().into()),
    );
    let labels = config.labels.iter().map(|(key, value)| (key.clone(), value.clone().into()));
    set("Labels", (!config.labels.is_empty()).then(|| labels.collect::<serde_json::Map<_, _>>().into()));
    let image = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": fields,
        "rootfs": { "type": "layers", "diff_ids": [layer.to_string()] },
    });
    image.to_string().into_bytes()
}

/// Returns the platform that a configuration states.
pub fn stated(bytes: &[u8]) -> Result<Stated, Unusable> {
    let raw: RawStated = from_json(bytes)?;
    Ok(raw.stated())
}

fn from_json<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, Unusable> {
    if bytes.len() as u64 > MAX_CONFIG.0 {
        return Err(Unusable::new(format!("the configuration is larger than {MAX_CONFIG}")));
    }
    serde_json::from_slice(bytes).map_err(|error| Unusable::json("the configuration", &error))
}

/// Parses the configuration of an image, and combines its layers with those of the manifest.
pub fn parse(bytes: &[u8], manifest: &Manifest, platform: &Platform) -> Result<Parsed, Unusable> {
    let raw: RawImage = from_json(bytes)?;
    let stated = raw.stated.stated();
    if platform.fit(&stated).is_none() {
        return Err(Unusable::is_for(&stated, platform));
    }
    let mut notes = Vec::new();
    if stated.is_incomplete() {
        notes.push(format!("the image does not say for which platform it is; it is taken for {platform}"));
    }
    if raw.rootfs.kind != "layers" {
        return Err(Unusable::new("its file system does not consist of layers"));
    }
    if raw.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(Unusable::new(format!(
            "its manifest has {}, but its configuration has {}",
            counted(manifest.layers.len(), "layer"),
            raw.rootfs.diff_ids.len()
        )));
    }
    let layers = manifest.layers.iter().zip(&raw.rootfs.diff_ids).map(|(&blob, diff_id)| {
        let diff_id: Digest = diff_id
            .parse()
            .map_err(|_| Unusable::new("a layer in its configuration has no sha256 digest"))?;
        Ok(LayerFacts { blob, diff_id })
    });
    let layers = layers.collect::<Result<_, Unusable>>()?;
    Ok(Parsed { layers, config: keep(raw.config.unwrap_or_default(), &mut notes)?, notes })
}

/// Keeps what an image says about its programs. What no program can use is left out, or read as Docker reads it, with a
/// note.
fn keep(raw: RawConfig, notes: &mut Vec<String>) -> Result<ImageConfig, Unusable> {
    let (env, others): (Vec<String>, Vec<String>) =
        raw.env.unwrap_or_default().into_iter().partition(|pair| is_variable(pair));
    if let Some(first) = others.first() {
        let first = printable(first);
        notes.push(format!(
            "the image sets \"{first}\" in its environment without a value, which is left out"
        ));
    }
    let labels = raw.labels.unwrap_or_default().into_iter();
    let mut config = ImageConfig {
        env,
        user: raw.user.unwrap_or_default(),
        working_dir: raw.working_dir.unwrap_or_default(),
        entrypoint: raw.entrypoint.map(Words::list).unwrap_or_default(),
        cmd: raw.cmd.map(Words::list).unwrap_or_default(),
        stop_signal: raw.stop_signal.unwrap_or_default(),
        exposed_ports: raw.exposed_ports.unwrap_or_default().into_keys().collect(),
        labels: labels.map(|(key, value)| (key, value.unwrap_or_default())).collect(),
    };
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        config.working_dir = format!("/{}", config.working_dir);
        notes.push(format!(
            "the working directory of the image is not absolute; it is taken as {}",
            printable(&config.working_dir)
        ));
    }
    if size(&config) > MAX_KEPT && !config.labels.is_empty() {
        config.labels.clear();
        notes.push(format!(
            "the configuration of the image has more than {} KiB, so its labels are left out",
            MAX_KEPT >> 10
        ));
    }
    check(&config)?;
    Ok(config)
}

/// Returns whether a text is `NAME=VALUE`.
fn is_variable(pair: &str) -> bool {
    pair.find('=').is_some_and(|at| at > 0)
}

/// Returns all texts of a configuration.
fn texts(config: &ImageConfig) -> impl Iterator<Item = &String> {
    let single = [&config.user, &config.working_dir, &config.stop_signal];
    let all = [&config.env, &config.entrypoint, &config.cmd, &config.exposed_ports];
    let pairs = config.labels.iter().flat_map(|(key, value)| [key, value]);
    all.into_iter().flatten().chain(single).chain(pairs)
}

fn size(config: &ImageConfig) -> usize {
    texts(config).map(|text| text.len() + 1).sum()
}

fn check(config: &ImageConfig) -> Result<(), Unusable> {
    if texts(config).any(|text| text.contains('\0')) {
        return Err(Unusable::new("its configuration has a string with a NUL byte"));
    }
    if size(config) > MAX_KEPT {
        let most = MAX_KEPT >> 10;
        return Err(Unusable::new(format!("its configuration has more than {most} KiB of strings")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::size::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::Descriptor;

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(layers: usize) -> Manifest {
        let blob = Descriptor { digest: ID.parse().unwrap(), size: Bytes(7) };
        Manifest { config: blob, layers: vec![blob; layers], has_foreign_layers: false }
    }

    fn image(config: Value) -> Value {
        let rootfs = json!({ "type": "layers", "diff_ids": [ID, ID] });
        json!({ "architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs, "history": [{}] })
    }

    /// Returns the configuration, without notes.
    fn read(value: &Value) -> Result<ImageConfig, String> {
        let parsed = parsed(value)?;
        assert_eq!((parsed.layers.len(), parsed.notes), (2, Vec::<String>::new()));
        Ok(parsed.config)
    }

    fn parsed(value: &Value) -> Result<Parsed, String> {
        let bytes = serde_json::to_vec(value).unwrap();
        parse(&bytes, &manifest(2), &Platform::of_host("x86_64")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_change_replaces_what_it_names() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let old = ImageConfig {
            env: list(&["A=1"]),
            cmd: list(&["sh"]),
            labels: [pair("a", "1"), pair("b", "2")].into(),
            ..ImageConfig::default()
        };
        assert_eq!(old.clone().changed(ConfigChange::default()).unwrap(), old);
        let change = ConfigChange {
            env: Some(list(&["B="])),
            cmd: Some(Vec::new()),
            working_dir: Some("/srv".to_owned()),
            labels: [pair("b", "3")].into(),
            ..ConfigChange::default()
        };
        let new = old.clone().changed(change).unwrap();
        assert_eq!((&new.env, new.cmd.len(), new.working_dir.as_str()), (&list(&["B="]), 0, "/srv"));
        assert_eq!(new.labels, [pair("a", "1"), pair("b", "3")].into());
        for change in [
            ConfigChange { env: Some(list(&["B"])), ..ConfigChange::default() },
            ConfigChange { env: Some(list(&["=B"])), ..ConfigChange::default() },
            ConfigChange { working_dir: Some("srv".to_owned()), ..ConfigChange::default() },
            ConfigChange { user: Some("a\0b".to_owned()), ..ConfigChange::default() },
            ConfigChange { cmd: Some(vec!["x".repeat(MAX_KEPT)]), ..ConfigChange::default() },
        ] {
            assert!(old.clone().changed(change.clone()).is_err(), "{change:?}");
        }
    }

    #[test]
    fn a_configuration_is_kept() {
        let config = read(&image(json!({
            "Env": ["PATH=/bin", "EMPTY="], "User": "www:www", "WorkingDir": "/srv", "Entrypoint": ["/init"],
            "Cmd": null, "StopSignal": "SIGQUIT", "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
            "Labels": { "a": "b" }, "Volumes": { "/data": {} }, "ArgsEscaped": true,
        })))
        .unwrap();
        assert_eq!(config.env, ["PATH=/bin", "EMPTY="]);
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("www:www", "/srv"));
        assert_eq!(
            (config.entrypoint.as_slice(), config.cmd.as_slice()),
            (&["/init".to_owned()][..], &[][..])
        );
        assert_eq!(config.exposed_ports, ["53/udp", "80/tcp"]);
        assert_eq!(config.stop_signal, "SIGQUIT");
        let kept = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&kept).unwrap(), config);
        assert_eq!(read(&image(json!(null))).unwrap(), ImageConfig::default());
    }

    #[test]
    fn an_unsupported_configuration_is_refused_with_the_reason() {
        let check = |value: Value, expect: &str| {
            let error = read(&value).unwrap_err();
            assert!(error.contains(expect), "{error:?} for {expect:?}");
        };
        check(image(json!({ "Env": ["A\0=b"] })), "NUL");
        check(image(json!({ "Env": "PATH=/bin" })), "malformed");
        check(
            image(json!({ "Env": [format!("A={}", "x".repeat(MAX_KEPT))], "Labels": {"a": "b"} })),
            "more than 128 KiB",
        );
        let mut other = image(json!({}));
        other["architecture"] = json!("arm64");
        check(other.clone(), "for linux/arm64, not for linux/amd64");
        other["variant"] = json!("v8");
        check(other, "for linux/arm64/v8, not for linux/amd64");
        let mut newer = image(json!({}));
        newer["variant"] = json!("v3");
        check(newer, "for linux/amd64/v3, not for linux/amd64");
        let mut fewer = image(json!({}));
        fewer["rootfs"]["diff_ids"] = json!([ID]);
        check(fewer, "its manifest has 2 layers, but its configuration has 1");
        let mut unnamed = image(json!({}));
        unnamed["rootfs"]["diff_ids"] = json!([ID, "sha256:00"]);
        check(unnamed, "sha256");
        let mut disk = image(json!({}));
        disk["rootfs"]["type"] = json!("disk");
        check(disk, "does not consist of layers");
    }

    proptest! {
        #[test]
        fn no_change_of_a_configuration_makes_it_panic(at: usize, with: u8, drop: bool) {
            let mut bytes = serde_json::to_vec(&image(json!({ "Env": ["A=b"], "Cmd": ["sh"] }))).unwrap();
            let at = at % bytes.len();
            if drop { bytes.truncate(at) } else { bytes[at] = with }
            let _ = parse(&bytes, &manifest(2), &Platform::of_host("x86_64"));
        }
    }
}
