//! Images are pushed to a registry on loopback.

use std::{fs, io::Read, process::Command};

use banger_image::fixtures::{layout, tar::digest};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    host::{Ended, Host},
    registry::{Fault, Gate, Registry},
    service::{LAYOUT, exported_layer},
};

/// Creates a host with an image that has a layout.
pub fn host_with_layout() -> Host {
    let host = Host::new();
    fs::write(host.path("rootfs"), "x").unwrap();
    let rootfs = host.path("rootfs").to_str().unwrap().to_owned();
    let registered = host.banger(&["image", "register", "-q", "--name", LAYOUT, "--rootfs", &rootfs]);
    assert_eq!(registered.status, 0, "{registered:?}");
    host
}

fn push(host: &Host, reference: &str, more: &[&str]) -> Ended {
    host.banger(&[&["image", "push", LAYOUT, reference], more].concat())
}

fn log_in(host: &Host, registry: &Registry) {
    fs::create_dir_all(host.home().join(".docker")).unwrap();
    let name = registry.reference("");
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"YWxpY2U6c2VjcmV0"}}}}}}"#, name.trim_end_matches('/'));
    fs::write(host.home().join(".docker/config.json"), config).unwrap();
}

fn manifest(registry: &Registry, name: &str) -> Value {
    serde_json::from_slice(&registry.manifest(name).unwrap()).unwrap()
}

#[test]
fn an_image_that_is_pushed_has_the_content_that_was_exported() {
    let (host, registry) = (host_with_layout(), Registry::start());
    let pushed = push(&host, &registry.reference("team/tool:1"), &[]);
    assert_eq!(pushed.status, 0, "{pushed:?}");
    let stored = registry.manifest("team/tool:1").unwrap();
    assert_eq!(pushed.output, format!("{}\n", digest(&stored)));
    let stored: Value = serde_json::from_slice(&stored).unwrap();
    let layer = &stored["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let packed = registry.blob("team/tool", layer["digest"].as_str().unwrap());
    assert_eq!(layer["size"], packed.len());
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain).unwrap();
    assert!(plain == exported_layer());
    let config = registry.blob("team/tool", stored["config"]["digest"].as_str().unwrap());
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], digest(&plain).to_string());

    // What is there is not sent again, and a name without a tag is `latest`.
    registry.requests();
    let again = push(&host, &registry.reference("team/tool"), &["--json"]);
    let shown: Value = serde_json::from_str(&again.output).unwrap();
    assert_eq!(shown["reference"], registry.reference("team/tool:latest"));
    assert_eq!(format!("{}\n", shown["digest"].as_str().unwrap()), pushed.output);
    assert!(shown["uploaded"].as_u64().unwrap() < 2000, "{shown}");
    assert!(shown["size"].as_u64().unwrap() > packed.len() as u64, "{shown}");
    let requests = registry.requests();
    let methods: Vec<&str> = requests.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(methods, ["HEAD", "HEAD", "PUT"], "{requests:?}");
    assert_eq!(registry.manifest("team/tool:latest"), registry.manifest("team/tool:1"));
}

#[test]
fn layers_that_another_repository_has_are_mounted() {
    let (host, registry) = (host_with_layout(), Registry::start());
    assert_eq!(push(&host, &registry.reference("team/base:1"), &["-q"]).status, 0);
    registry.requests();
    let pushed = push(&host, &registry.reference("team/tool:1"), &["--mount-from", "team/base", "-q"]);
    assert_eq!(pushed.status, 0, "{pushed:?}");
    let requests = registry.requests();
    assert_eq!(requests.iter().filter(|line| line.starts_with("PUT")).count(), 1, "{requests:?}");
    // Where the other repository has nothing, it is sent.
    let pushed = push(&host, &registry.reference("team/other:1"), &["--mount-from", "team/none", "-q"]);
    assert_eq!(pushed.status, 0, "{pushed:?}");
    assert_eq!(registry.manifest("team/other:1"), registry.manifest("team/base:1"));
}

