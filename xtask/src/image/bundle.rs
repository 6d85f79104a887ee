//! Builds bundles: an image as one compressed archive of an OCI image layout, for `banger image register --oci` and any
//! other program that reads such layouts.
//!
//! The same packages and the same version of the compressor give the same bytes.

use std::{
    fs::{File, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use banger_proto::bundle::{KERNEL, NAME};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    dist::platform,
    image,
    run::{cache, digest_of, hex, say},
};

/// The kernel for the images of this repository, by its name in the package's catalog.
const KERNEL_OF_IMAGES: &str = "debian";
/// The compression level. Higher ones take longer and save little.
const LEVEL: i32 = 9;
/// The media types of the OCI image specification.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Builds the bundle of an image. Returns its path, its digest, and its length in bytes.
pub fn make(name: &str) -> Result<(PathBuf, String, u64)> {
    let archive = image::archive(name)?;
    let directory = cache().join("images");
    say(&format!("building a bundle of {name}"));
    let everyones = Permissions::from_mode(0o644);
    let unfinished = tempfile::Builder::new().permissions(everyones).tempfile_in(&directory);
    let unfinished = unfinished.context("cannot create a temporary file")?;
    let doing = || format!("cannot write a bundle of {}", archive.display());
    write(name, &archive, unfinished.as_file()).with_context(doing)?;
    let digest = digest_of(unfinished.path())?;
    let length = unfinished.as_file().metadata().with_context(doing)?.len();
    let file = directory.join(format!(
        "{name}-{}-{}.tar.zst",
        std::env::consts::ARCH,
        digest.get(..12).unwrap_or_default()
    ));
    unfinished.persist(&file).context("cannot rename the bundle")?;
    Ok((file, format!("sha256:{digest}"), length))
}

fn write(name: &str, archive: &Path, packed: impl Write) -> Result<()> {
    let (layer, length) = (digest_of(archive)?, archive.metadata()?.len());
    let architecture = platform::here()?.deb;
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &digest_of_text(&config), config.to_string().len() as u64),
        "layers": [descriptor(LAYER, &layer, length)],
        "annotations": { NAME: name, KERNEL: KERNEL_OF_IMAGES },
    });
    let mut of_image = descriptor(MANIFEST, &digest_of_text(&manifest), manifest.to_string().len() as u64);
    of_image["platform"] = json!({ "architecture": architecture, "os": "linux" });
    let index = json!({ "schemaVersion": 2, "manifests": [of_image] });

    let mut tar = tar::Builder::new(zstd::Encoder::new(packed, LEVEL)?);
    for (path, document) in [
        ("oci-layout".to_owned(), &json!({ "imageLayoutVersion": "1.0.0" })),
        ("index.json".to_owned(), &index),
        (blob(&digest_of_text(&manifest)), &manifest),
        (blob(&digest_of_text(&config)), &config),
    ] {
        let text = document.to_string();
        tar.append_data(&mut header(text.len() as u64), path, text.as_bytes())?;
    }
    tar.append_data(&mut header(length), blob(&layer), File::open(archive)?)?;
    tar.into_inner()?.finish()?.flush()?;
    Ok(())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size })
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn digest_of_text(document: &Value) -> String {
    hex(&Sha256::digest(document.to_string()))
}
