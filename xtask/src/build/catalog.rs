//! The catalog in the package: the index from the repository, with a signature beside it.
//!
//! A release puts the signature (`packaging/catalog/index.json.minisig`) and its key (`packaging/catalog/banger.pub`)
//! beside the index. Without them, xtask signs the index with a new key and discards the private half.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use minisign::KeyPair;

use crate::run::{cache, repository};

const INDEX: &str = "index.json";
const SIGNATURE: &str = "index.json.minisig";
const KEY: &str = "banger.pub";
/// Where each file is installed, below the root.
const PLACES: [(&str, &str); 3] = [
    (INDEX, "usr/share/banger/catalog/index.json"),
    (SIGNATURE, "usr/share/banger/catalog/index.json.minisig"),
    (KEY, "usr/share/banger/keys/banger.pub"),
];

/// Returns the files of the catalog, and where they are installed.
pub fn files() -> Result<Vec<(PathBuf, PathBuf, u32)>> {
    let released = repository().join("packaging/catalog");
    let directory = match released.join(SIGNATURE).exists() {
        true => released,
        false => sign(&released.join(INDEX))?,
    };
    Ok(PLACES.iter().map(|(from, to)| (directory.join(from), (*to).into(), 0o644)).collect())
}

/// Signs an index with a new key, unless it is signed already.
fn sign(index: &Path) -> Result<PathBuf> {
    let directory = cache().join("generated/catalog");
    let content = fs::read(index).with_context(|| format!("cannot read {}", index.display()))?;
    let is_signed = directory.join(SIGNATURE).exists() && directory.join(KEY).exists();
    if is_signed && fs::read(directory.join(INDEX)).is_ok_and(|signed| signed == content) {
        return Ok(directory);
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let key = KeyPair::generate_unencrypted_keypair().context("cannot create a key")?;
    let comment = Some("the catalog of a package that was built from the repository");
    let signature = minisign::sign(Some(&key.pk), &key.sk, &content[..], comment, None);
    let signature = signature.context("cannot sign the catalog")?.into_string();
    let public = key.pk.to_box().context("cannot write a key")?.into_string();
    // The index is written last, so that an index implies the other two files.
    for (name, bytes) in [(SIGNATURE, signature.as_bytes()), (KEY, public.as_bytes()), (INDEX, &content)] {
        let path = directory.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(directory)
}