#[test]
fn the_login_of_docker_is_used_and_a_missing_one_is_told() {
    for gate in [Gate::Password, Gate::Token] {
        let (host, registry) = (host_with_layout(), Registry::start());
        registry.gate(gate);
        let reference = registry.reference("team/tool:1");
        let refused = push(&host, &reference, &["-q"]);
        assert_eq!((refused.status, refused.output.as_str()), (1, ""), "{refused:?}");
        let error = format!("requires a login to push {reference}");
        assert!(refused.errors.contains(&error) && refused.errors.contains("`docker login"), "{refused:?}");
        log_in(&host, &registry);
        let pushed = push(&host, &reference, &["-q"]);
        assert_eq!((pushed.status, pushed.errors.as_str()), (0, ""), "{pushed:?}");
        // A login that the registry does not know.
        let config = fs::read_to_string(host.home().join(".docker/config.json")).unwrap();
        let config = config.replace("YWxpY2U6c2VjcmV0", "Ym9iOnNlY3JldA==");
        fs::write(host.home().join(".docker/config.json"), config).unwrap();
        let denied = push(&host, &reference, &["-q"]);
        assert!(denied.status == 1 && denied.errors.contains("does not let you push"), "{denied:?}");
        assert!(!denied.errors.contains("secret"), "{denied:?}");
    }
}

#[test]
fn an_upload_that_breaks_continues_or_begins_again() {
    let (host, registry) = (host_with_layout(), Registry::start());
    // Half of the layer has arrived: the rest follows.
    registry.fault("PUT /v2/team/tool/blobs/uploads/", 1, Fault::Cut(1 << 20));
    // A question that fails does not forget it.
    registry.fault("GET /v2/team/tool/blobs/uploads/", 1, Fault::Says(503, "busy"));
    let pushed = push(&host, &registry.reference("team/tool:1"), &["-q", "--compression", "none"]);
    assert_eq!((pushed.status, pushed.errors.as_str()), (0, ""), "{pushed:?}");
    let requests = registry.requests();
    let is_continued = requests.iter().any(|line| line.starts_with("PATCH /v2/team/tool/blobs/uploads/"));
    assert!(is_continued, "{requests:?}");
    let layer = manifest(&registry, "team/tool:1")["layers"][0].clone();
    assert!(registry.blob("team/tool", layer["digest"].as_str().unwrap()) == exported_layer());

    // The registry has forgotten it.
    registry.fault("PUT /v2/team/lost/blobs/uploads/", 2, Fault::Lose(1 << 20));
    let pushed = push(&host, &registry.reference("team/lost:1"), &["-q", "--compression", "none"]);
    assert_eq!((pushed.status, pushed.errors.as_str()), (0, ""), "{pushed:?}");
    assert_eq!(registry.manifest("team/lost:1"), registry.manifest("team/tool:1"));

    // The registry continues nothing.
    registry.fault("PUT /v2/team/none/blobs/uploads/", 1, Fault::Cut(1 << 20));
    registry.fault("PATCH ", 1, Fault::Says(416, "no"));
    let pushed = push(&host, &registry.reference("team/none:1"), &["-q", "--compression", "none"]);
    assert_eq!((pushed.status, pushed.errors.as_str()), (0, ""), "{pushed:?}");

    // A registry that is busy is asked again; one that stays so is given up.
    registry.fault("PUT /v2/team/busy/manifests/", 2, Fault::Says(503, "try later"));
    assert_eq!(push(&host, &registry.reference("team/busy:1"), &["-q"]).status, 0);
    registry.fault("HEAD /v2/team/down/", 100, Fault::Says(503, ""));
    let given_up = push(&host, &registry.reference("team/down:1"), &["-q"]);
    assert_eq!(given_up.status, 1, "{given_up:?}");
    assert!(
        given_up.errors.contains("answered 503") && given_up.errors.contains("hint: push again"),
        "{given_up:?}"
    );
    assert_eq!(registry.manifest("team/down:1"), None);
}

#[test]
fn what_a_registry_refuses_is_told_in_its_words() {
    let (host, registry) = (host_with_layout(), Registry::start());
    log_in(&host, &registry);
    for (part, fault, expected) in [
        ("POST /v2/a", Fault::Says(403, "quota exceeded"), "does not let you push"),
        ("POST /v2/b", Fault::Says(403, "quota exceeded"), ": quota exceeded."),
        ("PUT /v2/c/blobs", Fault::Says(413, "too large"), "it takes no layer of this size: too large."),
        ("POST /v2/d", Fault::Says(404, "name unknown"), "there is no repository d: name unknown."),
        ("POST /v2/e", Fault::Says(412, "project quota"), "412 Precondition Failed: project quota."),
        ("POST /v2/f", Fault::Away, "it names an address that is not encrypted."),
        ("PUT /v2/g/manifests", Fault::Other, "it has stored another manifest than was sent."),
        ("POST /v2/h", Fault::Says(507, ""), "it has no space left"),
    ] {
        let repository = part.split("/v2/").nth(1).unwrap().split('/').next().unwrap();
        registry.fault(part, 1, fault);
        let refused = push(&host, &registry.reference(repository), &["-q"]);
        assert_eq!((refused.status, refused.output.as_str()), (1, ""), "{part}: {refused:?}");
        assert!(refused.errors.contains(expected), "{part}: {refused:?}");
    }
}

