//! The configuration of an image: how to run its programs, and the digests of its decompressed layers.

use std::collections::BTreeMap;

use banger_domain::digest::Digest;
use serde::{Deserialize, Serialize};

use super::{
    LayerFacts, Unusable,
    manifest::{MAX_CONFIG, Manifest},
    platform::Platform,
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

#[derive(Deserialize)]
struct RawImage {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
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
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
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

/// Parses the configuration of an image, and combines its layers with those of the manifest.
pub fn parse(
    bytes: &[u8],
    manifest: &Manifest,
    platform: &Platform,
) -> Result<(Vec<LayerFacts>, ImageConfig), Unusable> {
    if bytes.len() as u64 > MAX_CONFIG.0 {
        return Err(Unusable::new(format!("the configuration is larger than {MAX_CONFIG}")));
    }
    let raw: RawImage =
        serde_json::from_slice(bytes).map_err(|error| Unusable::json("the configuration", &error))?;
    let (os, architecture) = (raw.os.unwrap_or_default(), raw.architecture.unwrap_or_default());
    if platform.fits(&os, &architecture, raw.variant.as_deref()).is_none() {
        let is = printable(&format!("{os}/{architecture}"));
        return Err(Unusable::new(format!("it is for {is}, not for {platform}")));
    }
    if raw.rootfs.kind != "layers" {
        return Err(Unusable::new("its file system does not consist of layers"));
    }
    if raw.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(Unusable::new(format!(
            "its manifest has {} layers, but its configuration has {}",
            manifest.layers.len(),
            raw.rootfs.diff_ids.len()
        )));
    }
    let layers = manifest.layers.iter().zip(&raw.rootfs.diff_ids).map(|(&(blob, packing), diff_id)| {
        let diff_id: Digest = diff_id
            .parse()
            .map_err(|_| Unusable::new("a layer in its configuration has no sha256 digest"))?;
        Ok(LayerFacts { blob, packing, diff_id })
    });
    Ok((layers.collect::<Result<_, Unusable>>()?, keep(raw.config.unwrap_or_default())?))
}

fn keep(raw: RawConfig) -> Result<ImageConfig, Unusable> {
    let config = ImageConfig {
        env: raw.env.unwrap_or_default(),
        user: raw.user.unwrap_or_default(),
        working_dir: raw.working_dir.unwrap_or_default(),
        entrypoint: raw.entrypoint.unwrap_or_default(),
        cmd: raw.cmd.unwrap_or_default(),
        stop_signal: raw.stop_signal.unwrap_or_default(),
        exposed_ports: raw.exposed_ports.unwrap_or_default().into_keys().collect(),
        labels: raw.labels.unwrap_or_default(),
    };
    let single = [&config.user, &config.working_dir, &config.stop_signal];
    let all = [&config.env, &config.entrypoint, &config.cmd, &config.exposed_ports];
    let pairs = || config.labels.iter().flat_map(|(key, value)| [key, value]);
    let texts = || all.iter().copied().flatten().chain(single).chain(pairs());
    if texts().any(|text| text.contains('\0')) {
        return Err(Unusable::new("its configuration has a string with a NUL byte"));
    }
    if texts().map(|text| text.len() + 1).sum::<usize>() > MAX_KEPT {
        return Err(Unusable::new(format!(
            "its configuration has more than {} KiB of strings",
            MAX_KEPT >> 10
        )));
    }
    if config.env.iter().any(|pair| pair.find('=').is_none_or(|at| at == 0)) {
        return Err(Unusable::new("a variable of its environment is not of the form NAME=VALUE"));
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(Unusable::new("its working directory is not absolute"));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::size::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::{Descriptor, Packing};

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(layers: usize) -> Manifest {
        let blob = Descriptor { digest: ID.parse().unwrap(), size: Bytes(7) };
        Manifest { config: blob, layers: vec![(blob, Packing::Gzip); layers] }
    }

    fn image(config: Value) -> Value {
        let rootfs = json!({ "type": "layers", "diff_ids": [ID, ID] });
        json!({ "architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs, "history": [{}] })
    }

    fn read(value: &Value) -> Result<ImageConfig, String> {
        let bytes = serde_json::to_vec(value).unwrap();
        let read = parse(&bytes, &manifest(2), &Platform::of_host("x86_64"));
        read.map(|(layers, config)| {
            assert_eq!(layers.len(), 2);
            config
        })
        .map_err(|e| e.to_string())
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
        check(image(json!({ "Env": ["=b"] })), "NAME=VALUE");
        check(image(json!({ "Env": ["b"] })), "NAME=VALUE");
        check(image(json!({ "Env": "PATH=/bin" })), "malformed");
        check(image(json!({ "WorkingDir": "srv" })), "not absolute");
        check(image(json!({ "Labels": { "a": "x".repeat(MAX_KEPT) } })), "more than 128 KiB");
        let mut other = image(json!({}));
        other["architecture"] = json!("arm64");
        check(other, "for linux/arm64, not for linux/amd64");
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
