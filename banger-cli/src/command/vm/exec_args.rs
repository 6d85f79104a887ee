//! The options for running a command in a sandbox.

use std::{collections::BTreeMap, env, fs, io::Read};

use banger_proto::{
    causes::without_codes,
    guest::{Exec, message::Phase},
};
use clap::{Args, ValueHint};

use super::wait::Wait;
use crate::{
    guest::attach::{Stdin, TerminalUse},
    mount::{MountSpec, volume},
    share::Share,
    user::{defaults::Key, locale, settings::Settings},
};

/// The options of a command that runs something in a sandbox.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The command")]
pub struct ExecArgs {
    /// Run it in a terminal [default: when standard input and output are terminals]
    #[arg(short, long, overrides_with = "no_tty")]
    tty: bool,
    /// Run it without a terminal
    #[arg(short = 'T', long, overrides_with = "tty")]
    no_tty: bool,
    /// Pass standard input on. This is the default; accepted for users of docker
    #[arg(short, long)]
    interactive: bool,
    /// Run it without input, so that it does not read the input of a `while read` loop; implies --no-tty
    #[arg(short = 'n', long, conflicts_with = "interactive")]
    no_stdin: bool,
    /// Run it as this user (a name or a number) [default: the image's user, else root]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Run it in this directory [default: the repository that was sent, else the image's, else the user's home]
    #[arg(short, long, visible_alias = "cwd", value_name = "DIRECTORY")]
    workdir: Option<String>,
    /// Set an environment variable; without a value, pass on the host's
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<Variable>,
    /// Pass on your http_proxy, https_proxy, all_proxy and no_proxy. A proxy on this host's loopback is reached
    /// through banger
    #[arg(long, overrides_with = "no_proxy")]
    proxy: bool,
    /// Pass on no proxy. This is the default, unless your settings say `proxy = true`
    #[arg(long, overrides_with = "proxy")]
    no_proxy: bool,
    /// What the user's settings say about proxies.
    #[arg(skip)]
    proxy_by_default: bool,
    /// Set the environment variables in a file of NAME=VALUE lines, as `docker run --env-file`; --env overrides it
    #[arg(long, value_name = "FILE", value_parser = env_file)]
    env_file: Vec<EnvFile>,
    /// Let the command use your credentials while it runs: git's for a host (git:HOST), those of docker and podman for
    /// a registry (docker:REGISTRY), or the keys of your ssh-agent (ssh-agent, or ssh-agent:KEY, where KEY is a
    /// fingerprint or the file of a public key). Each use is reported
    #[arg(long, value_name = "WHAT")]
    share: Vec<Share>,
    /// Mount a directory of this host while the command runs, at PATH or at the directory's own path; `:ro` makes it
    /// read-only. What the sandbox writes there is on this host at once. Can be repeated
    #[arg(long, value_name = "DIR[:PATH][:ro]", value_hint = ValueHint::DirPath)]
    mount: Vec<MountSpec>,
    /// Mount a directory like --mount, in the form of `docker run -v`: PATH is required. Volumes are not supported
    #[arg(short = 'v', long, value_name = "DIR:PATH[:ro]", value_parser = volume, value_hint = ValueHint::DirPath)]
    volume: Vec<MountSpec>,
    /// Run the image's entry point, with the command as its arguments instead of the image's own
    #[arg(long)]
    entrypoint: bool,
    /// Phase of the guest's boot to wait for first [default: your setting `wait`, else init]
    #[arg(long, value_name = "PHASE")]
    wait: Option<Wait>,
}

/// An environment variable; without a value if it is not set on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    name: String,
    value: Option<String>,
}

fn variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, env::var(text).ok()),
    };
    if name.is_empty() || text.contains('\0') {
        return Err("a variable needs a name".to_owned());
    }
    Ok(Variable { name: name.to_owned(), value })
}

/// The variables in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EnvFile(Vec<Variable>);

