//! The command against the real service, whose sandboxes are in memory and have no agent.

use std::{fs, path::Path};

use banger_image::fixtures::layout::{self, Layout};
use serde_json::{Value, json};

use crate::host::{Ended, Host, until};

/// Creates a host with an image and a kernel of the default names.
pub fn host_with_image() -> Option<Host> {
    let host = Host::real()?;
    for (name, content) in [("rootfs", ext4()), ("vmlinux", b"\x7fELF".to_vec())] {
        fs::write(host.path(name), content).unwrap();
    }
    let file = |name: &str| host.path(name).to_str().unwrap().to_owned();
    let image = host.banger(&["image", "register", "--name", "debian-bookworm", "--rootfs", &file("rootfs")]);
    assert_eq!((image.status, image.output.as_str()), (0, "debian-bookworm\n"), "{image:?}");
    let kernel = host.banger(&["kernel", "import", "--name", "debian", "--vmlinuz", &file("vmlinux")]);
    assert_eq!((kernel.status, kernel.output.as_str()), (0, "debian\n"), "{kernel:?}");
    Some(host)
}

/// Returns as much of a file system as the in-memory service reads.
fn ext4() -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    bytes
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[test]
fn a_sandbox_lives_and_ends() {
    let Some(host) = host_with_image() else { return };
    let created = host.banger(&["vm", "create", "--json", "--name", "web", "--memory", "512MiB"]);
    let web = json(&created);
    assert_eq!(
        (&web["name"], &web["state"], &web["ready"]),
        (&"web".into(), &"running".into(), &true.into())
    );
    assert_eq!((&web["image_name"], &web["memory"]), (&"debian-bookworm".into(), &(512u64 << 20).into()));
    let stages: Vec<_> = created.errors.lines().filter_map(|line| line.split(':').next()).collect();
    // A stage that ends before its signal is read is not printed; the others are in order.
    let mut expected = ["disk", "start", "boot"].into_iter();
    assert!(stages.iter().all(|stage| expected.any(|next| next == *stage)), "{created:?}");

    assert_eq!(host.banger(&["vm", "stop", "web"]).output, "web: stopped\n");
    assert_eq!(json(&host.banger(&["vm", "show", "--json", "web"]))["state"], "stopped");
    let exec = host.banger(&["vm", "exec", "web", "--", "true"]);
    assert_eq!(exec.status, 125);
    assert!(exec.errors.contains("hint: `banger vm start web` boots it."), "{exec:?}");
    assert_eq!(host.banger(&["vm", "start", "web"]).output, "web: started\n");

    let refused = host.banger(&["vm", "delete", "web"]);
    assert_eq!(refused.status, 1);
    assert!(refused.errors.contains("`banger vm delete --force web`"), "{refused:?}");
    assert_eq!(host.banger(&["vm", "delete", "--force", "web"]).output, "web: deleted\n");
    assert_eq!(json(&host.banger(&["vm", "list", "--json"])), Value::Array(Vec::new()));
}

