//! Coding agents in sandboxes, with a made-up one and the real agent of banger on this host.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    host::{Ended, Host},
    workspace::Bench,
};

/// A host with a repository and a preset `tool`, whose command is a script.
struct Agents(Bench);

impl Agents {
    fn new(script: &str, more: &str) -> Self {
        let this = Self(Bench::new());
        let program = this.0.host.path("tool.sh");
        fs::write(&program, script).unwrap();
        let program = program.to_str().unwrap();
        this.preset(
            "tool",
            &format!(
                "description = 'Made up'\ncommand = ['sh', '{program}']\nimage = 'debian'\n\
                 egress = ['api.example:443', 'packages']\npass_env = ['TOOL_KEY', 'TOOL_NONE']\nmemory = '3GiB'\n{more}"
            ),
        );
        this
    }

    fn preset(&self, name: &str, text: &str) {
        preset(&self.0.host, name, text);
    }

    /// Returns the arguments of a run in the repository.
    fn words<'a>(&'a self, options: &[&'a str], arguments: &[&'a str]) -> Vec<&'a str> {
        let place = ["agent", "tool", self.0.repo.to_str().unwrap(), "--name", "box-tool", "--guest-path"];
        [&place[..], &[self.0.guest.to_str().unwrap()], options, &["--"], arguments].concat()
    }

    /// Runs the agent without a terminal.
    fn run(&self, options: &[&str], arguments: &[&str]) -> Ended {
        let mut command = self.0.host.command(&self.words(options, arguments));
        let output = command.env("TOOL_KEY", "hidden").output().unwrap();
        Ended {
            status: output.status.code().unwrap(),
            output: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn made(&self) -> PathBuf {
        self.0.repo.join("made")
    }

    /// Returns how often the sandbox was kept and deleted.
    fn kept_and_deleted(&self) -> (usize, usize) {
        (self.0.host.calls("SetLifetime").len(), self.0.host.calls("Delete").len())
    }
}

fn preset(host: &Host, name: &str, text: &str) {
    let directory = host.home().join(".config/banger/agents");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(format!("{name}.toml")), text).unwrap();
}

const WORK: &str = "echo \"$TOOL_KEY $TOOL_NONE $MODE\"; printf '[%s]' \"$@\"; echo work > made; exit 3";

#[test]
fn an_agent_works_in_a_repository_and_its_changes_are_applied() {
    let agents = Agents::new(WORK, "[env]\nMODE = 'sandbox'\n");
    // It would be in the record of the workspace.
    let container = r#"{"remoteEnv": {"LEAKED": "${localEnv:TOOL_KEY}"}}"#;
    fs::write(agents.0.repo.join(".devcontainer.json"), container).unwrap();
    agents.0.git(&["add", "."]);
    agents.0.git(&["commit", "-qm", "container"]);
    let ended =
        agents.run(&["--apply", "--rm", "--egress", "git,packages", "-e", "MODE=mine"], &["-p", "a b"]);
    assert_eq!((ended.status, ended.output.as_str()), (3, "hidden  mine\n[-p][a b]"), "{ended:?}");
    assert_eq!(fs::read_to_string(agents.made()).unwrap(), "work\n");
    let told = &ended.errors;
    assert!(told.contains("note: the agent gets your TOOL_KEY.") && !told.contains("hidden"), "{told}");
    assert!(told.contains(" made | 1 +") && told.contains("1 file changed in "), "{told}");
    let options = &agents.0.host.calls("CreateVM").pop().unwrap().options;
    assert_eq!(options["egress"], "\"git\",\"packages\",\"api.example:443\"");
    assert_eq!((options["memory"].as_str(), options["lifetime"].as_str()), ("3221225472", "\"caller\""));
    assert!(!format!("{options:?}").contains("hidden"));
    assert_eq!(agents.kept_and_deleted(), (0, 1));
    let kept = std::process::Command::new("grep")
        .arg("-r")
        .arg("hidden")
        .arg(agents.0.host.home())
        .output()
        .unwrap();
    assert_eq!(kept.status.code(), Some(1), "{kept:?}");
    // Without a change there is nothing to decide.
    agents.0.git(&["add", "."]);
    agents.0.git(&["commit", "-qm", "work"]);
    fs::remove_dir_all(&agents.0.guest).unwrap();
    let ended = agents.run(&["--rm", "-q"], &[]);
    assert_eq!((ended.status, ended.errors.as_str()), (3, ""), "{ended:?}");
    assert_eq!(agents.kept_and_deleted(), (0, 2));
}

