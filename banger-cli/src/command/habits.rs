//! What users of docker, podman, multipass and Lima type, and what to type instead. A command line that means
//! something there gets a hint that can be pasted.

use std::{
    env,
    path::{Path, PathBuf},
};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{Command, vm::VmCommand};
use crate::{cli, error::Error, mount::volume_name, workspace::record::shell_word};

/// Verbs that are spelled otherwise here, or that banger does not have.
const VERBS: &[(&[&str], &str)] = &[
    (&["build", "buildx"], "`banger image build DIRECTORY` builds an image from a Dockerfile or a recipe."),
    (
        &["compose"],
        "`banger run -d --name NAME` starts each sandbox; they reach each other by the name NAME.vm.",
    ),
    (&["container", "containers"], "`banger ps` lists sandboxes; `banger --help` has all verbs."),
    (&["copy", "scp", "transfer"], "`banger cp FILE NAME:PATH` copies files."),
    (&["diff"], "`banger workspace export NAME` shows what changed in a repository that you sent."),
    (&["find", "search"], "`banger image list --available` shows what the catalogs have."),
    (&["history"], "`banger image inspect IMAGE` shows where an image comes from."),
    (&["import", "load"], "`banger image register --name NAME FILE` adds an image from a file."),
    (&["info", "system"], "`banger doctor` checks the host, `banger version` shows the versions."),
    (&["init", "launch", "up"], "`banger run` creates a sandbox and opens a shell in it."),
    (
        &["login", "logout"],
        "banger uses the credentials of `docker login REGISTRY` and `podman login REGISTRY`.",
    ),
    (&["mount", "umount", "volume", "volumes"], MOUNTS),
    (&["network", "networks"], NETWORKS),
    (
        &["port"],
        "`banger vm publish NAME` lists the published ports, `banger vm ports NAME` those on which the sandbox listens.",
    ),
    (&["push"], "`banger image push IMAGE REGISTRY/REPOSITORY:TAG` pushes an image to a registry."),
    (&["purge"], "`banger vm prune` deletes the sandboxes that are not running."),
    (&["save", "export"], "`banger image export IMAGE FILE.tar` writes an image to a file."),
    (&["update"], "`banger vm set NAME` changes the sizes, labels and internet access of a sandbox."),
];

/// Options of `docker run` that are spelled otherwise here, or that sandboxes do not need.
const OPTIONS: &[(&[&str], &str)] = &[
    (&["--volumes-from"], MOUNTS),
    (&["--network", "--net", "--link", "--dns", "--add-host", "--ip"], NETWORKS),
    (
        &[
            "--privileged",
            "--cap-add",
            "--cap-drop",
            "--security-opt",
            "--device",
            "--userns",
            "--pid",
            "--ipc",
        ],
        "leave it out: root in a sandbox may do everything, with a kernel of its own.",
    ),
    (&["--hostname"], "`--name NAME` is also the host name in the guest."),
    (&["-D"], "`banger ssh NAME -- -D PORT` runs ssh, which has a SOCKS proxy."),
    (&["--init"], "leave it out: the guest always has an init."),
    (&["--platform"], "leave it out: sandboxes run programs for the host's processors only."),
    (&["--shm-size", "--ulimit", "--tmpfs", "--read-only"], "set it in the guest, where you are root."),
    (&["--gpus"], "leave it out: sandboxes have no access to graphics processors."),
    (&["--host", "-H", "--context"], "put it before the command, as in `--host ssh://HOST ps`."),
    (&["--no-trunc"], "leave it out: `--json` prints whole ids."),
];

const MOUNTS: &str = "`banger run --mount DIR:/PATH` mounts a directory of this host while the command runs; `banger run \
                      PATH` sends a repository, `banger cp FILE NAME:PATH` copies files.";
/// What users of docker write for `-v`.
const LONG_MOUNT: &str = "write `--mount DIR:/PATH`, or `--mount DIR:/PATH:ro`.";
const NETWORKS: &str = "sandboxes of one owner reach each other as NAME.vm; `--nat` gives internet access, which is \
                        off by default.";

