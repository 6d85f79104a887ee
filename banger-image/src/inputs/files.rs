//! Images in files: Docker archives, layouts, and what looks like one. The reference is skopeo
//! (`skopeo copy docker-archive:FILE` or `oci-archive:FILE`); `docker load` takes the same.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use serde_json::{Value, json};

use super::{has, skip};
use crate::{
    archive::{self, Error, Image, Source},
    fixtures::{
        layout::{Layout, config_on, configuration, on},
        tar::{Tar, digest, pack},
    },
    oci::{config, index::Selector, manifest::Document, platform::Platform},
    packing::Packing,
};

struct Case {
    name: &'static str,
    build: fn() -> Vec<u8>,
    /// Its transport, and whether it takes the file.
    skopeo: (&'static str, bool),
    /// The first bytes of its layers, unpacked, or why it is refused.
    ours: Result<&'static [&'static str], &'static str>,
}

const DOCKER: &str = "docker-archive";
const OCI: &str = "oci-archive";

/// Layers with one file each, whose name identifies the layer.
fn layer(name: &str) -> Vec<u8> {
    Tar::default().file(name, name.as_bytes()).end()
}

/// The files of a Docker archive of one image.
fn docker(config: &str, layers: &[(&str, Vec<u8>)], tags: &Value) -> Layout {
    let plain: Vec<Vec<u8>> = layers.iter().map(|(_, content)| content.clone()).collect();
    let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
    let list = json!([{ "Config": config, "RepoTags": tags, "Layers": names }]);
    let layout =
        layers.iter().fold(Layout::default(), |all, (name, content)| all.with(name, content.clone()));
    layout
        .with(config, configuration(&plain, &config_on("linux/amd64")).to_string())
        .with("manifest.json", list.to_string())
}

fn id(text: &str) -> String {
    digest(text.as_bytes()).hex()
}

