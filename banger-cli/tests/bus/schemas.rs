//! Checks the output of every verb with `--json` against the schema that the command prints.

use std::{collections::BTreeSet, fs};

use jsonschema::Validator;
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    host::{Ended, Host},
    real::host_with_image,
    workspace::Bench,
};

/// The verbs that were checked.
#[derive(Default)]
struct Checked(BTreeSet<String>);

impl Checked {
    /// Runs a verb, and checks its output against its schema.
    fn check(&mut self, host: &Host, verb: &str, more: &[&str]) -> Ended {
        let words: Vec<&str> = verb.split(' ').chain(["--json"]).chain(more.iter().copied()).collect();
        let ended = host.banger(&words);
        let schema = schema(host, verb);
        match schema["title"].as_str().unwrap().starts_with("A line of ") {
            true => ended.output.lines().for_each(|line| self.hold(verb, &schema, line, &ended)),
            false => self.hold(verb, &schema, &ended.output, &ended),
        }
        ended
    }

    /// Checks that the output matches the schema, without unknown keys.
    fn hold(&mut self, verb: &str, schema: &Value, printed: &str, ended: &Ended) {
        let value: Value =
            serde_json::from_str(printed).unwrap_or_else(|error| panic!("{verb}: {error}: {ended:?}"));
        let validator = jsonschema::validator_for(&strict(schema.clone())).unwrap();
        let wrong: Vec<String> = errors(&validator, &value);
        assert!(wrong.is_empty(), "{verb}: {wrong:?} in {value:#}");
        self.0.insert(verb.to_owned());
    }
}

fn errors(validator: &Validator, value: &Value) -> Vec<String> {
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn schema(host: &Host, verb: &str) -> Value {
    let words: Vec<&str> = ["schema"].into_iter().chain(verb.split(' ')).collect();
    let ended = host.banger(&words);
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{verb}: {error}: {ended:?}"))
}

/// Makes a schema strict. Later versions may print keys that a schema does not have. This one may not.
fn strict(schema: Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let mut fields: serde_json::Map<_, _> =
                fields.into_iter().map(|(key, value)| (key, strict(value))).collect();
            // A property may have this name, too; its schema is an object.
            if fields.get("properties").is_some_and(Value::is_object)
                && fields.get("type").is_some_and(Value::is_string)
            {
                fields.entry("additionalProperties").or_insert(false.into());
            }
            Value::Object(fields)
        }
        Value::Array(items) => items.into_iter().map(strict).collect(),
        other => other,
    }
}

/// Verbs that only need the service.
fn of_the_service(checked: &mut Checked, host: &Host) {
    let rootfs = host.path("rootfs").to_str().unwrap().to_owned();
    let kernel = host.path("vmlinux").to_str().unwrap().to_owned();
    let exported = host.path("exported.tar").to_str().unwrap().to_owned();
    let settings = host.home().join(".config/banger");
    fs::create_dir_all(&settings).unwrap();
    fs::write(settings.join("config.toml"), "[[file_sync]]\nhost = '/none'\nguest = '/none'\n").unwrap();
    let presets = settings.join("agents");
    fs::create_dir_all(&presets).unwrap();
    let preset =
        "command = ['true']\nmemory = '1GiB'\n[env]\nA = 'b'\n[[file]]\npath = '~/x'\nsecret = true\n";
    fs::write(presets.join("tool.toml"), preset).unwrap();
    for (verb, more) in [
        ("doctor", &[][..]),
        ("doctor", &["--fix"]),
        ("agent list", &[]),
        ("agent show", &["tool"]),
        ("version", &[]),
        ("context list", &[]),
        ("context show", &[]),
        ("config show", &[]),
        ("config show", &["--origin"]),
        ("image register", &["--name", "mine", "--rootfs", &rootfs]),
        ("image pull", &["registry.test/library/alpine:3"]),
        ("image list", &[]),
        ("image list", &["--available"]),
        ("image show", &["alpine-3"]),
        ("image promote", &["alpine-3", "nope"]),
        ("image export", &["alpine-3", "--oci", &exported]),
        ("image cache prune", &["--dry-run"]),
        ("kernel import", &["--name", "other", "--vmlinuz", &kernel]),
        ("kernel list", &[]),
        ("kernel list", &["--available"]),
        ("kernel pull", &["debian", "--name", "pulled"]),
        ("kernel show", &["other"]),
        ("vm create", &["--name", "web", "--label", "team=x"]),
        ("vm run", &["-d", "--name", "db"]),
        ("vm publish", &["web", "8080:80", "5353:53/udp"]),
        ("vm publish", &["web"]),
        ("vm egress", &["web"]),
        ("vm forward", &["--list"]),
        ("vm set", &["--nat", "web", "nope"]),
        ("vm list", &[]),
        ("vm show", &["web"]),
        ("vm show", &["--events", "web"]),
        ("vm rename", &["web", "site"]),
        ("vm stop", &["site"]),
        ("vm commit", &["site", "committed"]),
        ("vm fork", &["site", "-n", "2"]),
        ("vm snapshot create", &["site", "clean"]),
        ("vm snapshot list", &[]),
        ("vm snapshot list", &["site"]),
        ("vm start", &["site"]),
        ("vm restart", &["site"]),
        ("vm pause", &["site", "nope"]),
        ("vm unpause", &["site"]),
        ("vm suspend", &["site", "nope"]),
        ("vm resume", &["site", "nope"]),
        ("vm kill", &["site", "nope"]),
        ("vm stop", &["db"]),
        ("vm wait", &["db", "nope"]),
        ("image rename", &["mine", "ours"]),
        ("image tag", &["ours", "tag"]),
        ("kernel rename", &["other", "linux"]),
        ("vm prune", &["--dry-run"]),
        ("vm prune", &["--force"]),
        ("vm delete", &["--force", "site", "nope"]),
        ("image delete", &["ours", "committed", "nope"]),
        ("image prune", &["--dry-run"]),
        ("kernel delete", &["linux", "nope"]),
    ] {
        checked.check(host, verb, more);
    }
}

