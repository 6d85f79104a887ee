//! Which image of a layout is chosen. The reference is skopeo (`skopeo inspect oci:DIRECTORY`), which wants a tag where
//! there are several images; of an index, like Docker, it takes the image for the platform.
//!
//! `banger image pull` chooses from an index by the same function.

use std::process::Command;

use serde_json::json;

use super::{has, skip};
use crate::{
    archive::{self, Source},
    fixtures::layout::{Layout, config_on, configuration, on, tagged, with},
    oci::{index::Selector, platform::Platform},
};

struct Case {
    name: &'static str,
    build: fn() -> Layout,
    platform: &'static str,
    tag: Option<&'static str>,
    skopeo: Told,
    ours: Result<&'static str, &'static str>,
}

/// What skopeo takes: the image with this content, or nothing.
enum Told {
    Takes(&'static str),
    Fails,
    /// It has no way to ask for that.
    Cannot,
}
use Told::{Cannot, Fails, Takes};

/// Adds an image whose layer is this text.
fn image(layout: &mut Layout, text: &str, platform: &str) -> serde_json::Value {
    layout.image(&[text.as_bytes().to_vec()], &config_on(platform))
}

const CASES: &[Case] = &[
    Case {
        name: "amd64 beside amd64/v3",
        build: || {
            let mut all = Layout::default();
            let v3 = on(image(&mut all, "v3", "linux/amd64/v3"), "linux/amd64/v3");
            let plain = on(image(&mut all, "plain", "linux/amd64"), "linux/amd64");
            let index = all.nested(&[v3, plain]);
            all.index(&[index])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Takes("plain"),
        ours: Ok("plain"),
    },
    Case {
        name: "amd64/v3 by --platform",
        build: || {
            let mut all = Layout::default();
            let plain = on(image(&mut all, "plain", "linux/amd64"), "linux/amd64");
            let v3 = on(image(&mut all, "v3", "linux/amd64/v3"), "linux/amd64/v3");
            let index = all.nested(&[plain, v3]);
            all.index(&[index])
        },
        platform: "linux/amd64/v3",
        tag: None,
        skopeo: Cannot,
        ours: Ok("v3"),
    },
    Case {
        name: "amd64 beside amd64/v3 in the index of the layout itself",
        build: || {
            let mut all = Layout::default();
            let v3 = on(image(&mut all, "v3", "linux/amd64/v3"), "linux/amd64/v3");
            let plain = on(image(&mut all, "plain", "linux/amd64"), "linux/amd64");
            all.index(&[v3, plain])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Ok("plain"),
    },
    Case {
        name: "the kernel's name of an architecture",
        build: || {
            let mut all = Layout::default();
            let arm = on(image(&mut all, "arm", "linux/arm64"), "linux/aarch64");
            let plain = on(image(&mut all, "plain", "linux/amd64"), "linux/x86_64");
            let index = all.nested(&[arm, plain]);
            all.index(&[index])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Ok("plain"),
    },
    Case {
        name: "attestations of BuildKit beside the image",
        build: || {
            let mut all = Layout::default();
            let plain = on(image(&mut all, "plain", "linux/amd64"), "linux/amd64");
            let attestation = on(image(&mut all, "attestation", "unknown/unknown"), "unknown/unknown");
            let kind = json!({ "vnd.docker.reference.type": "attestation-manifest" });
            let index = all.nested(&[with(attestation, "annotations", kind), plain]);
            all.index(&[index])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Takes("plain"),
        ours: Ok("plain"),
    },
    Case {
        name: "a signature without a platform before the image",
        build: || {
            let mut all = Layout::default();
            let signature = signature(&mut all, "a");
            let plain = image(&mut all, "plain", "linux/amd64");
            all.index(&[tagged(signature, "sha256-1.sig"), plain])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Ok("plain"),
    },
    Case {
        name: "a signature behind the image, as in a copy of both by cosign",
        build: || {
            let mut all = Layout::default();
            let plain = image(&mut all, "plain", "linux/amd64");
            let signature = signature(&mut all, "a");
            all.index(&[plain, tagged(signature, "sha256-1.sig")])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Ok("plain"),
    },
    Case {
        name: "an index of signatures and an empty one before the image",
        build: || {
            let mut all = Layout::default();
            let signature = with(signature(&mut all, "a"), "artifactType", json!("application/spdx+json"));
            let artifacts = all.nested(&[signature]);
            let empty = all.nested(&[]);
            let plain = image(&mut all, "plain", "linux/amd64");
            all.index(&[artifacts, empty, plain])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Ok("plain"),
    },
    Case {
        name: "an image before more signatures than are looked at",
        build: || {
            let mut all = Layout::default();
            let mut entries = vec![image(&mut all, "plain", "linux/amd64")];
            entries.extend((0..20).map(|n| signature(&mut all, &n.to_string())));
            all.index(&entries)
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Ok("plain"),
    },
    Case {
        name: "more signatures than are looked at before an image",
        build: || {
            let mut all = Layout::default();
            let mut entries: Vec<_> = (0..20).map(|n| signature(&mut all, &n.to_string())).collect();
            entries.push(image(&mut all, "plain", "linux/amd64"));
            all.index(&entries)
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Err("too many artifacts"),
    },
    Case {
        name: "an artifact and an unknown media type in an index",
        build: || {
            let mut all = Layout::default();
            let artifact = with(signature(&mut all, "a"), "artifactType", json!("application/spdx+json"));
            let unknown = all.blob("application/vnd.example+json", b"{}");
            let plain = on(image(&mut all, "plain", "linux/amd64"), "linux/amd64");
            let index = all.nested(&[artifact, unknown, plain]);
            all.index(&[index])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Takes("plain"),
        ours: Ok("plain"),
    },
    Case {
        name: "images for several platforms that the index does not state, as of buildah",
        build: || {
            let mut all = Layout::default();
            let arm = image(&mut all, "arm", "linux/arm64");
            let plain = image(&mut all, "plain", "linux/amd64");
            all.index(&[tagged(arm, "arm"), tagged(plain, "x86")])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Ok("plain"),
    },
    Case {
        name: "two images with tags, and none asked for",
        build: two_tags,
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Err("several images that fit: one, two"),
    },
    Case {
        name: "two images with tags, and one asked for",
        build: two_tags,
        platform: "linux/amd64",
        tag: Some("two"),
        skopeo: Takes("second"),
        ours: Ok("second"),
    },
    Case {
        name: "a tag that is not there",
        build: two_tags,
        platform: "linux/amd64",
        tag: Some("three"),
        skopeo: Fails,
        ours: Err("no image with the tag \"three\", only one, two"),
    },
    Case {
        name: "one image with two tags",
        build: || {
            let mut all = Layout::default();
            let plain = image(&mut all, "plain", "linux/amd64");
            all.index(&[tagged(plain.clone(), "3"), tagged(plain, "latest")])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Ok("plain"),
    },
    Case {
        name: "no image for the platform",
        build: || {
            let mut all = Layout::default();
            let arm = on(image(&mut all, "arm", "linux/arm64/v8"), "linux/arm64/v8");
            let index = all.nested(&[arm]);
            all.index(&[index])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Fails,
        ours: Err("no image for linux/amd64, only for linux/arm64/v8"),
    },
    Case {
        name: "an index within an index, too deep",
        build: || {
            let mut all = Layout::default();
            let mut index = image(&mut all, "plain", "linux/amd64");
            for _ in 0..5 {
                index = all.nested(&[index]);
            }
            all.index(&[index])
        },
        platform: "linux/amd64",
        tag: None,
        skopeo: Cannot,
        ours: Err("nested too deeply"),
    },
];

fn two_tags() -> Layout {
    let mut all = Layout::default();
    let one = image(&mut all, "first", "linux/amd64");
    let two = image(&mut all, "second", "linux/amd64");
    all.index(&[tagged(one, "one"), tagged(two, "two")])
}

/// Adds a signature as cosign stores it, with the configuration of an image. Returns the descriptor of its manifest.
fn signature(layout: &mut Layout, text: &str) -> serde_json::Value {
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let payload = text.as_bytes().to_vec();
    let config =
        configuration(std::slice::from_ref(&payload), &json!({ "architecture": "", "os": "", "config": {} }));
    let config = layout.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let layer = layout.blob("application/vnd.dev.cosign.simplesigning.v1+json", &payload);
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    layout.blob(kind, manifest.to_string().as_bytes())
}

/// Returns the text of the chosen image's layer.
fn chosen(case: &Case) -> Result<String, String> {
    choose(&(case.build)(), case.platform, case.tag)
}

fn choose(layout: &Layout, platform: &str, tag: Option<&str>) -> Result<String, String> {
    let temporary = || tempfile::tempfile();
    let platform: Platform = platform.parse().unwrap();
    let tar = layout.tar();
    let mut file = temporary().unwrap();
    std::io::Write::write_all(&mut file, &tar).unwrap();
    let source = Source::archive(file, &temporary).map_err(|error| error.to_string())?;
    let found = archive::find(source, Selector { platform: &platform, tag }, Some("tool"), &temporary);
    let found = found.map_err(|error| error.to_string())?;
    let (at, length) = found.parts[2];
    let mut text = vec![0; length as usize];
    std::os::unix::fs::FileExt::read_exact_at(&found.file, &mut text, at).unwrap();
    Ok(String::from_utf8(text).unwrap())
}

#[test]
fn the_image_is_chosen_by_platform_and_tag() {
    for case in CASES {
        match (chosen(case), case.ours) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{}", case.name),
            (Err(found), Err(expect)) => assert!(found.contains(expect), "{}: {found}", case.name),
            (found, expect) => panic!("{}: {found:?} instead of {expect:?}", case.name),
        }
    }
}

#[test]
fn what_an_error_lists_can_be_asked_for() {
    let mut all = Layout::default();
    let one = image(&mut all, "first", "linux/amd64");
    let two = image(&mut all, "second", "linux/amd64");
    let digest = two["digest"].as_str().unwrap().to_owned();
    let layout = all.index(&[one, two]);
    let config =
        |text: &str| configuration(&[text.as_bytes().to_vec()], &config_on("linux/amd64")).to_string();
    let list =
        json!([{ "Config": "1.json", "Layers": ["1.tar"] }, { "Config": "2.json", "Layers": ["2.tar"] }]);
    let docker = Layout::default()
        .with("1.json", config("first"))
        .with("2.json", config("second"))
        .with("1.tar", "first")
        .with("2.tar", "second")
        .with("manifest.json", list.to_string());
    for (layout, name) in [(layout, digest.as_str()), (docker, "2.json")] {
        let several = choose(&layout, "linux/amd64", None).unwrap_err();
        assert!(several.contains("several images") && several.contains(name), "{several}");
        assert_eq!(choose(&layout, "linux/amd64", Some(name)), Ok("second".to_owned()));
    }
}

#[test]
fn skopeo_chooses_what_the_table_says() {
    if !has("skopeo") {
        return skip::skipped("comparing with skopeo needs skopeo");
    }
    for case in CASES {
        let home = tempfile::tempdir().unwrap();
        (case.build)().write(home.path());
        let tag = case.tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--override-os", "linux", "--override-arch", "amd64", "inspect"]);
        let done = skopeo.arg(format!("oci:{}{tag}", home.path().display())).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        match case.skopeo {
            Cannot => {}
            Fails => assert!(!done.status.success(), "{}: skopeo takes it", case.name),
            Takes(text) => {
                assert!(done.status.success(), "{}: {said}", case.name);
                let shown: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
                let digest = crate::fixtures::tar::digest(text.as_bytes()).to_string();
                assert_eq!(shown["Layers"], json!([digest]), "{}", case.name);
            }
        }
    }
}
