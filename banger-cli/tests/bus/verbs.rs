//! Verbs and options as users of docker know them.

use std::{fs, thread};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    host::{Ended, Host, until},
    real::host_with_image,
};

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[test]
fn verbs_work_without_their_group() {
    let host = Host::new();
    for (flat, full) in [
        (&["ls", "-q"][..], &["vm", "list", "-q"][..]),
        (&["ps", "-aq"], &["vm", "ps", "-q"]),
        (&["stop", "-q", "db"], &["vm", "stop", "-q", "db"]),
        (&["inspect", "--json", "db"], &["vm", "show", "--json", "db"]),
        (&["exec", "web", "echo", "a"], &["vm", "exec", "web", "--", "echo", "a"]),
        (&["exec", "web", "--", "/nonexistent"], &["vm", "exec", "web", "--", "/nonexistent"]),
        (&["image", "ls"], &["images"]),
    ] {
        // A second stop has nothing to do.
        host.banger(&["start", "-q", "db"]);
        let of_group = host.banger(full);
        host.banger(&["start", "-q", "db"]);
        assert_eq!(host.banger(flat), of_group, "{flat:?}");
    }
    assert_eq!(host.banger(&["rm", "-f", "web"]).output, "web: deleted\n");
}

#[test]
fn only_the_sandboxes_of_others_need_a_password() {
    let host = Host::new();
    assert_eq!(host.banger(&["ps", "-a"]).status, 0);
    assert_eq!(host.all_calls(), ["GetManagedObjects"]);
    host.banger(&["ps", "--all-users"]);
    assert!(host.all_calls().contains(&"ListVMs".to_owned()));
}

#[test]
fn a_command_that_is_not_behind_the_separator_is_named() {
    let host = Host::new();
    for (line, hint) in [
        (&["run", "ls", "-l"][..], "hint: `banger run -- ls -l`.\n"),
        (&["run", "ls"], "hint: `banger run -- ls`.\n"),
        (&["vm", "run", "--rm", "ls"], "hint: `banger vm run --rm -- ls`.\n"),
    ] {
        let ended = host.banger(line);
        assert_eq!((ended.status, ended.output.as_str()), (2, ""), "{ended:?}");
        assert_eq!(
            ended.errors,
            format!("error: there is no directory ls; put a command after `--`.\n{hint}")
        );
    }
    let ended = host.banger(&["build", "."]);
    assert!(ended.status == 2 && ended.errors.contains("hint: `banger image build DIRECTORY`"), "{ended:?}");
    assert!(host.all_calls().is_empty());
}

#[test]
fn a_detached_run_starts_its_command_and_prints_the_name() {
    let host = Host::new();
    let file = host.path("mark");
    let script = format!("echo $A > {}", file.display());
    fs::write(host.path("env"), "A=from the file\n").unwrap();
    let env_file = host.path("env").to_str().unwrap().to_owned();
    let run = ["run", "-d", "-q", "--name", "job", "--image", "debian", "--env-file", &env_file];
    let ended = host.banger(&[&run[..], &["--", "sh", "-c", &script]].concat());
    assert_eq!(ended, Ended { status: 0, output: "job\n".into(), errors: String::new() });
    until("the command has run", || fs::read_to_string(&file).is_ok_and(|mark| mark == "from the file\n"));
    assert_eq!(host.calls("CreateVM")[0].options["lifetime"], "\"persistent\"");
    assert!(host.calls("SetLifetime").is_empty() && host.calls("Delete").is_empty());
}

#[test]
fn a_detached_run_with_rm_belongs_to_its_process_until_the_command_runs() {
    for command in [&["--", "true"][..], &[]] {
        let host = Host::new();
        let run = ["run", "-d", "--rm", "-q", "--name", "job", "--image", "debian"];
        let ended = host.banger(&[&run[..], command].concat());
        assert_eq!(ended, Ended { status: 0, output: "job\n".into(), errors: String::new() });
        assert_eq!(host.calls("CreateVM")[0].options["lifetime"], "\"caller\"");
        let calls = host.all_calls();
        let at = |member: &str| calls.iter().rposition(|call| call == member);
        assert!(at("SetLifetime") > at("OpenAgent"), "{calls:?}");
        // Its guest powers off, and the service does the rest.
        assert!(host.calls("Delete").is_empty());
    }
    let host = Host::new();
    let run = ["run", "-d", "--rm", "-q", "--name", "job", "--image", "debian", "--", "/nonexistent"];
    let ended = host.banger(&run);
    assert_eq!(ended.status, 127, "{ended:?}");
    assert_eq!((host.calls("SetLifetime").len(), host.calls("Delete").len()), (0, 1));
}

#[test]
fn a_wait_prints_the_status_of_the_last_detached_command() {
    let host = Host::new();
    assert_eq!(
        host.banger(&["wait", "web"]),
        Ended { status: 0, output: "137\n".into(), errors: String::new() }
    );
    let ended = host.banger(&["wait", "--json", "web", "nope"]);
    assert_eq!(ended.status, 1);
    assert_eq!(json(&ended)[0]["exit_status"], 137);
    assert_eq!(json(&ended)[1]["error"], "there is no sandbox nope");
}

#[test]
fn a_wait_for_a_sandbox_without_a_command_ends_with_the_sandbox() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["create", "-q", "--no-start", "--name", "web"]);
    assert_eq!(host.banger(&["wait", "web"]).output, "0\n");
}

