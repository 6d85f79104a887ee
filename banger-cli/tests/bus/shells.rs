//! Completions in real shells, with names of the real service.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    host::{Host, skip, until},
    real::host_with_image,
};

/// Returns the output of a shell that runs this script, with `banger` in its path.
fn run(host: &Host, shell: &str, options: &[&str], script: &str) -> Option<String> {
    if Command::new(shell).arg("--version").stdout(Stdio::null()).status().is_err() {
        skip(shell);
        return None;
    }
    let banger = host.command(&[]);
    let directory = Path::new(banger.get_program()).parent().unwrap().display().to_string();
    let mut command = Command::new(shell);
    for (name, value) in banger.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("PATH", format!("{directory}:/usr/bin:/bin")).env("TERM", "dumb").stdin(Stdio::null());
    let output = command.args(options).args(["-c", script]).output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until a shell completes as expected. On a busy host an answer may come too late; a shell shows none then.
fn completes(
    host: &Host,
    what: &str,
    (shell, options): (&str, &[&str]),
    script: &str,
    is_it: impl Fn(&str) -> bool,
) {
    let (mut is_missing, mut last) = (false, String::new());
    until(what, || {
        match run(host, shell, options, script) {
            Some(output) => last = output,
            None => is_missing = true,
        }
        let is_done = is_missing || is_it(&last);
        if !is_done {
            eprintln!("{what}: {last:?}");
        }
        is_done
    });
}

/// Returns the words of an output.
fn words(output: &str) -> String {
    output.split_whitespace().collect::<Vec<_>>().join(" ")
}

const BASH: (&str, &[&str]) = ("bash", &["--norc"]);

/// Starts the service with two sandboxes whose names begin alike, and one with another name.
fn with_sandboxes() -> Option<Host> {
    let host = host_with_image()?;
    for name in ["web", "worker", "store"] {
        assert_eq!(host.banger(&["vm", "create", "-q", "--no-start", "--name", name]).status, 0);
    }
    Some(host)
}

/// Returns a script that completes these words in bash.
fn in_bash(words: &str) -> String {
    let (count, last) = (words.split(' ').count(), words.rsplit(' ').next().unwrap());
    format!(
        "source <(banger completion bash); COMP_WORDS=(banger {words}); COMP_CWORD={count}; COMP_TYPE=9; \
         _clap_complete_banger banger {last}; echo \"${{COMPREPLY[@]}}\""
    )
}

#[test]
fn bash_completes_verbs_options_and_names() {
    let Some(host) = with_sandboxes() else { return };
    for (line, expect) in [
        ("vm sto", "stop"),
        ("vm stop w", "web worker"),
        ("vm stop store w", "web worker"),
        ("vm exec sto", "store"),
        ("vm show we", "web"),
        ("vm create --image deb", "debian-bookworm"),
        ("vm create --ker", "--kernel"),
        ("kernel show d", "debian"),
    ] {
        completes(&host, line, BASH, &in_bash(line), |output| words(output) == expect);
    }
}

/// Returns a script that completes a line as bash does: `words` are those of bash, the last one the one at the cursor.
fn line_in_bash(line: &str, words: &[&str]) -> String {
    let (count, last) = (words.len() - 1, words.last().unwrap());
    let last = if [":", "="].contains(last) { "" } else { *last };
    let words: String = words.iter().map(|word| format!("'{word}' ")).collect();
    format!(
        "source <(banger completion bash); COMP_LINE='{line}'; COMP_POINT={}; COMP_WORDS=({words}); \
         COMP_CWORD={count}; COMP_TYPE=9; _clap_complete_banger banger '{last}'; echo \"${{COMPREPLY[@]}}\"",
        line.len()
    )
}

#[test]
fn bash_completes_paths_in_a_sandbox_and_filters() {
    let host = Host::new();
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "box", "--image", "debian"]).status, 0);
    let tree = host.path("tree");
    std::fs::create_dir_all(tree.join("home")).unwrap();
    for name in ["hosts", "hostname", "h$(reboot)", "passwd"] {
        std::fs::write(tree.join(name), "").unwrap();
    }
    let tree = tree.display().to_string();
    let complete = |line: &str, typed: &[&str], expect: &str| {
        completes(&host, line, BASH, &line_in_bash(line, typed), |output| words(output) == expect);
    };
    let (below, expect) = (format!("{tree}/ho"), format!("{tree}/home/ {tree}/hostname {tree}/hosts"));
    complete(&format!("banger vm cp box:{below}"), &["banger", "vm", "cp", "box", ":", &below], &expect);
    // What a shell would run is not offered.
    let (below, expect) = (format!("{tree}/h"), format!("{tree}/home/ {tree}/hostname {tree}/hosts"));
    complete(
        &format!("banger vm cp x box:{below}"),
        &["banger", "vm", "cp", "x", "box", ":", &below],
        &expect,
    );
    complete("banger vm cp bo", &["banger", "vm", "cp", "bo"], "box:");
    let words = ["banger", "ps", "--filter", "state", "=", "ru"];
    complete("banger ps --filter state=ru", &words, "running");
    complete("banger ps --sort -cre", &["banger", "ps", "--sort", "-cre"], "-created -created_at");
}

#[test]
fn fish_completes_names_with_descriptions() {
    let Some(host) = with_sandboxes() else { return };
    let script = "banger completion fish | source; complete -C 'banger vm stop w'";
    completes(&host, "names in fish", ("fish", &["--no-config"]), script, |output| {
        output == "web\tcreated, debian-bookworm\nworker\tcreated, debian-bookworm\n"
    });
}

#[test]
fn zsh_completes_names() {
    let Some(host) = with_sandboxes() else { return };
    // A key is pressed in a shell with a terminal; the completed word is printed when the shell runs it.
    let script = r#"
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "PS1=; autoload -Uz compinit; compinit -u -D; source <(banger completion zsh)"
        zpty -w shell 'shout() { print -r -- "@${(U)3}@" }; compdef _clap_dynamic_completer_banger shout'
        zpty -w -n shell $'shout vm stop sto\t\n'
        zpty -r -m shell output '*@STO*@*'
        print -r -- $output
    "#;
    completes(&host, "names in zsh", ("zsh", &["-f"]), script, |output| output.contains("@STORE@"));
}

#[test]
fn scripts_of_other_shells_call_the_command() {
    let host = Host::without_service();
    for shell in ["powershell", "elvish"] {
        let ended = host.banger(&["completion", shell]);
        assert_eq!(ended.status, 0);
        assert!(
            ended.output.contains("BANGER_COMPLETE") && ended.output.contains(shell),
            "{shell}: {ended:?}"
        );
    }
}

#[test]
fn nothing_is_completed_without_the_service() {
    let host = Host::without_service();
    let Some(output) = run(&host, "bash", &["--norc"], &in_bash("vm stop w")) else { return };
    assert_eq!(output, "\n");
}
