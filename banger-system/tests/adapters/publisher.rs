//! Publishes a test catalog with a fresh key.

use banger_image::catalog::signature::Keys;
use minisign::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub struct Publisher(KeyPair);

impl Publisher {
    pub fn new() -> Self {
        Self(KeyPair::generate_unencrypted_keypair().unwrap())
    }

    /// The public key.
    pub fn key(&self) -> String {
        self.0.pk.to_base64()
    }

    pub fn keys(&self) -> Keys {
        Keys::parse(&self.key()).unwrap()
    }

    /// Returns the content of the signature file.
    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        minisign::sign(Some(&self.0.pk), &self.0.sk, bytes, None, None).unwrap().into_string().into_bytes()
    }
}

/// Returns a file's entry in the index.
pub fn file(location: &str, content: &[u8]) -> Value {
    let digest = format!("sha256:{:x}", Sha256::digest(content));
    json!({ "location": location, "digest": digest, "size": content.len() })
}

/// Returns an index with these entries that is valid for years.
pub fn index(serial: u64, images: Value, kernels: Value) -> Vec<u8> {
    edition(
        json!({ "schema": 1, "serial": serial, "expires": "2999-12-31", "images": images, "kernels": kernels }),
    )
}

pub fn edition(index: Value) -> Vec<u8> {
    serde_json::to_vec_pretty(&index).unwrap()
}