/// Limit on the size of a file of variables, in bytes.
const MAX_ENV_FILE: u64 = 1 << 20;

/// Reads a file of variables.
fn env_file(path: &str) -> Result<EnvFile, String> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_ENV_FILE + 1).read_to_string(&mut text));
    read.map_err(|error| without_codes(&format!("cannot read it: {error}")))?;
    if text.len() as u64 > MAX_ENV_FILE {
        return Err("it is larger than 1 MiB".to_owned());
    }
    variables(&text)
}

/// Parses a file of variables in docker's format: a variable on each line, without quotes. Lines that begin with `#`
/// are comments. In a file with zero bytes, variables end with them instead, as `env -0` prints them, so that values can
/// have line feeds.
fn variables(text: &str) -> Result<EnvFile, String> {
    if text.contains('\0') {
        let entries = text.split_terminator('\0').zip(1..);
        let parsed = entries.map(|(entry, number)| match entry.split_once('=') {
            Some((name, _)) if !name.contains(char::is_whitespace) => {
                variable(entry).map_err(|error| format!("variable {number}: {error}"))
            }
            _ => Err(format!("variable {number}: it is not NAME=VALUE")),
        });
        return parsed.collect::<Result<_, _>>().map(EnvFile);
    }
    let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines().zip(1..);
    let lines = lines.map(|(line, number)| (line.trim_start(), number));
    let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    let parsed = lines.map(|(line, number)| match line.split_once('=').unwrap_or((line, "")).0 {
        name if name.contains(char::is_whitespace) => Err(format!("line {number}: a name has no blanks")),
        _ => variable(line).map_err(|error| format!("line {number}: {error}")),
    });
    parsed.collect::<Result<_, _>>().map(EnvFile)
}

/// Returns whether a command for this user runs as the owner of a workspace.
pub fn is_owner(user: Option<&str>, owner: &str) -> bool {
    user.is_none_or(|user| user == owner || (owner == "root" && user == "0"))
}

impl ExecArgs {
    /// Returns the request for this command; a login shell if it is empty.
    pub fn exec(&self, command: &[String]) -> Exec {
        let tty = match (self.tty, self.no_tty) {
            (true, _) => TerminalUse::Always,
            (_, true) => TerminalUse::Never,
            _ if self.no_stdin => TerminalUse::Never,
            _ => TerminalUse::Auto,
        };
        Exec { terminal: tty.terminal(), ..self.without_terminal(command) }
    }

    /// Returns the request for this command, detached.
    pub fn detached(&self, command: &[String]) -> Exec {
        Exec { detach: true, ..self.without_terminal(command) }
    }

    /// Returns the same options, with the user's defaults for those that were not given.
    pub fn with(&self, settings: &Settings) -> Self {
        let defaults = &settings.defaults;
        Self {
            user: self.user.clone().or_else(|| defaults.text(Key::User).map(str::to_owned)),
            proxy_by_default: defaults.switch(Key::Proxy).unwrap_or_default(),
            ..self.clone()
        }
    }

    /// Returns the same options with more variables, which count less than those that were given.
    pub fn with_variables(&self, variables: Vec<(String, String)>) -> Self {
        let more = variables.into_iter().map(|(name, value)| Variable { name, value: Some(value) });
        let env_file = [EnvFile(more.collect())].into_iter().chain(self.env_file.iter().cloned()).collect();
        Self { env_file, ..self.clone() }
    }

    /// Returns the same options with this user, if none was given.
    pub fn with_user(&self, user: &str) -> Self {
        Self { user: self.user.clone().or_else(|| Some(user.to_owned())), ..self.clone() }
    }

    /// Returns the same options without the user's proxies.
    pub fn without_proxy(&self) -> Self {
        Self { proxy: false, no_proxy: true, ..self.clone() }
    }

    /// Returns whether the user's proxies are passed on.
    pub fn proxy(&self) -> bool {
        self.proxy || (self.proxy_by_default && !self.no_proxy)
    }