fn events(checked: &mut Checked, host: &Host) {
    let mut events = host.start(&["events", "--json"]);
    // The first signal may be missed before the subscription is active.
    let line = std::thread::scope(|scope| {
        let line = scope.spawn(|| events.next_output());
        while !line.is_finished() {
            host.banger(&["vm", "create", "-q", "--no-start", "--name", "seen"]);
            host.banger(&["vm", "delete", "-q", "seen"]);
        }
        line.join().unwrap()
    });
    events.signal(Signal::INT);
    let ended = events.end();
    checked.hold("events", &schema(host, "events"), &line, &ended);
}

/// Verbs that need the agent, or a repository.
fn of_the_sandbox(checked: &mut Checked) {
    let bench = Bench::new();
    let (host, repo, guest) = (&bench.host, bench.repo.to_str().unwrap(), bench.guest.to_str().unwrap());
    let place = ["--guest-path", guest];
    checked.check(host, "vm run", &["--dry-run", repo]);
    let presets = host.home().join(".config/banger/agents");
    fs::create_dir_all(&presets).unwrap();
    fs::write(presets.join("tool.toml"), "command = ['true']\n").unwrap();
    checked.check(host, "agent", &["tool", "--dry-run", repo]);
    checked.check(host, "vm workspace prepare", &["--dry-run", "box", repo]);
    checked.check(host, "vm workspace prepare", &[&["-q", "box", repo][..], &place].concat());
    fs::write(bench.guest.join("lines"), "else\n").unwrap();
    fs::remove_file(bench.guest.join("run.sh")).unwrap();
    fs::write(bench.repo.join("src/main.rs"), "new\n").unwrap();
    let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let detached = checked.check(host, "vm exec", &["-d", "box", "--", "true"]);
    // The sandbox of this test is this host.
    let detached: Value = serde_json::from_str(&detached.output).unwrap();
    assert!(detached["id"].is_u64());
    host.banger(&["vm", "exec", "--session", "work", "box", "--", "true"]);
    checked.check(host, "vm commands", &["box"]);
    checked.check(host, "vm sessions", &["box"]);
    for (verb, more) in [
        ("vm workspace export", &["-q", "box"][..]),
        ("vm workspace fetch", &["-q", "box"]),
        ("vm workspace sync", &["-q", "box"]),
        ("vm ports", &["box", "nope"]),
        ("vm files", &["--recursive", "box", guest]),
        ("vm health", &["box", "nope"]),
        ("vm ping", &["-c", "2", "box"]),
        ("vm stats", &["box"]),
        ("vm top", &["box"]),
    ] {
        checked.check(host, verb, more);
    }
}

#[test]
fn the_output_of_every_verb_matches_its_schema() {
    let Some(host) = host_with_image() else { return };
    let mut checked = Checked::default();
    of_the_service(&mut checked, &host);
    events(&mut checked, &host);
    of_the_sandbox(&mut checked);
    let all: BTreeSet<String> = host.banger(&["schema"]).output.lines().map(str::to_owned).collect();
    assert!(all.len() > 30);
    let registry = crate::registry::Registry::start();
    let reference = registry.reference("team/tool:1");
    checked.check(&crate::push::host_with_layout(), "image push", &[crate::service::LAYOUT, &reference]);
    // A build needs a guest that may be cleaned; its lines are checked where they are made.
    checked.0.insert("image build".to_owned());
    assert_eq!(all, checked.0);
}

#[test]
fn a_schema_refuses_other_output() {
    let host = Host::without_service();
    let validator = jsonschema::validator_for(&strict(schema(&host, "version"))).unwrap();
    for wrong in ["{}", r#"{"client": 1, "service": null}"#, r#"{"client": "1", "service": "1", "more": 1}"#]
    {
        assert!(!errors(&validator, &serde_json::from_str(wrong).unwrap()).is_empty(), "{wrong}");
    }
    assert_eq!(
        errors(&validator, &serde_json::from_str(r#"{"client": "1", "service": null}"#).unwrap()),
        [""; 0]
    );
    let ended = host.banger(&["schema", "vm", "lsit"]);
    assert_eq!(ended.status, 2);
    assert!(
        ended.errors.starts_with("error: vm lsit has no schema.\nhint: `banger schema` lists"),
        "{ended:?}"
    );
}

#[test]
fn results_of_many_objects_are_one_array() {
    let host = Host::new();
    let ended = host.banger(&["vm", "stop", "-q", "--json", "web", "nope"]);
    assert_eq!(ended.status, 1);
    let rows: Value = serde_json::from_str(&ended.output).unwrap();
    assert_eq!((&rows[0]["reference"], &rows[0]["done"]), (&"web".into(), &"stopped".into()));
    assert_eq!(rows[1]["error"], "there is no sandbox nope");
    assert!(ended.errors.starts_with("error: nope: there is no sandbox nope."), "{ended:?}");
}
