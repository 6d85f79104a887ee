//! Manifests, and documents that are either a manifest or an index.

use banger_domain::digest::Digest;
use serde::Deserialize;

use super::{
    Descriptor, Unusable,
    index::{INDEXES, Index, RawEntries},
    printable,
};

use banger_proto::size::Bytes;

/// The largest manifest or index, as in registries themselves.
pub const MAX_DOCUMENT: Bytes = Bytes::mib(4);
/// The largest configuration of an image.
pub const MAX_CONFIG: Bytes = Bytes::mib(4);
/// The most layers of an image, as in programs that make images.
pub const MAX_LAYERS: usize = 127;
/// The largest layer, compressed.
const MAX_LAYER: Bytes = Bytes::gib(64);
/// All layers together, compressed.
pub(crate) const MAX_IMAGE: Bytes = Bytes::gib(128);

/// Manifests of OCI and of Docker.
pub(super) const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Layers. The bytes show how a layer is compressed, not its media type ([`crate::packing`]).
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
/// Layers that a registry may not serve, and that are on servers named in the manifest. banger never follows these
/// addresses; an image in a file may have such a layer.
const ELSEWHERE: [&str; 2] =
    ["application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign."];

/// Returns the value of the Accept header: every supported type of document.
pub fn accepted() -> String {
    [MANIFESTS, INDEXES].concat().join(", ")
}

/// A document that a reference points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Manifests by platform.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// Whether a registry may not have one of the layers.
    pub has_foreign_layers: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<RawEntries>,
}

/// Other keys of a descriptor, such as `urls`, are not read and so never followed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
}

impl Document {
    /// Parses a document for which its source declared this media type, if it did.
    pub fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Self, Unusable> {
        if bytes.len() as u64 > MAX_DOCUMENT.0 {
            return Err(Unusable::new(format!("the manifest is larger than {MAX_DOCUMENT}")));
        }
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|error| Unusable::json("the manifest", &error))?;
        if raw.schema_version != 2 {
            return Err(Unusable::new(format!(
                "its manifest has version {}, and only version 2 is supported",
                raw.schema_version
            )));
        }
        let declared = declared.filter(|word| is_known(word));
        let own = raw.media_type.as_deref();
        if let (Some(declared), Some(own)) = (declared, own)
            && declared != own
        {
            return Err(Unusable::new(
                "its manifest says that it is of another media type than it was sent as",
            ));
        }
        let is_index = match (own.or(declared), raw.manifests.is_some(), raw.layers.is_some()) {
            // A document must not be both (GHSA-xmmx-7jpf-fx42).
            (_, true, true) => return Err(Unusable::new("its manifest is also an index")),
            (Some(word), _, _) if INDEXES.contains(&word) => true,
            (Some(word), _, _) if MANIFESTS.contains(&word) => false,
            (Some(word), _, _) => {
                return Err(Unusable::new(format!("its manifest has the unknown type {}", printable(word))));
            }
            (None, is_index, _) => is_index,
        };
        match is_index {
            true => Index::read(raw.manifests.unwrap_or_default()).map(Self::Index),
            false => manifest(raw).map(Self::Manifest),
        }
    }
}

fn is_known(word: &str) -> bool {
    MANIFESTS.contains(&word) || INDEXES.contains(&word)
}

fn manifest(raw: RawDocument) -> Result<Manifest, Unusable> {
    let config = raw.config.ok_or_else(|| Unusable::new("its manifest has no configuration"))?;
    if !CONFIGS.contains(&config.media_type.as_str()) {
        let kind = raw.artifact_type.as_deref().unwrap_or(&config.media_type);
        return Err(Unusable::other(format!(
            "it is not a system image but an artifact of the type {}",
            printable(kind)
        )));
    }
    let layers = raw.layers.unwrap_or_default();
    if layers.is_empty() {
        return Err(Unusable::new("it has no layers"));
    }
    if layers.len() > MAX_LAYERS {
        return Err(Unusable::new(format!("it has more than {MAX_LAYERS} layers")));
    }
    let mut total: u64 = 0;
    let mut has_foreign_layers = false;
    let layers = layers.iter().map(|layer| {
        let is_foreign = ELSEWHERE.iter().any(|prefix| layer.media_type.starts_with(prefix));
        if !is_foreign && !LAYERS.contains(&layer.media_type.as_str()) {
            // Such as a signature of cosign, whose configuration has the type of an image's.
            let kind = printable(&layer.media_type);
            return Err(Unusable::other(format!("one of its layers has the unknown type {kind}")));
        }
        has_foreign_layers |= is_foreign;
        // A layer without bytes is an archive without entries.
        let blob = descriptor(&layer.digest, layer.size, 0, MAX_LAYER, "a layer")?;
        total = total.saturating_add(blob.size.0);
        Ok(blob)
    });
    let layers = layers.collect::<Result<Vec<_>, Unusable>>()?;
    if total > MAX_IMAGE.0 {
        return Err(Unusable::new(format!("its layers are larger than {MAX_IMAGE}")));
    }
    let config = descriptor(&config.digest, config.size, 1, MAX_CONFIG, "the configuration")?;
    Ok(Manifest { config, layers, has_foreign_layers })
}

