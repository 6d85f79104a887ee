//! An image in files (OCI image specification, "Image Layout"), with one uncompressed layer, that is a Docker archive
//! as well: Docker before version 25 reads only `manifest.json`.

use banger_domain::digest::Digest;
use sha2::{Digest as _, Sha256};

use super::{
    Descriptor,
    config::{self, ImageConfig},
    platform::Platform,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The tag of every exported image.
const TAG: &str = "latest";

/// All documents of a layout, without its layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// Its files by name.
    pub files: Vec<(String, Vec<u8>)>,
    /// The digest of the manifest, which identifies the image.
    pub manifest: Digest,
}

/// Returns the path of a blob in a layout.
pub fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Returns the documents for this layer. Other programs load the image under this name.
pub fn documents(image: &ImageConfig, arch: &str, layer: Descriptor, name: &str) -> Documents {
    let platform = Platform::of_host(arch).to_string();
    let architecture = platform.split('/').nth(1).unwrap_or_default();
    let describe = |kind: &str, content: Descriptor| {
        serde_json::json!({
            "mediaType": kind, "digest": content.digest.to_string(), "size": content.size.0,
        })
    };
    let config = config::write(image, architecture, layer.digest);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": describe(CONFIG, described(&config)),
        "layers": [describe(LAYER, layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = describe(MANIFEST, described(&manifest));
    entry["platform"] = serde_json::json!({ "architecture": architecture, "os": "linux" });
    // The second is how Docker and containerd name an image, the first how podman and skopeo do.
    entry["annotations"] = serde_json::json!({
        "org.opencontainers.image.ref.name": TAG,
        "io.containerd.image.name": format!("docker.io/library/{name}:{TAG}"),
    });
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    let digest = described(&manifest).digest;
    let config_path = path(&described(&config).digest);
    let docker = serde_json::json!([{
        "Config": config_path, "RepoTags": [format!("{name}:{TAG}")], "Layers": [path(&layer.digest)],
    }]);
    Documents {
        files: vec![
            (config_path, config),
            (path(&digest), manifest),
            ("manifest.json".to_owned(), docker.to_string().into_bytes()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ],
        manifest: digest,
    }
}

fn described(bytes: &[u8]) -> Descriptor {
    let digest = Digest::from_bytes(Sha256::digest(bytes).into());
    Descriptor { digest, size: banger_proto::size::Bytes(bytes.len() as u64) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::oci::{index::Selector, manifest::Document};

    #[test]
    fn a_written_image_reads_back() {
        let image = ImageConfig {
            env: vec!["PATH=/bin".to_owned()],
            user: "7:7".to_owned(),
            working_dir: "/srv".to_owned(),
            entrypoint: vec!["/bin/e".to_owned()],
            cmd: vec!["a".to_owned(), "b".to_owned()],
            stop_signal: "SIGQUIT".to_owned(),
            exposed_ports: vec!["80/tcp".to_owned()],
            labels: [("k".to_owned(), "v".to_owned())].into(),
        };
        for image in [image, ImageConfig::default()] {
            let layer = described(b"a layer");
            let documents = documents(&image, "x86_64", layer, "mine");
            let file =
                |name: &str| documents.files.iter().find(|(known, _)| known == name).unwrap().1.as_slice();
            let Document::Index(index) = Document::parse(file("index.json"), None).unwrap() else { panic!() };
            let platform = Platform::of_host("x86_64");
            let chosen = index.choose(Selector { platform: &platform, tag: None }).unwrap()[0];
            let chosen = index.document(chosen).unwrap();
            assert_eq!(chosen.digest, documents.manifest);
            let Document::Manifest(manifest) = Document::parse(file(&path(&chosen.digest)), None).unwrap()
            else {
                panic!()
            };
            let config = file(&path(&manifest.config.digest));
            let read = config::parse(config, &manifest, &platform).unwrap();
            assert_eq!((read.layers[0].blob, read.layers[0].diff_id), (layer, layer.digest));
            assert_eq!((read.config, read.notes), (image, Vec::new()));
        }
    }
}