#[test]
fn an_image_has_several_names_until_the_last_is_deleted() {
    let Some(host) = host_with_image() else { return };
    let names = |filter: &str| {
        let list = host.banger(&["images", "--filter", filter, "--format", "{{.Name}}", "--sort", "name"]);
        list.output.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(host.banger(&["tag", "debian-bookworm", "base"]).output, "debian-bookworm: tagged base\n");
    let tag = json(&host.banger(&["image", "tag", "--json", "base", "tool"]));
    assert_eq!((&tag["name"], &tag["shared"]), (&"tool".into(), &false.into()));
    let taken = host.banger(&["tag", "base", "tool"]);
    assert_eq!(taken.status, 1);
    assert!(taken.errors.starts_with("error: you already have an image tool"), "{taken:?}");
    assert_eq!(names("reference=b"), ["base", "debian-bookworm"]);
    assert_eq!(names("name=base"), ["base"]);
    assert_eq!(names("shared=true"), [""; 0]);
    let unknown = host.banger(&["image", "list", "-f", "dangling=true"]);
    assert_eq!(unknown.status, 2);
    assert!(unknown.errors.contains("there is no key \"dangling\"; choose one of reference"), "{unknown:?}");
    let unknown = host.banger(&["kernel", "list", "--filter", "reference=x"]);
    assert!(
        unknown.errors.contains("there is no key \"reference\"; choose one of name, version"),
        "{unknown:?}"
    );
    let kernels = ["kernel", "list", "--filter", "version=6", "--format", "{{.Name}}"];
    assert_eq!(host.banger(&kernels).output, "debian\n");

    host.banger(&["vm", "create", "-q", "--no-start", "--name", "web", "--image", "base"]);
    assert_eq!(host.banger(&["rmi", "tool"]).output, "tool: untagged\n");
    assert!(host.banger(&["rmi", "base"]).errors.contains("the image base is used by web"));
    host.banger(&["rm", "-q", "web"]);
    assert_eq!(host.banger(&["image", "delete", "base"]).output, "base: untagged\n");
    assert_eq!(host.banger(&["image", "delete", "debian-bookworm"]).output, "debian-bookworm: deleted\n");
    assert_eq!(names("name=b"), [""; 0]);
}

#[test]
fn a_run_leaves_nothing_even_without_an_agent() {
    let Some(host) = host_with_image() else { return };
    let ended = host.banger(&["vm", "run", "-q", "--rm", "--", "true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.errors.starts_with("error: guests in memory have no agent."), "{ended:?}");
    assert_eq!(host.banger(&["vm", "list", "-q"]).output, "");
}

#[test]
fn a_detached_run_stays_and_has_a_generated_name() {
    let Some(host) = host_with_image() else { return };
    let run = host.banger(&["vm", "run", "-q", "-d"]);
    assert_eq!((run.status, run.errors.as_str()), (0, ""), "{run:?}");
    assert_eq!(host.banger(&["vm", "list", "-q"]).output, run.output);
    let name = run.output.trim_end();
    assert!(name.contains('-'), "{name}");
    let found = host.banger(&["vm", "show", "--json", name]);
    let id = json(&found)["id"].as_str().unwrap()[..8].to_owned();
    let killed = host.banger(&["vm", "kill", &id]);
    assert_eq!(killed.output, format!("{id}: killed\n"), "{killed:?}");
    until("the sandbox has ended", || {
        json(&host.banger(&["vm", "show", "--json", name]))["state"] != "stopping"
    });
}

#[test]
fn refusals_are_sentences_with_hints() {
    let Some(host) = host_with_image() else { return };
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    for (args, expect) in [
        (&["vm", "show", "nope"][..], "error: there is no sandbox nope."),
        (&["vm", "create", "--name", "web"], "error: you already have a sandbox web."),
        (&["vm", "create", "--name", "Bad Name"], "error: Bad Name is not a valid name"),
        (&["vm", "create", "--memory", "10TiB"], "error: memory must be between"),
        (&["vm", "create", "--pull", "never", "--image", "nope"], "error: there is no image nope."),
        (&["vm", "create", "--kernel", "nope"], "error: there is no kernel nope."),
        (&["image", "delete", "debian-bookworm"], "error: the image debian-bookworm is used by web."),
        (&["image", "show", "nope"], "error: there is no image nope."),
        (&["kernel", "show", "nope"], "error: there is no kernel nope."),
    ] {
        let ended = host.banger(args);
        assert_eq!(ended.status, 1, "{args:?}: {ended:?}");
        assert!(ended.errors.starts_with(expect), "{args:?}: {ended:?}");
    }
    assert_eq!(host.banger(&["vm", "list", "-q"]).output, "web\n");
}

#[test]
fn objects_are_listed_and_shown() {
    let Some(host) = host_with_image() else { return };
    let images = json(&host.banger(&["image", "list", "--json"]));
    assert_eq!(images[0], json(&host.banger(&["image", "show", "--json", "debian-bookworm"])));
    assert_eq!((&images[0]["name"], &images[0]["shared"]), (&"debian-bookworm".into(), &false.into()));
    let kernels = json(&host.banger(&["kernel", "list", "--json"]));
    assert_eq!(kernels[0], json(&host.banger(&["kernel", "show", "--json", "debian"])));
    assert_eq!(host.banger(&["kernel", "rm", "debian"]).output, "debian: deleted\n");
    assert_eq!(host.banger(&["image", "rm", "debian-bookworm"]).output, "debian-bookworm: deleted\n");
    assert_eq!(host.banger(&["image", "list", "--json"]).output, "[]\n");
}

#[test]
fn doctor_and_version_ask_the_service() {
    let Some(host) = Host::real() else { return };
    let checks = json(&host.banger(&["doctor", "--json"]));
    assert!(checks.as_array().is_some_and(|checks| !checks.is_empty()), "{checks}");
    assert_eq!(json(&host.banger(&["doctor", "--fix", "--json"])), checks, "there is nothing to repair");
    let version = json(&host.banger(&["version", "--json"]));
    assert_eq!(version["service"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn an_image_of_a_registry_is_pulled_when_it_is_missing() {
    let Some(host) = host_with_image() else { return };
    let pulled = host.banger(&["image", "pull", "registry.test/library/alpine:3"]);
    assert_eq!((pulled.status, pulled.output.as_str()), (0, "alpine-3\n"), "{pulled:?}");
    let again = host.banger(&["image", "pull", "-q", "--json", "registry.test/library/alpine:3"]);
    assert_eq!(json(&again)["source"], "registry.test/library/alpine:3");
    assert_eq!(json(&again)["config"]["env"][0], "PATH=/usr/bin:/bin");

    let create = |args: &[&str]| {
        let mut all = vec!["vm", "create", "--no-start", "-q", "--json", "--image"];
        all.extend(args);
        host.banger(&all)
    };
    assert_eq!(
        json(&create(&["registry.test/library/alpine:3", "--pull", "never"]))["image_name"],
        "alpine-3"
    );
    assert_eq!(json(&create(&["registry.test/org/tool"]))["image_name"], "tool");
    assert_eq!(json(&create(&["registry.test/org/tool", "--pull", "always"]))["image_name"], "tool");
    let never = create(&["registry.test/org/other", "--pull", "never"]);
    assert_eq!(never.status, 1);
    assert!(never.errors.starts_with("error: there is no image registry.test/org/other."), "{never:?}");
    let misspelt = create(&["missing"]);
    assert!(misspelt.errors.contains("hint: this host has no image missing"), "{misspelt:?}");
}

#[test]
fn credentials_of_docker_login_reach_the_service() {
    let Some(host) = host_with_image() else { return };
    let private = ["image", "pull", "-q", "registry.test/private"];
    let refused = host.banger(&private);
    assert_eq!(refused.status, 1);
    assert!(refused.errors.contains("hint: log in with `docker login REGISTRY`"), "{refused:?}");
    // alice:secret
    let config = r#"{"auths":{"registry.test":{"auth":"YWxpY2U6c2VjcmV0"}}}"#;
    for (directory, file) in [(".docker", "config.json"), (".config/containers", "auth.json")] {
        let directory = host.home().join(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(file), config).unwrap();
        let pulled = host.banger(&private);
        assert_eq!((pulled.status, pulled.output.as_str()), (0, "private\n"), "{pulled:?}");
        assert_eq!(host.banger(&["image", "delete", "private"]).status, 0);
        fs::remove_file(directory.join(file)).unwrap();
    }
    let helper = r#"{"credHelpers":{"registry.test":"no-such-helper"}}"#;
    fs::write(host.home().join(".docker/config.json"), helper).unwrap();
    let failed = host.banger(&private);
    assert!(failed.errors.starts_with("error: cannot read your registry credentials"), "{failed:?}");
}

#[test]
fn the_cache_of_registries_is_pruned() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["image", "pull", "-q", "registry.test/org/tool"]);
    let prune = |more: &[&str]| host.banger(&[&["image", "cache", "prune", "-q"], more].concat()).output;
    assert_eq!(prune(&["--dry-run"]), "would remove 6 MiB in 2 files\n");
    assert_eq!(prune(&["--older-than", "0s"]), "removed 6 MiB in 2 files\n");
    assert_eq!(prune(&["--json"]), "{\n  \"blobs\": 0,\n  \"bytes\": 0,\n  \"dry_run\": false\n}\n");
}

#[test]
fn catalog_entries_are_listed_and_pulled() {
    let Some(host) = Host::real() else { return };
    let entries = json(&host.banger(&["image", "list", "--available", "--json"]));
    let names: Vec<_> =
        entries.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["debian-bookworm", "tool", "later"]);
    assert_eq!((&entries[0]["here"], &entries[0]["size"]), (&false.into(), &(8 << 20).into()));
    let pulled = host.banger(&["kernel", "pull", "debian", "--name", "mine"]);
    assert_eq!((pulled.status, pulled.output.as_str()), (0, "mine\n"), "{pulled:?}");
    assert_eq!(host.banger(&["image", "pull", "-q", "tool"]).output, "tool\n");
    let table = host.banger(&["image", "list", "--available", "--refresh"]);
    let line = |name: &str| {
        let line = table.output.lines().find(|line| line.starts_with(name)).unwrap();
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(line("tool"), ["tool", "1", "-", "yes", "sim", "A tool of a registry"], "{table:?}");
    assert_eq!(line("later")[3], "not published", "{table:?}");
    let kernels = json(&host.banger(&["kernel", "list", "--available", "--json"]));
    assert_eq!((&kernels[0]["name"], &kernels[0]["here"]), (&"debian".into(), &true.into()));

    let later = host.banger(&["image", "pull", "later"]);
    assert_eq!(later.status, 1);
    assert!(
        later.errors.contains("error: later is in the catalog sim and is not published for this host yet")
    );
    assert!(later.errors.contains("`banger image build later` builds it"), "{later:?}");
    let nowhere = host.banger(&["kernel", "pull", "nope"]);
    assert!(nowhere.errors.contains("error: nope is in no catalog."), "{nowhere:?}");
    assert_eq!(host.banger(&["image", "list", "--refresh"]).status, 2);
}

#[test]
fn the_default_image_is_pulled_and_the_kernel_of_the_host_imported() {
    let Some(host) = Host::real() else { return };
    let never = host.banger(&["vm", "create", "--no-start", "--pull", "never"]);
    assert_eq!(never.status, 1);
    assert!(never.errors.starts_with("error: there is no image debian-bookworm."), "{never:?}");
    assert!(
        never.errors.contains("hint: the default image is not on this host, and `--pull never` forbids"),
        "{never:?}"
    );
    let made = host.banger(&["vm", "create", "--no-start", "--json"]);
    assert_eq!(made.status, 0, "{made:?}");
    let vm = json(&made);
    assert_eq!((&vm["image_name"], &vm["kernel_name"]), (&"debian-bookworm".into(), &"host".into()));
    let image = json(&host.banger(&["image", "show", "--json", "debian-bookworm"]));
    assert!(image["source"].as_str().unwrap().starts_with("catalog:sim/debian-bookworm@sha256:"), "{image}");
    // Only once: the next sandbox uses them.
    let again = host.banger(&["vm", "create", "--no-start", "--pull", "never"]);
    assert_eq!(again.status, 0, "{again:?}");
}

#[test]
fn an_oci_image_in_files_is_registered_and_keeps_its_configuration() {
    let Some(host) = host_with_image() else { return };
    let layout = host.path("layout");
    write_layout(&layout, &json!({}));
    let made =
        host.banger(&["image", "register", "--name", "mine", "--oci", layout.to_str().unwrap(), "--json"]);
    assert_eq!(made.status, 0, "{made:?}");
    assert_eq!(json(&made)["config"]["cmd"][0], "/bin/sh");
    // It gives neither a name nor a kernel; a bundle does.
    let layout_alone = ["image", "register", "--oci", layout.to_str().unwrap()];
    let unnamed = host.banger(&layout_alone);
    assert_eq!(unnamed.status, 2, "{unnamed:?}");
    assert!(unnamed.errors.contains("`--name NAME` gives it one"), "{unnamed:?}");
    let bundle = |kernel: &str| {
        write_layout(&layout, &json!({ "dev.banger.name": "bundled", "dev.banger.kernel": kernel }));
    };
    bundle("debian");
    let bundled = host.banger(&layout_alone);
    assert_eq!((bundled.status, bundled.output.as_str()), (0, "bundled\n"), "{bundled:?}");
    let shown = |kind, name| json(&host.banger(&[kind, "show", "--json", name]));
    assert_eq!(shown("image", "bundled")["kernel_id"], shown("kernel", "debian")["id"]);
    bundle("nowhere");
    let other = host.banger(&["image", "register", "--name", "other", "--oci", layout.to_str().unwrap()]);
    assert_eq!((other.status, other.output.as_str()), (0, "other\n"), "{other:?}");
    assert!(
        other.errors.contains("the image names the kernel \"nowhere\", which is not on this host"),
        "{other:?}"
    );
    let both = ["image", "register", "--name", "x", "--oci", "a", "--rootfs", "b"];
    assert_eq!((host.banger(&both).status, host.banger(&both[..4]).status), (2, 2));
    fs::remove_file(layout.join("index.json")).unwrap();
    let none = host.banger(&["image", "register", "--name", "none", "--oci", layout.to_str().unwrap()]);
    assert_eq!(none.status, 1);
    assert!(none.errors.contains("index.json"), "{none:?}");
}

/// Writes a layout with an image for this host, whose manifest has these annotations.
fn write_layout(directory: &Path, annotations: &Value) {
    let (mut layout, layer) = (Layout::default(), b"a layer".to_vec());
    let platform = if std::env::consts::ARCH == "aarch64" { "linux/arm64" } else { "linux/amd64" };
    let config =
        layout::configuration(std::slice::from_ref(&layer), &layout::config_on(platform)).to_string();
    let config = layout.blob(layout::CONFIG, config.as_bytes());
    let layer = layout.blob(layout::LAYER, &layer);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": layout::MANIFEST, "config": config, "layers": [layer],
        "annotations": annotations,
    });
    let image = layout.blob(layout::MANIFEST, manifest.to_string().as_bytes());
    layout.index(&[image]).write(directory);
}

#[test]
fn an_image_is_registered_with_its_own_kernel() {
    let Some(host) = host_with_image() else { return };
    let file = |name: &str| host.path(name).to_str().unwrap().to_owned();
    let (rootfs, vmlinux) = (file("rootfs"), file("vmlinux"));
    let register = |name: &str| {
        host.banger(&["image", "register", "--name", name, "--rootfs", &rootfs, "--vmlinuz", &vmlinux])
    };
    let made = register("whole");
    assert_eq!((made.status, made.output.as_str()), (0, "whole\n"), "{made:?}");
    let shown = |kind| json(&host.banger(&[kind, "show", "--json", "whole"]));
    assert_eq!(shown("image")["kernel_id"], shown("kernel")["id"]);
    // The kernel of an image that cannot be created is removed with it.
    let taken = register("debian-bookworm");
    assert_eq!(taken.status, 1, "{taken:?}");
    let kernels = json(&host.banger(&["kernel", "list", "--json"]));
    let names: Vec<_> = kernels.as_array().unwrap().iter().map(|kernel| &kernel["name"]).collect();
    assert_eq!(names, ["debian", "whole"]);
    let two = [
        "image",
        "register",
        "--name",
        "x",
        "--rootfs",
        &rootfs,
        "--kernel",
        "debian",
        "--vmlinuz",
        &vmlinux,
    ];
    assert_eq!(host.banger(&two).status, 2);
}

#[test]
fn an_image_is_shared_and_unshared() {
    let Some(host) = host_with_image() else { return };
    let shared = || json(&host.banger(&["image", "show", "--json", "debian-bookworm"]))["shared"].clone();
    let promoted = host.banger(&["image", "promote", "debian-bookworm"]);
    assert_eq!(promoted.output, "debian-bookworm: shared\n", "{promoted:?}");
    assert_eq!(shared(), true);
    let back = host.banger(&["image", "promote", "--private", "debian-bookworm", "nope"]);
    assert_eq!((back.status, back.output.as_str()), (1, "debian-bookworm: private\n"), "{back:?}");
    assert_eq!(shared(), false);
}

#[test]
fn metrics_and_the_history_of_a_sandbox_are_printed() {
    let Some(host) = host_with_image() else { return };
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    let web = json(&host.banger(&["vm", "show", "--json", "web"]));
    assert!(web.get("changes").is_none() && web.get("last_start").is_none(), "{web}");
    let metrics = host.banger(&["metrics"]);
    assert_eq!((metrics.status, metrics.errors.as_str()), (0, ""), "{metrics:?}");
    let ready = format!("banger_sandbox_ready{{id={}}} 1.0\n", web["id"]);
    assert!(metrics.output.contains(&ready) && metrics.output.ends_with("# EOF\n"), "{metrics:?}");

    host.banger(&["vm", "stop", "-q", "web"]);
    let web = json(&host.banger(&["vm", "show", "--events", "--json", "web"]));
    let phases: Vec<_> = web["last_start"].as_array().unwrap().iter().map(|row| &row["phase"]).collect();
    assert_eq!(phases, ["prepare", "disks", "jail", "network", "vmm", "agent", "guest"]);
    let last = web["changes"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["state"], &last["state_reason"]), (&"stopped".into(), &"user-request".into()));
    assert_eq!(web["name"], "web");
    let shown = host.banger(&["vm", "show", "--events", "web"]).output;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("PHASE") && lines.iter().any(|line| line.starts_with("total")), "{shown}");
    assert!(lines.last().unwrap().contains("a user asked for it (user-request)"), "{shown}");
    let missing = host.banger(&["vm", "show", "--events", "nope"]);
    assert_eq!((missing.status, missing.output.as_str()), (1, ""), "{missing:?}");
}

#[test]
fn an_agent_whose_sandbox_would_be_refused_builds_no_image() {
    let Some(host) = host_with_image() else { return };
    let directory = host.home().join(".config/banger/agents");
    fs::create_dir_all(&directory).unwrap();
    let preset = |egress: &str| {
        let text = format!(
            "command = ['true']\negress = ['{egress}']\n[recipe]\nbase = 'debian-bookworm'\ncommands = ['true']\n"
        );
        fs::write(directory.join("tool.toml"), text).unwrap();
    };
    let refused = |options: &[&str], expect: &str| {
        let mut command = host.command(&[&["agent", "tool"], options].concat());
        let output = command.current_dir(host.home()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(125) && told.contains(expect), "{told}");
        assert!(!told.contains("building"), "{told}");
    };
    preset("pakages");
    refused(&[], "there is no egress preset pakages");
    preset("a.example");
    refused(&["--name", "Not a name"], "error: ");
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    refused(&["--name", "web"], "you already have a sandbox web.\nhint: `--name NAME`");
    assert_eq!(host.banger(&["vm", "list", "-q"]).output, "web\n");
}
