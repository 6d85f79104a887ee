//! Repositories with a `devcontainer.json`, in a sandbox with the real agent on this host.

use std::{collections::BTreeMap, fs, net::TcpListener, os::unix::fs::PermissionsExt};

use crate::{
    host::{Ended, until},
    workspace::Bench,
};

/// Creates a repository with this file.
fn with(text: &str) -> Bench {
    let bench = Bench::new();
    fs::create_dir(bench.repo.join(".devcontainer")).unwrap();
    fs::write(bench.repo.join(".devcontainer/devcontainer.json"), text).unwrap();
    bench.git(&["add", "-A"]);
    bench.git(&["commit", "-qm", "a place to work"]);
    bench
}

fn run(bench: &Bench, name: &str, more: &[&str]) -> Ended {
    let guest = bench.guest.with_file_name(name);
    let (repo, guest) = (bench.repo.to_str().unwrap(), guest.to_str().unwrap());
    bench.banger(&[&["vm", "run", "--name", name, "--guest-path", guest, repo][..], more].concat())
}

#[test]
fn supported_devcontainer_settings_are_applied() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let bench = with(&format!(
        r#"{{
            // The image of this test's service.
            "image": "debian",
            "postCreateCommand": {{ "a": "echo $A > made", "b": ["touch", "made too"] }},
            "containerEnv": {{ "A": "1", "SECRET": "${{localEnv:HOME}}" }},
            "forwardPorts": [{port}],
            "features": {{ "x": {{}} }},
            "initializeCommand": "touch /tmp/must-not-be-there",
        }}"#
    ));
    let script = ["--", "sh", "-c", "echo $A; cat made; ls \"made too\"; echo ${SECRET-nothing}; pwd"];
    let ended = run(&bench, "box-1", &script);
    assert_eq!(ended.status, 0, "{ended:?}");
    let place = bench.guest.with_file_name("box-1");
    assert_eq!(ended.output, format!("1\n1\nmade too\nnothing\n{}\n", place.display()));
    let not_taken = "note: ignored in .devcontainer/devcontainer.json: containerEnv.SECRET (`-e HOME` lets it read HOME \
                     of your environment), initializeCommand (it would run on the host).";
    assert!(ended.errors.lines().any(|line| line == not_taken), "{ended:?}");
    let features =
        "note: banger does not install the features of .devcontainer/devcontainer.json: x. To use the image";
    assert!(ended.errors.lines().any(|line| line.starts_with(features)), "{ended:?}");
    let build = "  devcontainer build --workspace-folder ";
    assert!(ended.errors.lines().any(|line| line.starts_with(build)), "{ended:?}");
    assert!(ended.errors.contains(&format!(" reaches {port} in the sandbox.")), "{ended:?}");
    assert!(ended.errors.contains("setup: postCreateCommand"), "{ended:?}");
    assert!(!fs::exists("/tmp/must-not-be-there").unwrap());
    assert_eq!(bench.host.calls("CreateVM").last().unwrap().options["image"], "\"debian\"");

    // Later commands run in the same directory.
    let exec = |more: &[&str]| {
        bench.banger(&[&["vm", "exec"], more, &["box-1", "--", "sh", "-c", "echo $A"]].concat())
    };
    assert_eq!(exec(&[]).output, "1\n");
    assert_eq!(exec(&["-e", "A=2"]).output, "2\n");

    let ended = run(&bench, "box-2", &["-d", "--no-bootstrap", "--image", "debian"]);
    assert_eq!(ended.output, "box-2\n");
    assert!(!bench.guest.with_file_name("box-2").join("made").exists());
    assert!(ended.errors.contains("(it would run on the host), image, features.\n"), "{ended:?}");
    assert!(
        ended.errors.contains(&format!("note: `banger vm forward -L {port} box-2` forwards")),
        "{ended:?}"
    );

    let ended = run(&bench, "box-3", &["-d", "-q", "--no-devcontainer", "--image", "debian"]);
    assert_eq!((ended.output.as_str(), ended.errors.as_str()), ("box-3\n", ""));
    assert!(!bench.guest.with_file_name("box-3").join("made").exists());
}