#[test]
fn work_that_nobody_has_decided_about_keeps_the_sandbox() {
    let agents = Agents::new("echo work > made", "");
    let ended = agents.run(&["--rm"], &[]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let told = &ended.errors;
    assert!(told.contains("`banger vm workspace export box-tool --apply` applies them"), "{told}");
    assert!(told.contains("note: box-tool is kept in spite of `--rm`, because of its changes."), "{told}");
    assert!(!agents.made().exists());
    assert_eq!(agents.kept_and_deleted(), (1, 0));
    let applied = agents.0.banger(&["vm", "workspace", "export", "box-tool", "--apply", "-q"]);
    assert!(applied.status == 0 && agents.made().exists(), "{applied:?}");
    // One that cannot be applied is no reason to lose it.
    fs::remove_dir_all(&agents.0.guest).unwrap();
    agents.0.git(&["add", "."]);
    agents.0.git(&["commit", "-qm", "work"]);
    let script = format!("echo more > made; echo local > {}", agents.made().display());
    fs::write(agents.0.host.path("tool.sh"), script).unwrap();
    let ended = agents.run(&["--rm", "--apply"], &[]);
    assert!(
        ended.errors.contains("has changes that were neither sent nor committed, as in made"),
        "{ended:?}"
    );
    assert_eq!(ended.status, 125, "{ended:?}");
    assert_eq!(fs::read_to_string(agents.made()).unwrap(), "local\n");
    assert_eq!(agents.kept_and_deleted(), (2, 0));
}

#[test]
fn commits_that_are_only_in_the_sandbox_keep_it() {
    let script = "git -c user.name=Eve -c user.email=eve@example.org commit -q --allow-empty -m aside\ngit branch aside\n\
        git reset -q --hard HEAD~1";
    let agents = Agents::new(script, "");
    let ended = agents.run(&["--rm", "--apply"], &[]);
    assert!(ended.status == 0 && ended.errors.contains("`banger vm workspace fetch box-tool`"), "{ended:?}");
    assert_eq!(agents.kept_and_deleted(), (1, 0));
}

#[test]
fn changes_that_are_declined_are_not_kept() {
    let agents = Agents::new("echo work > made", "");
    let ended = agents.run(&["--rm", "--no-apply"], &[]);
    assert!(ended.status == 0 && ended.errors.contains(" made | 1 +"), "{ended:?}");
    assert_eq!((agents.kept_and_deleted(), agents.made().exists()), ((0, 1), false));
    // Nobody would see these.
    let refused = agents.run(&["--rm", "--detach"], &[]);
    assert!(
        refused.status == 2 && refused.errors.contains("would delete the agent's changes unseen"),
        "{refused:?}"
    );
}

#[test]
fn the_user_decides_on_the_terminal() {
    let agents = Agents::new("printf 'name? '; read name; echo $name > made", "");
    for (answer, applied) in [("no", false), ("y", true)] {
        let mut terminal = agents.0.host.start_in_terminal(&agents.words(&["--rm"], &[]));
        terminal.wait_for("name? ");
        terminal.type_in("Ann\r");
        terminal.wait_for("Apply these changes to ");
        // An answer that is neither is asked for again.
        terminal.type_in("what\n");
        terminal.wait_for("what\r\nApply these changes to ");
        terminal.type_in(&format!("{answer}\n"));
        let (status, seen) = terminal.end();
        assert!(status.success() && seen.contains(" made | 1 +"), "{seen}");
        assert_eq!(fs::read_to_string(agents.made()).ok().as_deref(), applied.then_some("Ann\n"), "{seen}");
        fs::remove_dir_all(&agents.0.guest).unwrap();
    }
    assert_eq!(agents.kept_and_deleted(), (0, 2));
}

/// A directory in the home of the sandbox, which is this host.
struct InSandbox(PathBuf);

impl Drop for InSandbox {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn files_with_secrets_are_copied_only_if_the_user_says_so() {
    let agents = Agents::new("true", "");
    let home = agents.0.host.home();
    let unique =
        home.parent().unwrap().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
    let directory = format!(".banger-test-{unique}");
    let there = InSandbox(Path::new("/root").join(&directory));
    let file =
        |name: &str, secret: bool| format!("[[file]]\npath = '~/{directory}/{name}'\nsecret = {secret}\n");
    let files = [file("settings", false), file("key", true), file("none", true)].concat();
    agents.preset("tool", &format!("command = ['true']\nimage = 'debian'\n{files}"));
    fs::create_dir_all(home.join(&directory)).unwrap();
    fs::write(home.join(&directory).join("settings"), "s").unwrap();
    fs::write(home.join(&directory).join("key"), "k").unwrap();
    let ended = agents.run(&[], &[]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let key =
        format!("note: ~/{directory}/key is not copied; `--with-credentials` copies files with secrets.");
    assert!(ended.errors.contains(&key), "{ended:?}");
    let copied = format!("note: the sandbox gets your ~/{directory}/settings.");
    assert!(ended.errors.contains(&copied), "{ended:?}");
    assert!(there.0.join("settings").exists() && !there.0.join("key").exists());
    fs::remove_dir_all(&agents.0.guest).unwrap();
    let ended = agents.run(&["--with-credentials"], &[]);
    assert!(ended.status == 0 && !ended.errors.contains("not copied"), "{ended:?}");
    let copied = fs::metadata(there.0.join("key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&copied.permissions()) & 0o777, 0o600);
    // A link that leads out of the home is refused before a sandbox is created.
    let before = agents.0.host.calls("CreateVM").len();
    fs::remove_file(home.join(&directory).join("settings")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", home.join(&directory).join("settings")).unwrap();
    let ended = agents.run(&[], &[]);
    assert!(ended.status == 125 && ended.errors.contains("which is not below your home"), "{ended:?}");
    assert_eq!(agents.0.host.calls("CreateVM").len(), before);
}

#[test]
fn a_dry_run_lists_the_files_and_creates_nothing() {
    let agents = Agents::new("true", "");
    let ended = agents.run(&["--dry-run"], &[]);
    assert!(ended.status == 0 && ended.output.lines().any(|line| line == "src/main.rs"), "{ended:?}");
    // Another one was there before.
    assert_eq!(agents.0.host.calls("CreateVM").len(), 1);
}

#[test]
fn presets_have_precedence_over_settings_and_options_over_presets() {
    let host = Host::new();
    preset(&host, "tool", "command = ['true']\nimage = 'debian'\nmemory = '3GiB'\n");
    let settings = host.home().join(".config/banger");
    fs::write(
        settings.join("config.toml"),
        "[defaults]\nimage = 'other'\nmemory = '1GiB'\nnat = true\nvcpus = 7\n",
    )
    .unwrap();
    let told = |options: &[&str]| {
        let mut command = host.command(&[&["agent", "tool", "--rm"], options].concat());
        let proxied = command.env("https_proxy", "http://proxy.example:3128");
        let output = proxied.current_dir(host.home()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let run = |options: &[&str]| {
        told(&[&["-q"], options].concat());
        host.calls("CreateVM").pop().unwrap().options
    };
    let options = run(&[]);
    assert_eq!((options["image"].as_str(), options["memory"].as_str()), ("\"debian\"", "3221225472"));
    assert_eq!((options["vcpus"].as_str(), options.get("nat"), options.get("egress")), ("7", None, None));
    let options = run(&["--memory", "2GiB", "--image", "debian", "--nat"]);
    assert_eq!((options["memory"].as_str(), options["nat"].as_str()), ("2147483648", "true"));
    // A policy of the settings is replaced with a note, and their proxies do not lead around that of the preset.
    let text = "[defaults]\negress = 'none'\nproxy = true\n";
    fs::write(settings.join("config.toml"), text).unwrap();
    let script = "command = ['sh', '-c', 'echo proxy=$https_proxy']\nimage = 'debian'\negress = ['git']\n";
    preset(&host, "tool", script);
    let (said, notes) = told(&[]);
    assert_eq!(said, "proxy=\n", "{notes}");
    assert_eq!(host.calls("CreateVM").pop().unwrap().options["egress"], "\"git\"");
    assert!(
        notes.contains("note: the preset tool replaces the egress policy of your settings, none."),
        "{notes}"
    );
    assert!(notes.contains("note: your proxies reach more than the preset allows; `--proxy`"), "{notes}");
}

#[test]
fn the_repository_of_the_home_is_not_sent_unasked() {
    let agents = Agents::new("true", "");
    let home = agents.0.host.home();
    fs::create_dir_all(home.join(".git")).unwrap();
    fs::create_dir_all(home.join("docs")).unwrap();
    let mut command = agents.0.host.command(&["agent", "tool", "--rm"]);
    let output = command.current_dir(home.join("docs")).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("note: the repository of your home is not sent unless you give its path."),
        "{told}"
    );
}

#[test]
fn presets_are_listed_and_mistakes_in_them_are_named() {
    let host = Host::new();
    preset(&host, "tool", "command = ['tool', '--quiet']\ndescription = 'Made up'\negress = ['git']\n");
    preset(&host, "typo", "comand = ['x']\n");
    let list = host.banger(&["agent", "list"]);
    let rows: Vec<Vec<&str>> = list.output.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["tool", "user", "tool", "--quiet", "Made", "up"]), "{list:?}");
    assert!(list.errors.contains("typo.toml: there is no key comand; did you mean command?"), "{list:?}");
    let json: Value = serde_json::from_str(&host.banger(&["agent", "list", "--json"]).output).unwrap();
    let shown: Value =
        serde_json::from_str(&host.banger(&["agent", "show", "tool", "--json"]).output).unwrap();
    assert!(json.as_array().unwrap().contains(&shown), "{json}");
    assert_eq!((&shown["command"][1], &shown["image"]), (&"--quiet".into(), &Value::Null));
    let text = host.banger(&["agent", "show", "tool"]).output;
    assert!(text.lines().any(|line| line.split_whitespace().eq(["egress", "git"])), "{text}");
    let wrong = host.banger(&["agent", "tol"]);
    assert_eq!(wrong.status, 125);
    assert!(
        wrong.errors.contains("there is no preset tol for a coding agent.\nhint: did you mean tool?"),
        "{wrong:?}"
    );
    assert_eq!(host.banger(&["agent", "typo"]).status, 125);
    assert!(host.all_calls().is_empty());
}
