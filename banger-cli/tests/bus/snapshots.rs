//! Snapshots, against the real service.

use serde_json::Value;

use crate::{
    host::{Ended, Host},
    real::host_with_image,
};

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// Returns the fields of each line of a list.
fn rows(host: &Host, list: &[&str]) -> Vec<Vec<String>> {
    let words = [&["vm", "snapshot", "list", "--columns", "sandbox,name,memory"], list].concat();
    let lines = host.banger(&words).output;
    lines.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn a_snapshot_is_made_forked_and_deleted() {
    let Some(host) = host_with_image() else { return };
    for name in ["web", "db"] {
        assert_eq!(host.banger(&["create", "-q", "--name", name]).status, 0);
    }
    assert_eq!(host.banger(&["vm", "snapshot", "create", "-q", "web", "ready"]).output, "ready\n");
    assert_eq!(host.banger(&["stop", "-q", "db"]).status, 0);
    let off = json(&host.banger(&["snapshot", "create", "--json", "db", "off"]));
    assert_eq!((&off["sandbox"], &off["name"], &off["memory"]), (&"db".into(), &"off".into(), &false.into()));
    assert!(off["created_at"].as_u64().is_some_and(|at| at > 0), "{off}");
    assert_eq!(rows(&host, &[]), [["web", "ready", "yes"], ["db", "off", "no"]]);
    assert_eq!(rows(&host, &["db"]), [["db", "off", "no"]]);

    let forked = host.banger(&["vm", "fork", "-q", "--from-snapshot", "ready", "--name", "again", "web"]);
    assert_eq!((forked.status, forked.output.as_str()), (0, "again: started\n"), "{forked:?}");
    let forked = host.banger(&["vm", "fork", "-q", "--no-start", "-n", "2", "--from-snapshot", "off", "db"]);
    assert_eq!((forked.status, forked.output.as_str()), (0, "db-1: created\ndb-2: created\n"), "{forked:?}");
    let refused = host.banger(&["vm", "delete", "-q", "db"]);
    assert_eq!(refused.status, 1);
    let expect =
        "error: db has 1 snapshot, which would be deleted with it.\nhint: `banger vm snapshot list db`";
    assert!(refused.errors.starts_with(expect), "{refused:?}");

    let deleted = host.banger(&["vm", "snapshot", "rm", "web", "ready"]);
    assert_eq!(deleted, Ended { status: 0, output: String::new(), errors: String::new() });
    assert_eq!(host.banger(&["vm", "delete", "-q", "--force", "db"]).output, "db: deleted\n");
    assert_eq!(rows(&host, &[]), Vec::<Vec<String>>::new());
    assert_eq!(json(&host.banger(&["vm", "snapshot", "list", "--json"])), Value::Array(Vec::new()));
}

#[test]
fn a_sandbox_of_a_snapshot_is_made_to_run_a_command() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["create", "-q", "--name", "web", "-l", "a=b"]);
    host.banger(&["snapshot", "create", "-q", "web", "clean"]);
    let run = |more: &[&str]| host.banger(&[&["run", "-q", "--from-snapshot", "web/clean"], more].concat());
    // Guests in memory run no commands, so that this one is deleted at once.
    assert_eq!(run(&["--rm", "--", "true"]).status, 125);
    let ran = run(&["-d", "--name", "again", "-l", "c=d", "--nat"]);
    assert_eq!((ran.status, ran.output.as_str()), (0, "again\n"), "{ran:?}");
    let again = json(&host.banger(&["show", "--json", "again"]));
    assert_eq!((&again["labels"]["a"], &again["labels"]["c"]), (&"b".into(), &"d".into()), "{again}");
    assert_eq!((&again["nat"], &again["state"]), (&true.into(), &"running".into()), "{again}");
    let names = || host.banger(&["list", "-q", "--all"]).output;
    assert_eq!(names().lines().count(), 2, "{}", names());
    for (more, status, expect) in [
        (&["--memory", "1G", "--", "true"][..], 2, "error: --from-snapshot makes the sandbox as it was; "),
        (&["--name", "web", "--", "true"], 125, "error: "),
        (&["--egress", "no-such-preset", "--rm", "--", "true"], 125, "error: "),
    ] {
        let refused = run(more);
        assert_eq!((refused.status, refused.output.as_str()), (status, ""), "{refused:?}");
        assert!(refused.errors.starts_with(expect), "{refused:?}");
    }
    let nowhere = host.banger(&["run", "-q", "--from-snapshot", "web/nope", "--rm"]);
    assert_eq!(nowhere.status, 125);
    assert_eq!(
        nowhere.errors,
        "error: web has no snapshot nope.\nhint: `banger vm snapshot list web` shows its snapshots.\n"
    );
    assert_eq!(names().lines().count(), 2, "{}", names());
}

#[test]
fn a_sandbox_is_put_back_to_a_snapshot() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["create", "-q", "--name", "web"]);
    host.banger(&["snapshot", "create", "-q", "web", "clean"]);
    let restore = |more: &[&str]| host.banger(&[&["snapshot", "restore", "-q", "web"], more].concat());
    let state = || json(&host.banger(&["show", "--json", "web"]))["state"].clone();
    let refused = restore(&["clean"]);
    assert_eq!(
        (refused.status, refused.errors.as_str()),
        (
            1,
            "error: a sandbox that is running cannot be restored.\nhint: `banger vm stop web` stops it, and `--force` \
             ends it at once.\n"
        )
    );
    let missing = restore(&["--force", "nope"]);
    assert_eq!((missing.status, state()), (1, "running".into()), "{missing:?}");
    assert!(missing.errors.starts_with("error: web has no snapshot nope.\nhint: "), "{missing:?}");
    for _ in 0..2 {
        let restored = restore(&["--force", "clean"]);
        assert_eq!(
            (restored.status, restored.output.as_str(), state()),
            (0, "", "suspended".into()),
            "{restored:?}"
        );
    }
    assert_eq!(host.banger(&["start", "-q", "web"]).output, "web: started\n");
    assert_eq!(rows(&host, &["web"]), [["web", "clean", "yes"]]);
}

#[test]
fn what_is_wrong_with_a_snapshot_is_said_with_a_hint() {
    let Some(host) = host_with_image() else { return };
    host.banger(&["create", "-q", "--name", "web"]);
    host.banger(&["snapshot", "create", "-q", "web", "clean"]);
    for (line, expect) in [
        (
            &["snapshot", "create", "-q", "web", "clean"][..],
            "error: web already has a snapshot clean.\nhint: choose another name; `banger vm snapshot list web`",
        ),
        (
            &["snapshot", "delete", "web", "nope"],
            "error: web has no snapshot nope.\nhint: `banger vm snapshot list web` shows its snapshots.\n",
        ),
        (
            &["fork", "-q", "--from-snapshot", "nope", "web"],
            "error: web has no snapshot nope.\nhint: `banger vm snapshot list web` shows its snapshots.\n",
        ),
        (&["snapshot", "list", "nope"], "error: there is no sandbox nope.\n"),
        (&["snapshot", "create", "-q", "web", "No Name"], "error: "),
    ] {
        let ended = host.banger(line);
        assert_eq!((ended.status, ended.output.as_str()), (1, ""), "{ended:?}");
        assert!(ended.errors.starts_with(expect), "{line:?}: {ended:?}");
    }
    // Those before it are gone.
    let ended = host.banger(&["snapshot", "delete", "web", "clean", "nope"]);
    assert_eq!((ended.status, rows(&host, &["web"]).len()), (1, 0), "{ended:?}");
}