#[test]
fn what_cannot_be_pushed_asks_no_registry() {
    let (host, registry) = (host_with_layout(), Registry::start());
    let missing = host.banger(&["image", "push", "nope", &registry.reference("a")]);
    assert_eq!(missing.status, 1, "{missing:?}");
    for wrong in
        [&registry.reference("A:1"), &format!("{}@sha256:{}", registry.reference("a"), "0".repeat(64))]
    {
        assert_eq!(push(&host, wrong, &[]).status, 2, "{wrong}");
    }
    assert_eq!(push(&host, &registry.reference("a"), &["--mount-from", "b:1"]).status, 2);
    // An archive that is no image: what this service exports of others.
    let rootfs = host.path("rootfs").to_str().unwrap().to_owned();
    assert_eq!(host.banger(&["image", "register", "-q", "--name", "other", "--rootfs", &rootfs]).status, 0);
    let damaged = host.banger(&["image", "push", "other", &registry.reference("a")]);
    assert!(damaged.status == 1 && damaged.errors.contains("error: cannot pack other"), "{damaged:?}");
    assert_eq!(registry.requests(), [""; 0]);
}

#[test]
fn proxies_of_the_environment_are_not_asked_for_this_host() {
    let (host, registry) = (host_with_layout(), Registry::start());
    let proxied = |reference: &str| {
        let mut command: Command = host.command(&["image", "push", "-q", LAYOUT, reference]);
        for name in ["http_proxy", "https_proxy"] {
            command.env(name, format!("http://{}", registry.reference("").trim_end_matches('/')));
        }
        command.output().unwrap()
    };
    assert!(proxied(&registry.reference("team/tool:1")).status.success());
    registry.requests();
    registry.fault("CONNECT", 100, Fault::Says(403, "no"));
    let refused = proxied("registry.test/team/tool:1");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let requests = registry.requests();
    assert!(requests.iter().all(|line| line == "CONNECT registry.test:443"), "{requests:?}");
    assert!(!requests.is_empty(), "{refused:?}");
}

#[test]
fn an_interrupted_push_leaves_no_image() {
    let (host, registry) = (host_with_layout(), Registry::start());
    registry.fault("PUT /v2/team/tool/manifests/", 100, Fault::Says(503, "busy"));
    let running = host.start(&["image", "push", "-q", LAYOUT, &registry.reference("team/tool:1")]);
    crate::until("the manifest is pushed", || {
        registry.requests().iter().any(|line| line.contains("/manifests/"))
    });
    running.signal(Signal::INT);
    assert_eq!(running.end().status, 130);
    assert_eq!(registry.manifest("team/tool:1"), None);
}

#[test]
fn what_is_pushed_to_dockers_registry_is_read_back() {
    let Some(program) = std::env::var_os("BANGER_TEST_DOCKER_REGISTRY") else {
        return crate::host::skip("Debian's docker-registry, named by BANGER_TEST_DOCKER_REGISTRY");
    };
    let host = host_with_layout();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: \"127.0.0.1:{port}\"}}\n",
        host.path("registry").display()
    );
    fs::write(host.path("registry.yml"), config).unwrap();
    let mut server = Command::new(program).arg("serve").arg(host.path("registry.yml")).spawn().unwrap();
    crate::until("the registry listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let at = |name: &str| format!("localhost:{port}/{name}");
    let outcomes: Vec<Ended> = ["gzip", "zstd", "none"]
        .into_iter()
        .map(|form| push(&host, &at(&format!("team/tool:{form}")), &["-q", "--compression", form]))
        .collect();
    let mounted = push(&host, &at("team/other:1"), &["--json", "-q", "--mount-from", "team/tool"]);
    server.kill().unwrap();
    server.wait().unwrap();
    for pushed in &outcomes {
        assert_eq!((pushed.status, pushed.errors.as_str()), (0, ""), "{pushed:?}");
        // It keeps what it has checked below its digest.
        let hex = pushed.output.trim_end().trim_start_matches("sha256:");
        let path = format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        let manifest: Value = serde_json::from_slice(&fs::read(host.path(&path)).unwrap()).unwrap();
        assert_eq!(manifest["mediaType"], layout::MANIFEST);
    }
    let shown: Value = serde_json::from_str(&mounted.output).unwrap();
    assert!(shown["uploaded"].as_u64().unwrap() < 2000, "{shown}");
}
