//! Configurations of images. The reference is Docker (`image/spec/specs-go/v1` of Moby and its daemon), by its
//! documentation.

use serde_json::{Value, json};

use crate::{
    fixtures::{
        layout::{CONFIG, LAYER, MANIFEST, config_on, configuration},
        tar::digest,
    },
    oci::{
        config::{self, Parsed},
        manifest::Document,
    },
};

struct Case {
    name: &'static str,
    /// The fields besides the layers.
    build: fn() -> Value,
    docker: &'static str,
    ours: Ours,
}

enum Ours {
    /// The environment, the working directory, the entry point, the number of labels, and the words of the notes.
    Takes(&'static [&'static str], &'static str, &'static [&'static str], usize, &'static [&'static str]),
    Refuses(&'static str),
}
use Ours::{Refuses, Takes};

const CASES: &[Case] = &[
    Case {
        name: "no architecture",
        build: || json!({ "os": "linux" }),
        docker: "takes it for the host's",
        ours: Takes(&[], "", &[], 0, &["taken for linux/amd64"]),
    },
    Case {
        name: "neither architecture nor system",
        build: || json!({}),
        docker: "takes it for the host's",
        ours: Takes(&[], "", &[], 0, &["taken for linux/amd64"]),
    },
    Case {
        name: "the kernel's name of the architecture",
        build: || config_on("linux/x86_64"),
        docker: "is normalised to amd64",
        ours: Takes(&[], "", &[], 0, &[]),
    },
    Case {
        name: "the variant of every processor",
        build: || config_on("linux/amd64/v1"),
        docker: "is normalised to no variant",
        ours: Takes(&[], "", &[], 0, &[]),
    },
    Case {
        name: "a variant that not every processor has",
        build: || config_on("linux/amd64/v3"),
        docker: "is refused, unless the platform was asked for",
        ours: Refuses("it is for linux/amd64/v3, not for linux/amd64"),
    },
    Case {
        name: "another architecture",
        build: || config_on("linux/arm64/v8"),
        docker: "is refused, unless the platform was asked for",
        ours: Refuses("it is for linux/arm64/v8, not for linux/amd64"),
    },
    Case {
        name: "more than 128 KiB of labels",
        build: || json!({ "os": "linux", "architecture": "amd64", "config": { "Labels": { "a": "x".repeat(140_000) } } }),
        docker: "are kept",
        ours: Takes(&[], "", &[], 0, &["its labels are left out"]),
    },
    Case {
        name: "more than 128 KiB of environment",
        build: || json!({ "os": "linux", "architecture": "amd64", "config": { "Env": [format!("A={}", "x".repeat(140_000))] } }),
        docker: "fails to start a container: a string of 128 KiB is too long for execve(2)",
        ours: Refuses("more than 128 KiB"),
    },
    Case {
        name: "a variable without a value",
        build: || json!({ "os": "linux", "architecture": "amd64", "config": { "Env": ["FOO", "A=b", "=c", "E="] } }),
        docker: "is not set",
        ours: Takes(&["A=b", "E="], "", &[], 0, &["\"FOO\""]),
    },
    Case {
        name: "a relative working directory",
        build: || json!({ "os": "linux", "architecture": "amd64", "config": { "WorkingDir": "srv/app" } }),
        docker: "is taken from the root by docker build; podman and containerd do so for an image",
        ours: Takes(&[], "/srv/app", &[], 0, &["it is taken as /srv/app"]),
    },
    Case {
        name: "a command that is a text",
        build: || json!({ "os": "linux", "architecture": "amd64", "config": { "Entrypoint": "/init" } }),
        docker: "is a list of one",
        ours: Takes(&[], "", &["/init"], 0, &[]),
    },
    Case {
        name: "null wherever there may be a value",
        build: || {
            let config = json!({ "Env": null, "Cmd": null, "Labels": { "a": null }, "WorkingDir": null, "User": null });
            json!({ "os": "linux", "architecture": "amd64", "variant": null, "config": config })
        },
        docker: "is the same as nothing",
        ours: Takes(&[], "", &[], 1, &[]),
    },
];

fn parsed(case: &Case) -> Result<Parsed, String> {
    let layer = b"a layer".to_vec();
    let config = configuration(std::slice::from_ref(&layer), &(case.build)()).to_string();
    let described = |kind: &str, content: &[u8]| json!({ "mediaType": kind, "digest": digest(content).to_string(), "size": content.len() });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": described(CONFIG, config.as_bytes()), "layers": [described(LAYER, &layer)],
    });
    let Ok(Document::Manifest(manifest)) = Document::parse(manifest.to_string().as_bytes(), None) else {
        panic!("{}", case.name)
    };
    let platform = "linux/amd64".parse().unwrap();
    config::parse(config.as_bytes(), &manifest, &platform).map_err(|error| error.to_string())
}

#[test]
fn configurations_are_read_as_by_docker_or_refused() {
    for case in CASES {
        assert!(!case.docker.is_empty());
        match (parsed(case), &case.ours) {
            (Ok(Parsed { config, notes, .. }), Takes(env, directory, entrypoint, labels, words)) => {
                assert_eq!(config.env, *env, "{}", case.name);
                assert_eq!(config.working_dir, *directory, "{}", case.name);
                assert_eq!(config.entrypoint, *entrypoint, "{}", case.name);
                assert_eq!(config.labels.len(), *labels, "{}", case.name);
                assert_eq!(notes.len(), words.len(), "{}: {notes:?}", case.name);
                for (note, word) in notes.iter().zip(*words) {
                    assert!(note.contains(word) && !note.ends_with('.'), "{}: {note}", case.name);
                }
            }
            (Err(found), Refuses(why)) => assert!(found.contains(why), "{}: {found}", case.name),
            (found, _) => panic!("{}: {found:?}", case.name),
        }
    }
}