    /// Returns whether the command line asks for that.
    pub fn asks_for_proxy(&self) -> bool {
        self.proxy
    }

    /// Returns the credentials that it may use.
    pub fn shares(&self) -> &[Share] {
        &self.share
    }

    /// Returns the directories that are mounted while it runs.
    pub fn mounts(&self) -> Vec<MountSpec> {
        self.mount.iter().chain(&self.volume).cloned().collect()
    }

    /// Returns the variables that are set for the command.
    pub fn variables(&self) -> BTreeMap<String, String> {
        self.without_terminal(&[]).env.into_iter().collect()
    }

    /// Returns the standard input of the command.
    pub fn stdin(&self) -> Stdin {
        if self.no_stdin { Stdin::Null } else { Stdin::Ours }
    }

    /// Returns the boot phase given by `--wait`.
    pub fn wait(&self) -> Option<Wait> {
        self.wait
    }

    /// Returns the boot phase to wait for before a command starts.
    pub fn phase(&self, settings: &Settings) -> Phase {
        self.wait.unwrap_or(settings.wait).phase()
    }

    /// Returns whether it runs as the owner of a workspace.
    pub fn is_of(&self, owner: &str) -> bool {
        is_owner(self.user.as_deref(), owner)
    }

    fn without_terminal(&self, command: &[String]) -> Exec {
        let set = |variable: &Variable| Some((variable.name.clone(), variable.value.clone()?));
        Exec {
            argv: command.to_vec(),
            of_image: self.entrypoint,
            // The last value of a variable counts.
            env: self.env_file.iter().flat_map(|file| &file.0).chain(&self.env).filter_map(set).collect(),
            unset: Vec::new(),
            path: Vec::new(),
            cwd: self.workdir.clone(),
            user: self.user.clone(),
            terminal: None,
            detach: false,
            power_off: false,
            locale: locale::of_caller(),
            wait: Phase::default(),
            session: None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{cli::parse_args, user::defaults::Defaults};

    fn parse(line: &str) -> ExecArgs {
        parse_args(line).unwrap()
    }

    #[test]
    fn the_request_says_how_the_command_runs() {
        let command = ["make".to_owned(), "test".to_owned()];
        let exec = parse("-T -u dev -w /tmp -e A=b=c -e B=").exec(&command);
        assert_eq!(exec.argv, command);
        assert_eq!(exec.env, [("A".into(), "b=c".into()), ("B".into(), String::new())]);
        assert_eq!((exec.user.as_deref(), exec.cwd.as_deref()), (Some("dev"), Some("/tmp")));
        assert_eq!((exec.terminal, exec.detach), (None, false));
    }

    #[test]
    fn the_last_word_about_the_terminal_counts() {
        assert!(parse("-T -t").exec(&[]).terminal.is_some());
        assert!(parse("-t -T").exec(&[]).terminal.is_none());
        assert!(parse("-t").detached(&[]).terminal.is_none());
    }

    #[test]
    fn options_of_docker_mean_what_they_mean_there() {
        let exec = parse("-it");
        assert!(exec.exec(&[]).terminal.is_some());
        assert_eq!(exec.stdin(), Stdin::Ours);
        assert_eq!(parse("-i -T").stdin(), Stdin::Ours);
        assert!(parse_args::<ExecArgs>("-in").is_err());
    }

    #[test]
    fn defaults_fill_in_what_the_command_line_leaves_out() {
        let values = [(Key::User, "dev"), (Key::Proxy, "true")];
        let values = values.map(|(key, text)| (key, key.parse(text).unwrap()));
        let defaults = Defaults::of([(values.into(), "file".to_owned())]);
        let settings = Settings { defaults, ..Settings::default() };
        let with = |line: &str| parse(line).with(&settings);
        assert_eq!((with("").user.as_deref(), with("").proxy()), (Some("dev"), true));
        assert_eq!((with("-u root").user.as_deref(), with("--no-proxy").proxy()), (Some("root"), false));
        assert!(!parse("").with(&Settings::default()).proxy());
    }

    #[test]
    fn a_command_waits_for_the_early_boot_unless_told_otherwise() {
        let (usual, agent) = (Settings::default(), Settings { wait: Wait::Agent, ..Settings::default() });
        assert_eq!(parse("").phase(&usual), Phase::Init);
        assert_eq!(parse("").phase(&agent), Phase::Agent);
        assert_eq!(parse("--wait agent").phase(&usual), Phase::Agent);
        assert_eq!(parse("--wait boot").phase(&agent), Phase::Boot);
        assert!(parse_args::<ExecArgs>("--wait never").is_err());
    }

    #[test]
    fn without_input_there_is_no_terminal_unless_asked_for() {
        let exec = parse("-n");
        assert_eq!((exec.stdin(), exec.exec(&[]).terminal), (Stdin::Null, None));
        assert!(parse("-n -t").exec(&[]).terminal.is_some());
    }

    #[test]
    fn a_file_of_variables_has_the_format_of_docker() {
        let path = env::var("PATH").unwrap();
        let text = "\u{feff}# comment\n\nA=b # not a comment\r\n  B=\"quoted\"\nC=\nPATH\nBANGER_NOT_SET_HERE\nD=x=y\n";
        let EnvFile(found) = variables(text).unwrap();
        let found: Vec<_> = found.iter().map(|v| (v.name.as_str(), v.value.as_deref())).collect();
        let expect = [
            ("A", Some("b # not a comment")),
            ("B", Some("\"quoted\"")),
            ("C", Some("")),
            ("PATH", Some(path.as_str())),
            ("BANGER_NOT_SET_HERE", None),
            ("D", Some("x=y")),
        ];
        assert_eq!(found, expect);
        for (text, wrong) in [
            ("A=1\n=x\n", "line 2: a variable needs a name"),
            ("export A=1", "line 1: a name has no blanks"),
            ("A B=1", "line 1: a name has no blanks"),
        ] {
            assert_eq!(variables(text).unwrap_err(), wrong, "{text:?}");
        }
    }

    #[test]
    fn variables_that_end_with_zero_bytes_can_have_line_feeds() {
        let EnvFile(found) = variables("A=1\n2\r\n\0B= x=y \0#C=\0").unwrap();
        let expect = [("A", "1\n2\r\n"), ("B", " x=y "), ("#C", "")];
        let expect = expect.map(|(name, value)| Variable { name: name.into(), value: Some(value.into()) });
        assert_eq!(found, expect);
        for (text, wrong) in [
            ("A=1\0PATH\0", "variable 2: it is not NAME=VALUE"),
            ("A=1\0\0", "variable 2: it is not NAME=VALUE"),
            ("A B=1\0", "variable 1: it is not NAME=VALUE"),
            ("=1\0", "variable 1: a variable needs a name"),
        ] {
            assert_eq!(variables(text).unwrap_err(), wrong, "{text:?}");
        }
    }

    #[test]
    fn an_option_has_precedence_over_a_file_of_variables() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        fs::write(&file, "A=file\nB=file\n").unwrap();
        let exec = parse(&format!("-e A=option --env-file {}", file.display())).exec(&[]);
        let last = |name: &str| exec.env.iter().rev().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!((last("A"), last("B")), ("option".into(), "file".into()));
        let missing = parse_args::<ExecArgs>("--env-file /nonexistent").unwrap_err().to_string();
        assert!(missing.contains("cannot read it: No such file or directory"), "{missing}");
    }

    #[test]
    fn a_variable_without_a_value_is_taken_from_the_host() {
        let path = env::var("PATH").unwrap();
        let here = Variable { name: "PATH".into(), value: Some(path) };
        assert_eq!(variable("PATH"), Ok(here));
        assert_eq!(parse("-e BANGER_NOT_SET_HERE").exec(&[]).env, []);
        assert!(variable("=x").is_err());
    }
}