#[test]
fn images_and_kernels_are_renamed() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["create", "-q", "--no-start", "--name", "web", "--kernel", "debian"]);
    let ended = host.banger(&["image", "rename", "debian-bookworm", "base"]);
    assert_eq!(
        ended,
        Ended { status: 0, output: "debian-bookworm: renamed to base\n".into(), errors: String::new() }
    );
    assert_eq!(json(&host.banger(&["kernel", "rename", "--json", "debian", "linux"]))["name"], "linux");
    let web = json(&host.banger(&["show", "--json", "web"]));
    assert_eq!((&web["image_name"], &web["kernel_name"]), (&"base".into(), &"linux".into()));
    let refused = host.banger(&["image", "rename", "base", "Bad Name"]);
    assert_eq!(refused.status, 1);
    assert!(refused.errors.starts_with("error: ") && !refused.errors.contains("renamed"), "{refused:?}");
}

#[test]
fn images_without_sandboxes_are_pruned() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["create", "-q", "--no-start", "--name", "web"]);
    let rootfs = host.path("rootfs").to_str().unwrap().to_owned();
    for name in ["old", "older"] {
        assert_eq!(host.banger(&["image", "register", "-q", "--name", name, "--rootfs", &rootfs]).status, 0);
    }
    assert_eq!(host.banger(&["image", "prune", "--dry-run"]).output, "old\nolder\n");
    let refused = host.banger(&["image", "prune"]);
    assert_eq!(refused.status, 1);
    assert!(refused.errors.contains("there is no terminal to ask on"), "{refused:?}");
    // All images of this host have one file, which stays with the image of web.
    assert_eq!(host.banger(&["image", "prune", "-f"]).output, "old: untagged\nolder: untagged\n");
    assert_eq!(host.banger(&["image", "prune", "-f", "--json"]).output, "[]\n");
    assert_eq!(host.banger(&["image", "ls"]).output.lines().count(), 2, "the image of web stays");
}

#[test]
fn labels_are_set_and_removed() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["create", "-q", "--no-start", "--name", "web", "-l", "team=web", "-l", "old"]);
    let set = host.banger(&["vm", "set", "--label", "team=db", "--remove-label", "old", "web"]);
    assert_eq!(set, Ended { status: 0, output: "web: changed\n".into(), errors: String::new() });
    let labels = &json(&host.banger(&["show", "--json", "web"]))["labels"];
    assert_eq!(labels, &serde_json::json!({ "team": "db" }));
}

#[test]
fn an_idle_policy_is_set_shown_and_removed() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["create", "-q", "--no-start", "--name", "web", "--idle", "suspend=30m"]);
    let idle = || {
        let shown = json(&host.banger(&["show", "--json", "web"]));
        (shown["idle_action"].clone(), shown["idle_after"].clone())
    };
    assert_eq!(idle(), ("suspend".into(), 1_800_000_000u64.into()));
    assert!(host.banger(&["show", "web"]).output.contains("30 minutes"));
    host.banger(&["vm", "set", "--idle", "stop=2h", "web"]);
    assert_eq!(idle(), ("stop".into(), 7_200_000_000u64.into()));
    let refused = host.banger(&["vm", "set", "--idle", "stop=1s", "web"]);
    assert!(refused.status == 1 && refused.errors.contains("between a minute and 30 days"), "{refused:?}");
    assert_eq!(idle(), ("stop".into(), 7_200_000_000u64.into()));
    host.banger(&["vm", "set", "--idle", "off", "web"]);
    assert_eq!(idle(), ("".into(), 0.into()));
}

#[test]
fn events_name_their_objects() {
    const EXPECTED: [&str; 4] =
        ["VMNew seen", "VMRemoved seen", "JobNew vm-create", "Completed vm-delete done"];
    let Some(host) = host_with_image() else { return };
    let mut events = host.start(&["events"]);
    let seen = thread::scope(|scope| {
        let next = scope.spawn(|| {
            let mut seen = Vec::<String>::new();
            while !EXPECTED.iter().all(|part| seen.iter().any(|line| line.contains(part))) {
                seen.push(events.next_output());
            }
            seen
        });
        // Only clients that were connected before may receive it.
        until("somebody listens", || {
            host.banger(&["create", "-q", "--no-start", "--name", "seen"]);
            host.banger(&["rm", "-q", "seen"]);
            next.is_finished()
        });
        next.join().unwrap()
    });
    let is_id = |word: &str| word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let has_id = |line: &String| line.split([' ', '=', '/']).any(is_id);
    assert!(!seen.iter().any(|line| line.contains("/dev/banger/") || has_id(line)), "{seen:#?}");
    events.signal(Signal::INT);
    assert_eq!(events.end().status, 0);
}

#[test]
fn logs_are_asked_for_by_time() {
    let host = Host::new();
    let ended = host.banger(&["logs", "--since", "1136073600", "--until", "2006-01-01T00:01:00Z", "web"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let options = &host.calls("OpenLog")[0].options;
    let expect = ("1136073600000000", "1136073660000000");
    assert_eq!((options["since-usec"].as_str(), options["until-usec"].as_str()), expect);
    for wrong in [&["--since", "soon"][..], &["--until", "1m", "-f"], &["--since", "1m", "--exec"]] {
        assert_eq!(host.banger(&[&["logs"], wrong, &["web"]].concat()).status, 2, "{wrong:?}");
    }
}