/// Explains an invalid command line to a user of another tool, if it means something there.
pub fn explain(wrong: &clap::Error, line: &[String]) -> Option<Error> {
    if !wrong.use_stderr() {
        // It is no error: the user has asked for help or the version.
        return None;
    }
    // Options of the forgotten command may be wrong in any way.
    if let Some(error) = forgotten_separator(line) {
        return Some(error);
    }
    match wrong.kind() {
        ErrorKind::InvalidSubcommand => {
            let verb = context(wrong, ContextKind::InvalidSubcommand)?;
            let usage = Error::Usage(format!("banger has no command {verb}"));
            Some(usage.with_hint(lookup(VERBS, verb)?))
        }
        ErrorKind::UnknownArgument => {
            let argument = context(wrong, ContextKind::InvalidArg)?;
            let option = argument.split(['=', ' ']).next()?;
            let usage = Error::Usage(format!("banger has no option {option}"));
            Some(usage.with_hint(lookup(OPTIONS, option)?))
        }
        ErrorKind::ValueValidation => {
            if has_volume(wrong)
                && let Some(error) = no_volume(context(wrong, ContextKind::InvalidValue)?)
            {
                return Some(error);
            }
            let is_long = |kind| context(wrong, kind).is_some_and(|text| text.starts_with("type="));
            let usage = Error::Usage("banger mounts directories of this host only".to_owned());
            is_long(ContextKind::InvalidValue).then(|| usage.with_hint(LONG_MOUNT))
        }
        _ => None,
    }
}

fn has_volume(wrong: &clap::Error) -> bool {
    context(wrong, ContextKind::InvalidArg).is_some_and(|option| option.starts_with("--volume "))
}

/// Explains a value of `-v` that would be a volume of docker.
fn no_volume(value: &str) -> Option<Error> {
    let words = |directory: &str, path: &str| format!("`-v {}`", shell_word(&format!("{directory}:{path}")));
    if let Some(name) = volume_name(value) {
        let path = value.strip_prefix(name)?.strip_prefix(':')?;
        let hint = format!("for the directory of this name, write {}.", words(&format!("./{name}"), path));
        return Some(
            Error::Usage(format!("cannot mount the volume {name}: banger has no volumes")).with_hint(hint),
        );
    }
    let is_path = value.starts_with('/') && !value.contains(':');
    let hint = format!("for this directory of the host, write {}.", words(value, value));
    is_path.then(|| Error::Usage(format!("-v {value} names no directory of this host")).with_hint(hint))
}

