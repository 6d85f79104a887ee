//! Indexes of catalogs, correctly signed, and the locations in them.
#![no_main]

use std::sync::OnceLock;

use banger_domain::id::Timestamp;
use banger_image::catalog::{
    index::Index,
    location::{Joined, Location},
    signature::{Keys, Signed},
};
use libfuzzer_sys::fuzz_target;
use minisign::KeyPair;

static KEYS: OnceLock<(KeyPair, Keys)> = OnceLock::new();

fuzz_target!(
    init: { banger_fuzz::sow("catalog") },
    |input: &[u8]| {
        let (pair, keys) = KEYS.get_or_init(|| {
            let pair = KeyPair::generate_unencrypted_keypair().unwrap();
            let keys = Keys::parse(&pair.pk.to_base64()).unwrap();
            (pair, keys)
        });
        let Some((kind, rest)) = input.split_first() else { return };
        match kind {
            b'i' => {
                let signature = minisign::sign(Some(&pair.pk), &pair.sk, rest, None, None).unwrap().into_string();
                let signed = Signed::verify(rest.to_vec(), signature.as_bytes(), keys).unwrap();
                let Ok(index) = Index::parse(&signed, "x86_64") else { return };
                let _ = index.check_age(Timestamp(0));
                for entry in &index.images {
                    assert_eq!(index.image(&entry.name), Some(entry));
                }
                for entry in &index.kernels {
                    assert_eq!(index.kernel(&entry.name), Some(entry));
                }
            }
            // An unsigned index is refused.
            b's' => assert!(Signed::verify(b"other".to_vec(), rest, keys).is_err()),
            b'l' => {
                let Ok(text) = std::str::from_utf8(rest) else { return };
                let (place, file) = text.split_once('\n').unwrap_or((text, "x"));
                let (Ok(place), Ok(file)) = (place.parse::<Location>(), file.parse::<Joined>()) else { return };
                let _ = (place.join(&file).to_string(), place.signature().to_string());
            }
            _ => {}
        }
    }
);