#[test]
fn a_failed_setup_command_is_reported_and_the_sandbox_stays() {
    let bench = with(r#"{"image": "debian", "postCreateCommand": "echo why; exit 3"}"#);
    let ended = run(&bench, "box-1", &["--", "echo", "here"]);
    assert_eq!((ended.status, ended.output.as_str()), (0, "here\n"), "{ended:?}");
    let told = "why\nwarning: the postCreateCommand failed with status 3. Without `--nat`";
    assert!(ended.errors.contains(told), "{ended:?}");
}

#[test]
fn an_invalid_file_is_refused_before_a_sandbox_is_created() {
    let bench = with("{\n  \"image\": 5,\n}");
    let made = bench.host.calls("CreateVM").len();
    let ended = run(&bench, "box-1", &["--", "true"]);
    assert_eq!(ended.status, 125);
    let told = "error: cannot read .devcontainer/devcontainer.json: image is not a string.\nhint: ";
    assert!(ended.errors.starts_with(told), "{ended:?}");
    assert_eq!(bench.host.calls("CreateVM").len(), made);
    assert_eq!(run(&bench, "box-1", &["--no-devcontainer", "--image", "debian", "--", "true"]).status, 0);
}

#[test]
fn each_command_runs_once_at_its_moment() {
    let bench = Bench::new();
    let volume = bench.guest.with_file_name("volume");
    let text = format!(
        r#"{{
            "image": "debian",
            "postAttachCommand": "echo attach >> log",
            "postStartCommand": {{ "a": "echo start $A >> log" }},
            "postCreateCommand": ["sh", "-c", "echo post ${{containerEnv:A}} >> log"],
            "updateContentCommand": "echo update >> log",
            "onCreateCommand": "echo create > log",
            "containerEnv": {{ "A": 1 }},
            "remoteEnv": {{ "P": "${{containerEnv:PATH}}:/extra", "LOGNAME": null }},
            "mounts": ["source=v,target={},type=volume"],
        }}"#,
        volume.display()
    );
    fs::create_dir(bench.repo.join(".devcontainer")).unwrap();
    fs::write(bench.repo.join(".devcontainer/devcontainer.json"), text).unwrap();
    bench.git(&["add", "-A"]);
    let script = "cat log; echo ${P##*:} ${LOGNAME-none} $A";
    let ended = run(&bench, "box-1", &["-q", "--", "sh", "-c", script]);
    assert_eq!(ended.output, "create\nupdate\npost 1\nstart 1\n/extra none 1\n", "{ended:?}");
    assert!(volume.is_dir());

    // Each boot runs the start commands once, whichever command notices it.
    let log = || bench.banger(&["vm", "exec", "box-1", "--", "cat", "log"]).output;
    let starts = || log().lines().filter(|line| *line == "start 1").count();
    assert_eq!(starts(), 1);
    for verb in ["stop", "start", "start"] {
        let ended = bench.banger(&["vm", verb, "box-1"]);
        assert_eq!(ended.status, 0, "{ended:?}");
    }
    assert_eq!(starts(), 2);
    assert_eq!(bench.banger(&["vm", "restart", "box-1"]).status, 0);
    assert_eq!(starts(), 3);
    assert!(!log().contains("attach"));

    // A shell attaches, a command does not.
    let shell = bench.banger(&["vm", "shell", "-n", "box-1"]);
    let told = "note: the postAttachCommand runs in the background; `banger vm logs --exec=";
    assert!(shell.errors.contains(told), "{shell:?}");
    until("the attachment", || log().contains("attach\n"));
    assert_eq!(log().matches("create").count(), 1);
}