fn context(wrong: &clap::Error, kind: ContextKind) -> Option<&str> {
    match wrong.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

fn lookup(table: &[(&[&str], &'static str)], word: &str) -> Option<&'static str> {
    table.iter().find(|(words, _)| words.contains(&word)).map(|(_, hint)| *hint)
}

/// Explains a `run` whose command is not behind `--`, such as `banger run make test`.
pub fn forgotten_separator(line: &[String]) -> Option<Error> {
    let verb = match line.iter().skip(1).map(String::as_str).take(2).collect::<Vec<_>>().as_slice() {
        ["run", ..] => 2,
        ["vm", "run"] => 3,
        _ => return None,
    };
    if line.iter().any(|word| word == "--") {
        return None;
    }
    // The longest beginning that is a run by itself: its options, and the directory if it is one.
    let end = (verb..line.len()).rev().find(|end| is_run(&line[..*end]))?;
    let (head, command) = line.split_at(end);
    let first = command.first().filter(|word| !word.starts_with('-'))?;
    let run = quoted(&[&["banger".to_owned()][..], &head[1..]].concat());
    let as_command = format!("`{run} -- {}`", quoted(command));
    let as_image = match command {
        [image] => format!("`{run} --image {}`", quoted(std::slice::from_ref(image))),
        [image, rest @ ..] => {
            format!("`{run} --image {} -- {}`", quoted(std::slice::from_ref(image)), quoted(rest))
        }
        [] => return None,
    };
    let hint = match (first.contains([':', '/']), is_program(first)) {
        (true, _) => format!("{as_image}."),
        (false, true) => format!("{as_command}."),
        (false, false) => format!("{as_command}, or for an image of this name {as_image}."),
    };
    let message = match first.contains([':', '/']) {
        true => format!("there is no directory {first}; an image is given by --image"),
        false => format!("there is no directory {first}; put a command after `--`"),
    };
    Some(Error::Usage(message).with_hint(hint))
}

/// Returns whether this is a complete command line that runs something in a new sandbox, in an existing directory if
/// it names one.
fn is_run(line: &[String]) -> bool {
    match cli::try_parse(line.iter().map(Into::into)).map(|cli| cli.command) {
        Ok(Command::Flat(VmCommand::Run(run)) | Command::Vm(VmCommand::Run(run))) => {
            run.path().is_none_or(Path::is_dir)
        }
        _ => false,
    }
}

/// Returns whether the user's shell would find a program of this name.
fn is_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory: PathBuf| directory.join(name).is_file())
}

/// Quotes words for a shell.
fn quoted(words: &[String]) -> String {
    words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Returns the hint for a command line.
    fn hint(line: &str) -> String {
        let line: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let wrong = cli::try_parse(line.iter().map(Into::into));
        let error = match wrong {
            Ok(_) => forgotten_separator(&line),
            Err(wrong) => explain(&wrong, &line),
        };
        error.and_then(|error| error.hint()).unwrap_or_default()
    }

    #[test]
    fn a_command_that_is_not_behind_the_separator_is_recognised() {
        let directory = tempfile::tempdir().unwrap();
        let repository = directory.path().to_str().unwrap();
        for (line, expect) in [
            ("banger run ls -l", "`banger run -- ls -l`."),
            ("banger run ls", "`banger run -- ls`."),
            ("banger vm run --rm --name x ls y", "`banger vm run --rm --name x -- ls y`."),
            ("banger run -it alpine:3.20 sh", "`banger run -it --image alpine:3.20 -- sh`."),
            ("banger run --rm ghcr.io/a/b", "`banger run --rm --image ghcr.io/a/b`."),
            (
                "banger run -v /a:/b alpine",
                "`banger run -v /a:/b -- alpine`, or for an image of this name `banger run -v /a:/b --image alpine`.",
            ),
            ("banger run --mount type=bind,src=/a,dst=/b", LONG_MOUNT),
            ("banger run -v /data", "for this directory of the host, write `-v /data:/data`."),
            ("banger exec -v data:/d:ro web ls", "for the directory of this name, write `-v ./data:/d:ro`."),
            ("banger run -v ./a:b", ""),
            ("banger run -v type=bind,src=/a,dst=/b", LONG_MOUNT),
            ("banger volume ls", MOUNTS),
            ("banger run --rm -- ls", ""),
            ("banger run --rm", ""),
            ("banger exec web ls -l", ""),
        ] {
            assert_eq!(hint(line), expect, "{line}");
        }
        let expect = format!("`banger run --rm {repository} -- ls -l --all`.");
        assert_eq!(hint(&format!("banger run --rm {repository} ls -l --all")), expect);
        let both = hint("banger run no-such-program x");
        assert!(
            both.contains(" -- no-such-program x`, or ") && both.contains("--image no-such-program -- x`")
        );
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        let line = ["banger", "run", "sh", "-c", "echo it's $HOME"].map(str::to_owned);
        let hint = forgotten_separator(&line).unwrap().hint().unwrap();
        assert_eq!(hint, r"`banger run -- sh -c 'echo it'\''s $HOME'`.");
    }

    #[test]
    fn habits_of_docker_work_or_get_a_hint() {
        for line in [
            "run -it",
            "run -dit --name web",
            "run --rm -v /a:/b -v .:/c:ro --volume /d:/e:rw --image alpine",
            "run -v .:/w:Z -v /a:/b:ro,z -v ~/c:/d:cached --image alpine",
            "exec -v /a:/b web ls",
            "run -d --rm -e A=b --env-file /dev/null -w /srv -u dev -m 512m --cpus 2 -l a=b -- ./serve",
            "exec -it web bash",
            "ps -a",
            "ps -aq",
            "ls",
            "images",
            "image ls",
            "pull alpine",
            "rmi alpine",
            "inspect web",
            "image inspect alpine",
            "tag alpine mine",
            "image tag alpine mine",
            "logs -f --since 10m --tail 5 web",
            "logs --since 2026-01-01T00:00:00 --until 5m web",
            "cp -r ./src web:/srv",
            "stop -t 3 web",
            "kill -s TERM web",
            "rm -f web",
            "wait web",
            "rename web db",
            "top web",
            "stats web",
            "create --name web",
            "attach web",
        ] {
            let words = ["banger"].into_iter().chain(line.split(' ')).map(Into::into);
            assert!(cli::try_parse(words).is_ok(), "{line}");
        }
        for line in [
            "build .",
            "login",
            "network create x",
            "volume ls",
            "container ls",
            "run --privileged",
            "run --network=host",
            "run --mount type=bind,src=/a,dst=/b",
            "launch",
        ] {
            assert_ne!(hint(&format!("banger {line}")), "", "{line}");
        }
    }

    #[test]
    fn hints_are_sentences_and_their_commands_exist() {
        for (_, hint) in VERBS.iter().chain(OPTIONS) {
            assert!(hint.ends_with('.') && !hint.contains("  "), "{hint}");
            for command in hint.split('`').skip(1).step_by(2).filter(|text| text.starts_with("banger ")) {
                let parser = cli::parser();
                let mut at = &parser;
                for word in command.split(' ').skip(1) {
                    match at.find_subcommand(word) {
                        Some(verb) => at = verb,
                        None => break,
                    }
                }
                assert!(!std::ptr::eq(at, &parser) || command == "banger --help", "{command}");
            }
        }
        let verbs = VERBS.iter().flat_map(|(verbs, _)| verbs.iter());
        for verb in verbs {
            assert!(cli::parser().find_subcommand(verb).is_none(), "banger has {verb}");
        }
    }
}