const CASES: &[Case] = &[
    Case {
        name: "docker save before version 25",
        build: || {
            let (one, two) = (format!("{}/layer.tar", id("1")), format!("{}/layer.tar", id("2")));
            let layers = [(one.as_str(), layer("lower")), (two.as_str(), layer("upper"))];
            docker(&format!("{}.json", id("c")), &layers, &json!(["tool:1"]))
                .with(&format!("{}/VERSION", id("1")), "1.0")
                .with("repositories", json!({ "tool": { "1": id("2") } }).to_string())
                .tar()
        },
        skopeo: (DOCKER, true),
        ours: Ok(&["lower", "upper"]),
    },
    Case {
        name: "docker save by id, since version 25: the index of the layout is null",
        build: || {
            let (lower, upper) = (layer("lower"), layer("upper"));
            let at = |content: &[u8]| format!("blobs/sha256/{}", digest(content).hex());
            let (one, two) = (at(&lower), at(&upper));
            let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": null });
            docker("blobs/sha256/c", &[(one.as_str(), lower), (two.as_str(), upper)], &Value::Null)
                .with("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
                .with("index.json", index.to_string())
                .tar()
        },
        skopeo: (DOCKER, true),
        ours: Ok(&["lower", "upper"]),
    },
    Case {
        name: "docker save since version 25: both lists",
        build: || {
            let mut all = Layout::default();
            let image = all.image(&[layer("lower")], &config_on("linux/amd64"));
            let config = all.0[0].0.clone();
            let list = json!([{ "Config": config, "RepoTags": ["a:1"], "Layers": [all.0[1].0.clone()] }]);
            all.index(&[on(image, "linux/amd64")]).with("manifest.json", list.to_string()).tar()
        },
        skopeo: (OCI, true),
        ours: Ok(&["lower"]),
    },
    Case {
        name: "podman save and nix: layers beside the list, and links to them for old programs",
        build: || {
            let (name, directory) = (format!("{}.tar", id("1")), id("old"));
            let mut tar = Tar::default();
            for (name, content) in
                docker(&format!("{}.json", id("c")), &[(&name, layer("only"))], &json!(["a:1"])).0
            {
                tar = tar.file(&name, &content);
            }
            tar.dir(&directory).link(b'2', &format!("{directory}/layer.tar"), &format!("../{name}")).end()
        },
        skopeo: (DOCKER, true),
        ours: Ok(&["only"]),
    },
    Case {
        name: "crane and kaniko: packed layers, and names with a colon",
        build: || {
            let lower = layer("lower");
            let packed = pack(&lower, Packing::Gzip);
            let config = configuration(&[lower], &config_on("linux/amd64")).to_string();
            let list = json!([{ "Config": "sha256:c", "RepoTags": ["a:1"], "Layers": ["1.tar.gz"] }]);
            Layout::default()
                .with("sha256:c", config)
                .with("1.tar.gz", packed)
                .with("manifest.json", list.to_string())
                .tar()
        },
        skopeo: (DOCKER, true),
        ours: Ok(&["lower"]),
    },
    Case {
        name: "a layer twice, as a symbolic link to the first one",
        build: || {
            let (one, two) = (format!("{}/layer.tar", id("1")), format!("{}/layer.tar", id("2")));
            let list = json!([{ "Config": "c.json", "RepoTags": ["a:1"], "Layers": [one, two] }]);
            let config = configuration(&[layer("lower"), layer("lower")], &config_on("linux/amd64"));
            let tar = Tar::default().dir(&id("1")).file(&one, &layer("lower")).dir(&id("2"));
            let tar =
                tar.link(b'2', &two, &format!("../{one}")).file("c.json", config.to_string().as_bytes());
            tar.file("manifest.json", list.to_string().as_bytes()).end()
        },
        skopeo: (DOCKER, true),
        ours: Ok(&["lower", "lower"]),
    },
    Case {
        name: "a layer that is a symbolic link out of the archive",
        build: || {
            let config = configuration(&[layer("x")], &config_on("linux/amd64"));
            let list = json!([{ "Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"] }]);
            let tar = Tar::default().link(b'2', "l.tar", "../../../etc/hostname");
            let tar = tar.file("c.json", config.to_string().as_bytes());
            tar.file("manifest.json", list.to_string().as_bytes()).end()
        },
        skopeo: (DOCKER, false),
        ours: Err("l.tar is missing"),
    },
    Case {
        name: "a layer whose name leads out of the archive",
        build: || {
            let config = configuration(&[layer("x")], &config_on("linux/amd64")).to_string();
            let list = json!([{ "Config": "c.json", "RepoTags": null, "Layers": ["../../l.tar"] }]);
            let all = Layout::default().with("l.tar", layer("x")).with("c.json", config);
            all.with("manifest.json", list.to_string()).tar()
        },
        skopeo: (DOCKER, false),
        ours: Err("leaves the root"),
    },
    Case {
        name: "two images in a Docker archive",
        build: || {
            let config = configuration(&[layer("x")], &config_on("linux/amd64")).to_string();
            let list = json!([
                { "Config": "a.json", "RepoTags": ["a:1"], "Layers": ["l.tar"] },
                { "Config": "b.json", "RepoTags": ["b:1"], "Layers": ["l.tar"] },
            ]);
            let all = Layout::default()
                .with("a.json", config.clone())
                .with("b.json", config)
                .with("l.tar", layer("x"));
            all.with("manifest.json", list.to_string()).tar()
        },
        skopeo: (DOCKER, false),
        ours: Err("several images that fit: a:1, b:1"),
    },
    Case {
        name: "a Docker archive for another platform",
        build: || {
            let config = configuration(&[layer("x")], &config_on("linux/arm64/v8")).to_string();
            let list = json!([{ "Config": "c.json", "RepoTags": null, "Layers": ["l.tar"] }]);
            Layout::default()
                .with("c.json", config)
                .with("l.tar", layer("x"))
                .with("manifest.json", list.to_string())
                .tar()
        },
        skopeo: (DOCKER, true),
        ours: Err("it is for linux/arm64/v8, not for linux/amd64"),
    },
    Case {
        name: "docker save before version 1.10",
        build: || {
            let all = Layout::default().with("repositories", r#"{"a":{"1":"x"}}"#);
            all.with(&format!("{}/layer.tar", id("x")), layer("x")).tar()
        },
        skopeo: (DOCKER, false),
        ours: Err("Docker before 1.10"),
    },
    Case {
        name: "a packed layout",
        build: || {
            let mut all = Layout::default();
            let image = all.image(&[layer("only")], &config_on("linux/amd64"));
            pack(&all.index(&[image]).tar(), Packing::Zstd)
        },
        skopeo: (OCI, true),
        ours: Ok(&["only"]),
    },
    Case {
        name: "a layout whose blobs are hard links",
        build: || {
            let mut all = Layout::default();
            let image = all.image(&[layer("only")], &config_on("linux/amd64"));
            let all = all.index(&[image]);
            let mut tar = Tar::default();
            for (number, (name, content)) in all.0.iter().enumerate() {
                tar = match name.starts_with("blobs/") {
                    true => tar.file(&format!("data/{number}"), content).link(
                        b'1',
                        name,
                        &format!("data/{number}"),
                    ),
                    false => tar.file(name, content),
                };
            }
            tar.end()
        },
        skopeo: (OCI, true),
        ours: Ok(&["only"]),
    },
    Case {
        name: "a layer that a registry may not hand out, but that is in the file",
        build: || {
            let mut all = Layout::default();
            let only = layer("only");
            let config = configuration(std::slice::from_ref(&only), &config_on("linux/amd64")).to_string();
            let config = all.blob("application/vnd.oci.image.config.v1+json", config.as_bytes());
            let layer = all.blob("application/vnd.oci.image.layer.nondistributable.v1.tar", &only);
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let manifest =
                json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
            let image = all.blob(kind, manifest.to_string().as_bytes());
            all.index(&[image]).tar()
        },
        skopeo: (OCI, true),
        ours: Ok(&["only"]),
    },
    Case {
        name: "xz",
        build: || b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec(),
        skopeo: (OCI, false),
        ours: Err("it is packed by xz"),
    },
    Case {
        name: "a root file system",
        build: || Tar::default().dir("etc").file("etc/passwd", b"").end(),
        skopeo: (OCI, false),
        ours: Err("it is not an image"),
    },
    Case {
        name: "an index that lists nothing, and no other list",
        build: || Layout::default().index(&[]).tar(),
        skopeo: (OCI, false),
        ours: Err("index.json lists no image"),
    },
    Case {
        name: "a blob that is missing",
        build: || {
            let mut all = Layout::default();
            let image = all.image(&[layer("only")], &config_on("linux/amd64"));
            all.0.retain(|(_, content)| !content.starts_with(b"only"));
            all.index(&[image]).tar()
        },
        skopeo: (OCI, false),
        ours: Err("is missing in it"),
    },
    Case {
        name: "a layer that is longer than its manifest says",
        build: || {
            let mut all = Layout::default();
            let image = all.image(&[layer("only")], &config_on("linux/amd64"));
            for (_, content) in all.0.iter_mut().filter(|(_, content)| content.starts_with(b"only")) {
                content.push(0);
            }
            all.index(&[image]).tar()
        },
        skopeo: (OCI, false),
        ours: Err(" bytes instead of "),
    },
];

fn temporary() -> std::io::Result<File> {
    tempfile::tempfile()
}

fn find(source: Source) -> Result<Image, Error> {
    let platform: Platform = "linux/amd64".parse().unwrap();
    archive::find(source, Selector { platform: &platform, tag: None }, Some("tool"), &temporary)
}

/// Returns the names of the files in the layers, after everything that the service checks.
fn layers_of(image: &Image) -> Vec<String> {
    let part = |number: usize| {
        let (at, length) = image.parts[number];
        let mut bytes = vec![0; length as usize];
        image.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let Document::Manifest(manifest) = Document::parse(&part(0), None).unwrap() else { panic!("an index") };
    assert_eq!(manifest.config.digest, digest(&part(1)));
    let parsed = config::parse(&part(1), &manifest, &"linux/amd64".parse().unwrap()).unwrap();
    let layers = parsed.layers.iter().enumerate().map(|(number, facts)| {
        let bytes = part(number + 2);
        assert_eq!((facts.blob.digest, facts.blob.size.0), (digest(&bytes), bytes.len() as u64));
        let tar = match crate::packing::of(&bytes).unwrap() {
            Some(Packing::Gzip) => {
                let mut tar = Vec::new();
                std::io::Read::read_to_end(&mut crate::packing::Gzip::new(&bytes[..]), &mut tar).unwrap();
                tar
            }
            _ => bytes,
        };
        assert_eq!(facts.diff_id, digest(&tar));
        let name = tar.iter().take_while(|&&byte| byte != 0).copied().collect();
        String::from_utf8(name).unwrap()
    });
    let layers: Vec<String> = layers.collect();
    assert_eq!(image.parts.len(), layers.len() + 2);
    layers
}

fn check(case: &Case, found: Result<Image, Error>, how: &str) {
    match (found.map(|image| layers_of(&image)), case.ours) {
        (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{} as {how}", case.name),
        (Err(found), Err(expect)) => {
            assert!(found.to_string().contains(expect), "{} as {how}: {found}", case.name);
            assert!(!found.to_string().contains("registry"), "{} as {how}: {found}", case.name);
        }
        (found, expect) => panic!("{} as {how}: {found:?} instead of {expect:?}", case.name),
    }
}

#[test]
fn images_in_archives_are_found_or_refused() {
    for case in CASES {
        let bytes = (case.build)();
        let mut forms = vec![("an archive", bytes.clone())];
        if crate::packing::of(&bytes) == Ok(Some(Packing::Plain)) {
            forms.push(("a packed archive", pack(&bytes, Packing::Gzip)));
        }
        for (how, bytes) in forms {
            let mut file = temporary().unwrap();
            file.write_all(&bytes).unwrap();
            check(case, Source::archive(file, &temporary).and_then(find), how);
        }
    }
}

#[test]
fn images_in_directories_are_found_or_refused() {
    if !has("tar") {
        return skip::skipped("unpacking archives into directories needs tar");
    }
    for case in CASES.iter().filter(|case| crate::packing::of(&(case.build)()) == Ok(Some(Packing::Plain))) {
        let home = tempfile::tempdir().unwrap();
        let (path, below) = (home.path().join("a.tar"), home.path().join("below"));
        fs::write(&path, (case.build)()).unwrap();
        fs::create_dir(&below).unwrap();
        assert!(Command::new("tar").arg("-xf").arg(&path).current_dir(&below).status().unwrap().success());
        let found = find(Source::directory(File::open(&below).unwrap().into()));
        // What leads out of a directory is refused where it is opened.
        match case.ours {
            Err("l.tar is missing" | "leaves the root") => {
                assert!(matches!(found, Err(Error::Io { .. })), "{found:?}")
            }
            _ => check(case, found, "a directory"),
        }
    }
}

#[test]
fn a_layer_that_is_listed_again_is_copied_once() {
    let large = Tar::default().file("large", &[b'x'; 100_000]).end();
    let mut all = Layout::default();
    let image = all.image(&vec![large.clone(); 5], &config_on("linux/amd64"));
    let name = "large.tar";
    let layers: Vec<(&str, Vec<u8>)> = vec![(name, large.clone()); 5];
    let docker = docker("c.json", &layers, &Value::Null);
    for all in [all.index(&[image]), docker] {
        let home = tempfile::tempdir().unwrap();
        all.write(home.path());
        let image = find(Source::directory(File::open(home.path()).unwrap().into())).unwrap();
        assert_eq!(layers_of(&image), ["large"; 5]);
        let length = image.file.metadata().unwrap().len();
        assert!(length < 2 * large.len() as u64, "{length}");
    }
}

#[test]
fn layers_that_are_too_large_together_are_refused_before_they_are_copied() {
    let home = tempfile::tempdir().unwrap();
    let layers = [("a.tar", layer("a")), ("b.tar", layer("b"))];
    docker("c.json", &layers, &Value::Null).write(home.path());
    // Without data, these files take no room.
    for name in ["a.tar", "b.tar"] {
        File::options().write(true).open(home.path().join(name)).unwrap().set_len(65 << 30).unwrap();
    }
    let found = archive::find(
        Source::directory(File::open(home.path()).unwrap().into()),
        Selector { platform: &"linux/amd64".parse().unwrap(), tag: None },
        Some("tool"),
        &|| panic!("a copy"),
    );
    assert!(found.unwrap_err().to_string().contains("larger than 128 GiB"));
}

#[test]
fn an_image_without_a_name_is_refused_before_it_is_copied() {
    let home = tempfile::tempdir().unwrap();
    docker("c.json", &[("a.tar", layer("a"))], &Value::Null).write(home.path());
    let found = archive::find(
        Source::directory(File::open(home.path()).unwrap().into()),
        Selector { platform: &"linux/amd64".parse().unwrap(), tag: None },
        None,
        &|| panic!("a copy"),
    );
    assert!(matches!(found, Err(Error::Unnamed)), "{found:?}");
}

#[test]
fn a_cut_archive_is_refused() {
    let bytes = (CASES[0].build)();
    for length in [600, bytes.len() / 2, bytes.len() - 3000] {
        let mut file = temporary().unwrap();
        file.write_all(&bytes[..length]).unwrap();
        assert!(Source::archive(file, &temporary).and_then(find).is_err(), "{length}");
    }
}

proptest::proptest! {
    #[test]
    fn no_change_of_an_archive_makes_a_part_lie_outside(number in 0..CASES.len(), at: usize, with: u8) {
        let mut bytes = (CASES[number].build)();
        let at = at % bytes.len();
        bytes[at] = with;
        let mut file = temporary().unwrap();
        file.write_all(&bytes).unwrap();
        if let Ok(image) = Source::archive(file, &temporary).and_then(find) {
            let length = image.file.metadata().unwrap().len();
            proptest::prop_assert!(image.parts.iter().all(|(at, size)| at + size <= length));
        }
    }
}

#[test]
fn skopeo_takes_what_the_table_says() {
    if !has("skopeo") {
        return skip::skipped("comparing with skopeo needs skopeo");
    }
    let mut wrong = Vec::new();
    for case in CASES {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("image");
        fs::write(&path, (case.build)()).unwrap();
        let (transport, takes) = case.skopeo;
        let done = skopeo(transport, &path);
        if done.status.success() != takes {
            wrong.push(format!("{}: {}", case.name, String::from_utf8_lossy(&done.stderr)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn skopeo(transport: &str, path: &Path) -> std::process::Output {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--override-os", "linux", "--override-arch", "amd64", "--insecure-policy", "copy"]);
    let out = format!("dir:{}", path.with_extension("out").display());
    skopeo.arg(format!("{transport}:{}", path.display())).arg(out).output().unwrap()
}