pub(super) fn descriptor(
    digest: &str,
    size: u64,
    min: u64,
    max: Bytes,
    what: &str,
) -> Result<Descriptor, Unusable> {
    let digest: Digest = digest.parse().map_err(|_| Unusable::new(format!("{what} has no sha256 digest")))?;
    if !(min..=max.0).contains(&size) {
        return Err(Unusable::new(format!("{what} of {size} bytes is refused; the limit is {max}")));
    }
    Ok(Descriptor { digest, size: Bytes(size) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::{index::Selector, platform::Platform};

    fn digest(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    fn blob(media_type: &str, n: u8) -> Value {
        json!({ "mediaType": media_type, "digest": digest(n), "size": 100 + u64::from(n) })
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2, "mediaType": MANIFESTS[0], "config": blob(CONFIGS[0], 1),
            "layers": [blob(LAYERS[1], 2), blob(LAYERS[2], 3)], "annotations": { "a": "b" },
        })
    }

    fn parse(value: &Value) -> Result<Document, String> {
        Document::parse(&serde_json::to_vec(value).unwrap(), None).map_err(|e| e.to_string())
    }

    fn with(mut value: Value, key: &str, new: Value) -> Value {
        value[key] = new;
        value
    }

    #[test]
    fn manifests_of_both_families_are_read() {
        let Document::Manifest(manifest) = parse(&image()).unwrap() else { panic!("an index") };
        assert_eq!(manifest.config.size, Bytes(101));
        assert_eq!(
            manifest.layers.iter().map(|layer| layer.size).collect::<Vec<_>>(),
            [Bytes(102), Bytes(103)]
        );
        let docker = json!({
            "schemaVersion": 2, "mediaType": MANIFESTS[1], "config": blob(CONFIGS[1], 1),
            "layers": [blob(LAYERS[4], 2)],
        });
        assert!(matches!(parse(&docker).unwrap(), Document::Manifest(_)));
        // OCI documents sometimes lack a media type.
        let mut plain = image();
        plain.as_object_mut().unwrap().remove("mediaType");
        assert!(matches!(parse(&plain).unwrap(), Document::Manifest(_)));
    }

    #[test]
    fn an_invalid_manifest_is_refused_with_the_reason() {
        let check = |value: Value, expect: &str| {
            let error = parse(&value).unwrap_err();
            assert!(error.contains(expect), "{error:?} for {expect:?}");
        };
        check(with(image(), "schemaVersion", json!(1)), "version 1");
        check(with(image(), "schemaVersion", json!("2")), "malformed");
        check(with(image(), "mediaType", json!("text/html")), "unknown type text/html");
        check(with(image(), "manifests", json!([])), "also an index");
        check(with(image(), "config", json!(null)), "no configuration");
        check(with(image(), "config", blob("application/vnd.cncf.helm.config.v1+json", 1)), "helm");
        check(with(image(), "layers", json!([])), "no layers");
        check(with(image(), "layers", json!(vec![blob(LAYERS[0], 1); 128])), "more than 127 layers");
        check(with(image(), "layers", json!([blob("text/plain\u{1b}[31m", 1)])), "text/plain\\u{1b}[31m");
        for size in [json!(-1), json!(1.5), json!("7"), json!(u64::MAX), json!(null)] {
            let layer = with(blob(LAYERS[0], 1), "size", size.clone());
            assert!(parse(&with(image(), "layers", json!([layer]))).is_err(), "{size}");
        }
        for wrong in ["sha256:", "sha512:00", "../../etc/passwd", ""] {
            check(
                with(image(), "layers", json!([with(blob(LAYERS[0], 1), "digest", json!(wrong))])),
                "digest",
            );
        }
        let large = with(blob(LAYERS[0], 1), "size", json!(60u64 << 30));
        check(with(image(), "layers", json!([large, large, large])), "larger than");
    }

    #[test]
    fn layers_that_a_registry_may_not_have_are_known() {
        for foreign in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            let layers = json!([blob(LAYERS[0], 2), blob(foreign, 1)]);
            let Document::Manifest(manifest) = parse(&with(image(), "layers", layers)).unwrap() else {
                panic!("an index")
            };
            assert!(manifest.has_foreign_layers && manifest.layers.len() == 2);
        }
    }

    #[test]
    fn addresses_of_other_servers_are_not_even_read() {
        let layer = with(blob(LAYERS[1], 2), "urls", json!(["http://169.254.169.254/"]));
        let Document::Manifest(manifest) = parse(&with(image(), "layers", json!([layer]))).unwrap() else {
            panic!("an index")
        };
        assert_eq!(manifest.layers.len(), 1);
    }

    #[test]
    fn a_document_is_what_both_it_and_the_registry_say() {
        let bytes = serde_json::to_vec(&image()).unwrap();
        assert!(Document::parse(&bytes, Some(MANIFESTS[0])).is_ok());
        assert!(Document::parse(&bytes, Some("application/json")).is_ok());
        assert!(Document::parse(&bytes, Some(INDEXES[0])).is_err());
    }

    fn entry(n: u8, os: &str, architecture: &str, variant: Option<&str>) -> Value {
        let platform = json!({ "os": os, "architecture": architecture, "variant": variant });
        with(blob(MANIFESTS[0], n), "platform", platform)
    }

    fn choose(entries: &[Value]) -> Result<String, String> {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEXES[0], "manifests": entries });
        let Document::Index(index) = parse(&index)? else { panic!("no index") };
        let platform = Platform::of_host("x86_64");
        let chosen = index.choose(Selector { platform: &platform, tag: None });
        let first = chosen.map_err(|e| e.to_string())?[0];
        Ok(index.document(first).map_err(|e| e.to_string())?.digest.to_string())
    }

    #[test]
    fn the_platform_chooses_from_an_index() {
        let arm = || entry(1, "linux", "arm64", Some("v8"));
        let windows = || entry(2, "windows", "amd64", None);
        let attestation = || entry(3, "unknown", "unknown", None);
        let amd = || entry(4, "linux", "amd64", None);
        assert_eq!(choose(&[arm(), windows(), attestation(), amd()]).unwrap(), digest(4));
        let v3 = entry(5, "linux", "amd64", Some("v3"));
        assert_eq!(choose(&[v3, amd()]).unwrap(), digest(4));
        assert_eq!(choose(&[amd(), entry(6, "linux", "amd64", None)]).unwrap(), digest(4));
        assert_eq!(choose(&[blob(MANIFESTS[1], 7)]).unwrap(), digest(7));
        let error = choose(&[arm(), windows(), attestation()]).unwrap_err();
        assert_eq!(error, "there is no image for linux/amd64, only for linux/arm64/v8, windows/amd64");
        assert!(choose(&[]).unwrap_err().contains("empty"));
        assert!(choose(&[blob("text/html", 1)]).unwrap_err().contains("no image"));
        assert!(choose(&vec![amd(); 1025]).unwrap_err().contains("more than 1024"));
    }

    #[test]
    fn json_that_is_large_deep_or_said_twice_is_refused() {
        let large = vec![b' '; MAX_DOCUMENT.0 as usize + 1];
        assert!(Document::parse(&large, None).unwrap_err().to_string().contains("larger than"));
        for place in ["x", "layers", "config"] {
            let deep = format!("{{\"schemaVersion\":2,\"{place}\":{}", "[".repeat(1 << 20));
            assert!(Document::parse(deep.as_bytes(), None).is_err(), "{place}");
        }
        let twice = br#"{"schemaVersion":2,"schemaVersion":2}"#;
        assert!(Document::parse(twice, None).unwrap_err().to_string().contains("duplicate"));
    }

    proptest! {
        #[test]
        fn no_change_of_a_manifest_makes_it_panic(at in 0usize..600, with: u8, drop: bool) {
            let mut bytes = serde_json::to_vec(&image()).unwrap();
            let at = at % bytes.len();
            if drop { bytes.truncate(at) } else { bytes[at] = with }
            if let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, None) {
                prop_assert!(manifest.layers.len() <= MAX_LAYERS);
                prop_assert!(manifest.layers.iter().all(|blob| blob.size <= MAX_LAYER));
            }
        }
    }
}
