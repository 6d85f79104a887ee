//! Folders, limits, notes and errors of devcontainer.json.
#![allow(clippy::unwrap_used)]

use super::{
    cases::{around, read_as},
    notes::{MAX_IGNORED, MAX_IGNORED_LENGTH},
    *,
};

#[test]
fn the_repository_goes_where_the_file_says() {
    let mount = r#""workspaceMount": "source=${localWorkspaceFolder},target=/work,type=bind""#;
    for (below, given, form, expect) in [
        ("", None, "{}".to_owned(), ""),
        (
            "",
            None,
            r#"{"workspaceFolder": "/srv/${localWorkspaceFolderBasename}"}"#.to_owned(),
            "folder=/srv/shop",
        ),
        (
            "",
            None,
            r#"{"workspaceFolder": "/workspaces/shop/web"}"#.to_owned(),
            "folder=/workspaces/shop in /workspaces/shop/web",
        ),
        ("", None, format!("{{{mount}}}"), "folder=/work"),
        ("", None, format!("{{{mount}, \"workspaceFolder\": \"/work/web\"}}"), "folder=/work in /work/web"),
        ("", Some("/x"), r#"{"workspaceFolder": "/srv"}"#.to_owned(), "folder=/x"),
        (
            "",
            Some("/x"),
            r#"{"containerEnv": {"A": "${containerWorkspaceFolder}"}}"#.to_owned(),
            "env A=/x; folder=/x",
        ),
        // A directory of a larger repository was named.
        ("web/api", None, "{}".to_owned(), "folder=/root/repo in /root/repo/web/api"),
        ("web/api", Some("/x"), "{}".to_owned(), "folder=/x in /x/web/api"),
        (
            "web/api",
            None,
            r#"{"containerEnv": {"A": "${localWorkspaceFolderBasename}"}}"#.to_owned(),
            "env A=api; folder=/root/repo in /root/repo/web/api",
        ),
        ("web/api", None, r#"{"workspaceFolder": "/srv/web/api"}"#.to_owned(), "folder=/srv in /srv/web/api"),
        ("web/api", None, format!("{{{mount}}}"), "folder=/work in /work/web/api"),
        (
            "",
            None,
            r#"{"workspaceFolder": "relative"}"#.to_owned(),
            "ignored workspaceFolder (it is not an absolute path)",
        ),
        (
            "",
            None,
            r#"{"workspaceFolder": "/x/${localEnv:Y}"}"#.to_owned(),
            "ignored workspaceFolder (`-e Y` lets it read Y of your environment)",
        ),
        (
            "",
            None,
            r#"{"workspaceMount": "source=/etc,target=/work,type=bind"}"#.to_owned(),
            "ignored workspaceMount (nothing of the host is mounted)",
        ),
    ] {
        let around = Around { below: below.to_owned(), guest_path: given.map(str::to_owned), ..around() };
        assert_eq!(read_as(&form, &around), expect, "{below} {given:?} {form}");
    }
}

#[test]
fn a_hostile_file_is_bounded() {
    let many =
        |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(",");
    let parse = |text: String| Devcontainer::parse(&text, &around()).unwrap();
    let ports = parse(format!("{{\"forwardPorts\": [{}]}}", many(2000, &|n| (n + 1).to_string())));
    assert_eq!((ports.ports.len(), ports.ignored.len()), (MAX_PORTS, 1));
    let mounts = parse(format!("{{\"mounts\": [{}]}}", many(500, &|n| format!("\"target=/{n}\""))));
    assert_eq!((mounts.mounts.len(), mounts.ignored.len()), (MAX_MOUNTS, 1));
    let commands = many(500, &|n| format!("\"{n}\": \"true\""));
    let commands = parse(format!("{{\"postStartCommand\": {{{commands}}}}}"));
    assert_eq!(commands.commands[&Moment::PostStart].len(), 16);
    let long = parse(format!("{{\"postStartCommand\": \"{}\"}}", "x".repeat(20 << 10)));
    assert!(long.commands[&Moment::PostStart].is_empty());
    let variables = many(2000, &|n| format!("\"A{n}\": \"b\""));
    let variables = parse(format!("{{\"remoteEnv\": {{{variables}}}}}"));
    assert_eq!(variables.env.remote.len(), 256);
    let notes = variables.notes(false);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].len() < MAX_IGNORED * 2 * MAX_IGNORED_LENGTH && notes[0].ends_with("and 1720 more."));
    // Nesting ends in an error, not in a full stack.
    assert!(Devcontainer::parse(&"[".repeat(100_000), &around()).is_err());
    // Names cannot write to the terminal.
    let escape = parse("{\"\\u001b[2J\\nx\": 1}".to_owned()).notes(false);
    assert!(!escape[0].contains(char::is_control), "{escape:?}");
}

#[test]
fn what_needs_an_image_says_what_to_do() {
    let advice = |text: &str| {
        let mut container = Devcontainer::parse(text, &around()).unwrap();
        let needs = Needs {
            file: &container.file,
            build: container.build.as_ref(),
            features: &container.features,
            hands_over: container.hands_over,
            repository: "My Shop",
            opened: "",
        };
        container.advice =
            needs.advice(|path| if path.is_empty() { ".".to_owned() } else { path.to_owned() });
        (container.notes(false).join("\n"), container.notes(true).join("\n"))
    };
    let mut all = String::new();
    for text in [
        r#"{"build": {"dockerfile": "Dockerfile", "context": "..", "target": "dev", "args": {"V": "1 2"}}}"#,
        r#"{"build": {"dockerfile": "Dockerfile"}, "features": {"ghcr.io/devcontainers/features/node:1": {}}}"#,
        r#"{"image": "a", "features": {"ghcr.io/devcontainers/features/docker-in-docker:2": {}, "./own": {}}}"#,
        r#"{"build": {"dockerfile": "Dockerfile", "context": "../.."}}"#,
        r#"{"build": {"dockerfile": "Dockerfile", "options": ["--ssh=default"]}}"#,
        r#"{"build": {"dockerfile": "Dockerfile", "options": ["--ssh=default"]}, "features": {"./own": {}}}"#,
        r#"{"image": "a", "features": {"./own": {"token": "${localEnv:TOKEN}"}}}"#,
        r#"{"build": {"dockerfile": "a'; rm -rf ~ #", "args": {"$(id)": "`id`"}}}"#,
        "{\"build\": {\"dockerfile\": \"a\\nrm\"}}",
    ] {
        let (without, with) = advice(text);
        all.push_str(&format!("{text}\n{without}\nwith --image:\n{with}\n\n"));
    }
    crate::ui::wording::check("advice_of_devcontainers", &all);
}

#[test]
fn invalid_files_are_refused() {
    let all: String = ["", "[]", "{\"image\": 1}", "{\"image\": \"a:${localEnv:T}\"}"]
        .map(|text| format!("{text}\n{}\n\n", read_as(text, &around())))
        .concat();
    crate::ui::wording::check("errors_of_devcontainers", &all);
}
