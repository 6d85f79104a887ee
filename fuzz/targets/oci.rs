//! Data from registries and users about images: references, manifests and indexes, configurations, credentials.
#![no_main]

use banger_image::oci::{
    config,
    credentials::Credentials,
    index::{Index, Selector},
    manifest::{Document, MAX_LAYERS},
    platform::Platform,
    reference::ImageRef,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: { banger_fuzz::sow("oci") },
    |input: &[u8]| {
        let Some((kind, rest)) = input.split_first() else { return };
        let platform = Platform::of_host("x86_64");
        match kind {
            b'r' => {
                let Ok(text) = std::str::from_utf8(rest) else { return };
                let Ok(reference) = text.parse::<ImageRef>() else { return };
                assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
                let host = reference.registry();
                assert!(!host.host().is_empty() && !reference.wanted().is_empty());
                // It becomes the name of a cache directory.
                assert!(!host.as_str().contains('/') && !matches!(host.as_str(), "." | ".."));
                let _ = reference.local_name();
            }
            b'm' => match Document::parse(rest, None) {
                Ok(Document::Index(index)) => look(&index, &platform),
                Ok(Document::Manifest(manifest)) => assert!((1..=MAX_LAYERS).contains(&manifest.layers.len())),
                Err(_) => {}
            },
            b'c' => {
                let Some((length, rest)) = rest.split_first_chunk::<2>() else { return };
                let (document, config) = rest.split_at(rest.len().min(u16::from_be_bytes(*length).into()));
                let Ok(Document::Manifest(manifest)) = Document::parse(document, None) else { return };
                let Ok(parsed) = config::parse(config, &manifest, &platform) else { return };
                assert_eq!(parsed.layers.len(), manifest.layers.len());
                let config = parsed.config;
                assert!(config.working_dir.is_empty() || config.working_dir.starts_with('/'));
                assert!(config.env.iter().all(|pair| pair.contains('=') && !pair.contains('\0')));
            }
            b'p' => drop(Credentials::parse(rest)),
            b'i' => {
                if let Ok(Some(index)) = Index::of_layout(rest) {
                    look(&index, &platform);
                }
            }
            _ => {}
        }
    }
);

/// Every candidate of an index has a position in it.
fn look(index: &Index, platform: &Platform) {
    for tag in [None, Some("latest")] {
        for candidate in index.choose(Selector { platform, tag }).unwrap_or_default() {
            let _ = (index.document(candidate), index.names(candidate));
        }
    }
}