#[test]
fn the_commands_of_a_boot_get_the_proxies_of_the_user() {
    let bench = with(r#"{"image": "debian", "postStartCommand": "echo \"<$http_proxy>\" >> log"}"#);
    assert_eq!(run(&bench, "box-1", &["-q", "--", "true"]).status, 0);
    let restarted = bench
        .host
        .command(&["vm", "restart", "box-1"])
        .envs([("BANGER_PROXY", "true"), ("http_proxy", "http://203.0.113.7:3128")])
        .output()
        .unwrap();
    assert!(restarted.status.success(), "{restarted:?}");
    let log = bench.banger(&["vm", "exec", "box-1", "--", "cat", "log"]).output;
    // The sandbox has no internet access, so a relay on its loopback leads there.
    let second = log.lines().nth(1);
    assert!(second.is_some_and(|line| line.starts_with("<http://127.0.0.1:")), "{log}");
}

#[test]
fn an_interrupt_ends_a_wait_that_follows_the_commands_of_a_boot() {
    let bench = Bench::new();
    let (started, go) = (bench.host.path("started"), bench.host.path("go"));
    let script = format!("touch {}; until test -e {}; do sleep 0.1; done", started.display(), go.display());
    let text = format!(r#"{{"image": "debian", "postStartCommand": "{script}"}}"#);
    fs::create_dir(bench.repo.join(".devcontainer")).unwrap();
    fs::write(bench.repo.join(".devcontainer/devcontainer.json"), text).unwrap();
    bench.git(&["add", "-A"]);
    fs::write(&go, "").unwrap();
    assert_eq!(run(&bench, "box-1", &["-q", "--", "true"]).status, 0);
    for path in [&started, &go] {
        fs::remove_file(path).unwrap();
    }
    // Another client boots it, so that the next command sets it up.
    bench.host.boot("box-1");
    let mut terminal = bench.host.start_in_terminal(&["vm", "exec", "box-1", "--", "true"]);
    until("its commands run", || started.exists());
    bench.host.hang_agents();
    fs::write(&go, "").unwrap();
    terminal.wait_for("waiting for box-1");
    terminal.type_in("\x03");
    terminal.wait_for("error: interrupted.");
    assert_eq!(terminal.end().0.code(), Some(130));
}

#[test]
fn a_failed_command_skips_those_of_later_moments() {
    let bench = with(
        r#"{
            "image": "debian",
            "onCreateCommand": { "bad": "exit 4", "good": "touch good" },
            "postCreateCommand": "touch later",
            "postStartCommand": "touch later",
        }"#,
    );
    let ended = run(&bench, "box-1", &["--", "sh", "-c", "ls good later 2> /dev/null"]);
    assert!(ended.errors.contains("warning: the onCreateCommand failed with status 4."), "{ended:?}");
    assert_eq!(ended.output, "good\n", "{ended:?}");
}

#[test]
fn the_environment_of_the_user_is_read_only_on_request() {
    let bench = with(
        r#"{"image": "debian", "containerEnv": {"T": "${localEnv:TOKEN}", "U": "${localEnv:TOKEN:none}"}}"#,
    );
    let ended = run(&bench, "box-1", &["-q", "--", "sh", "-c", "echo ${T-unset} $U"]);
    assert_eq!(ended.output, "unset none\n", "{ended:?}");
    let ended = run(&bench, "box-2", &["-e", "TOKEN=t", "--", "sh", "-c", "echo ${T-unset} $U"]);
    assert_eq!((ended.output.as_str(), ended.errors.contains("ignored")), ("t t\n", false), "{ended:?}");
}

#[test]
fn one_of_several_files_is_chosen() {
    let bench = Bench::new();
    let file = |path: &str, name: &str| {
        let path = bench.repo.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{{\"image\": \"debian\", \"containerEnv\": {{\"F\": \"{name}\"}}}}"))
            .unwrap();
        bench.git(&["add", "-A"]);
    };
    let mut boxes = 0;
    let mut chosen = |more: &[&str]| {
        boxes += 1;
        let end = ["--image", "debian", "--", "sh", "-c", "echo ${F-none}; pwd"];
        run(&bench, &format!("box-{boxes}"), &[more, &end].concat())
    };
    file(".devcontainer/big/devcontainer.json", "big");
    let ended = chosen(&[]);
    assert!(ended.output.starts_with("big\n"), "one alone is used: {ended:?}");

    file(".devcontainer/small/devcontainer.json", "small");
    let ended = chosen(&[]);
    let told = "note: `--devcontainer PATH` chooses one of .devcontainer/big/devcontainer.json, \
                .devcontainer/small/devcontainer.json; none is used.\n";
    assert!(ended.output.starts_with("none\n") && ended.errors.contains(told), "{ended:?}");
    for choice in ["small", ".devcontainer/small", ".devcontainer/small/devcontainer.json"] {
        let ended = chosen(&["--devcontainer", choice]);
        assert!(ended.output.starts_with("small\n"), "{choice}: {ended:?}");
    }
    let ended = chosen(&["--devcontainer", "huge"]);
    assert_eq!(ended.status, 125);
    assert!(
        ended
            .errors
            .contains("error: cannot find huge among the files that are sent.\nhint: the repository has "),
        "{ended:?}"
    );

    // The file of the directory that was named counts, and commands run in that directory.
    file(".devcontainer.json", "top");
    file("web/api/.devcontainer.json", "api");
    assert!(chosen(&[]).output.starts_with("top\n"));
    let (api, guest) = (bench.repo.join("web/api"), bench.guest.with_file_name("box-api"));
    let (api, guest) = (api.to_str().unwrap(), guest.to_str().unwrap());
    let run =
        ["vm", "run", "--name", "box-api", "--guest-path", guest, api, "--", "sh", "-c", "echo $F; pwd"];
    let ended = bench.banger(&run);
    assert_eq!(ended.output, format!("api\n{guest}/web/api\n"), "{ended:?}");
    assert_eq!(bench.banger(&["vm", "exec", "box-api", "--", "pwd"]).output, format!("{guest}/web/api\n"));
}

#[test]
fn required_sizes_are_asked_for() {
    let bench =
        with(r#"{"image": "debian", "hostRequirements": {"cpus": 3, "memory": "4gb", "storage": "9gb"}}"#);
    let options = |name: &str, more: &[&str]| {
        let ended = run(&bench, name, &[&["-q"], more, &["--", "true"]].concat());
        assert_eq!(ended.status, 0, "{ended:?}");
        bench.host.calls("CreateVM").last().unwrap().options.clone()
    };
    let is = |options: &BTreeMap<String, String>, key: &str, number: u64| {
        options.get(key).is_some_and(|text| text.split(' ').next_back() == Some(number.to_string().as_str()))
    };
    let all = options("box-1", &[]);
    assert!(is(&all, "vcpus", 3) && is(&all, "memory", 4 << 30), "{all:?}");
    let given = options("box-2", &["--memory", "1GiB"]);
    assert!(is(&given, "vcpus", 3) && is(&given, "memory", 1 << 30), "{given:?}");
}

#[test]
fn another_user_works_in_the_repository_where_the_image_has_them() {
    let bench = with(r#"{"image": "debian", "remoteUser": "nobody"}"#);
    // Only root can access the home of the test; a sandbox has /workspaces for this.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bench.host.path("."), open.clone()).unwrap();
    fs::create_dir(bench.guest.parent().unwrap()).unwrap();
    fs::set_permissions(bench.guest.parent().unwrap(), open).unwrap();
    let script = "id -un; id -G; touch mine; git status --short; pwd";
    let ended = run(&bench, "box-1", &["-q", "--", "sh", "-c", script]);
    let place = bench.guest.with_file_name("box-1");
    let mut lines = ended.output.lines();
    assert_eq!(lines.next(), Some("nobody"), "{ended:?}");
    // None of root's groups.
    assert!(lines.next().is_some_and(|groups| groups.split(' ').all(|group| group != "0")), "{ended:?}");
    assert_eq!(lines.collect::<Vec<_>>(), ["?? mine", place.to_str().unwrap()], "{ended:?}");
    let exec =
        |more: &[&str]| bench.banger(&[&["vm", "exec"], more, &["box-1", "--", "id", "-un"]].concat()).output;
    assert_eq!((exec(&[]).as_str(), exec(&["-u", "root"]).as_str()), ("nobody\n", "root\n"));

    fs::write(bench.repo.join("lines"), "later\n").unwrap();
    let later = ["vm", "exec", "--auto-prepare", "box-1", "--", "sh", "-c", "cat lines; stat -c %U lines"];
    assert_eq!(bench.banger(&later).output, "later\nnobody\n");

    // A copy belongs to the workspace's user, and to another one on request.
    let copied = place.join("copied");
    for (more, expect) in [(&[][..], "nobody"), (&["--chown", "root"], "root")] {
        let (from, to) = (bench.repo.join("lines"), format!("box-1:{}", copied.display()));
        let ended = bench.banger(&[&["vm", "cp", "-q"], more, &[from.to_str().unwrap(), &to]].concat());
        assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{ended:?}");
        let owner = ["vm", "exec", "box-1", "--", "stat", "-c", "%U", copied.to_str().unwrap()];
        assert_eq!(bench.banger(&owner).output, format!("{expect}\n"));
    }

    let text = r#"{"image": "debian", "remoteUser": "no-one"}"#;
    fs::write(bench.repo.join(".devcontainer/devcontainer.json"), text).unwrap();
    let ended = run(&bench, "box-2", &["--", "id", "-un"]);
    assert_eq!(ended.output, "root\n");
    assert!(
        ended.errors.contains("note: the image has no user no-one; commands run as root.\n"),
        "{ended:?}"
    );
}

#[test]
fn a_command_of_another_user_does_not_start_in_an_inaccessible_directory() {
    let bench = with("{}");
    let secret = bench.host.path("secret");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    let ended =
        bench.banger(&["vm", "exec", "-u", "nobody", "-w", secret.to_str().unwrap(), "box", "--", "pwd"]);
    assert_eq!(ended.status, 126);
    assert!(ended.errors.contains("Permission denied"), "{ended:?}");
}
