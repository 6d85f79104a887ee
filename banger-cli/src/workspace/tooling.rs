//! Installs the tools that a repository requires with mise (https://mise.jdx.dev) in the sandbox.

use std::collections::BTreeMap;

use banger_proto::guest::{Exec, Frame, Request};

use super::{devcontainer::setup::Tmpfs, prepare::Plan, record::Record};
use crate::{
    error::{Error, Result},
    guest::agent::Guest,
    ui::sanitize::Filter,
};

/// Files of mise at the top of a repository.
const FILES: [&str; 4] = ["mise.toml", ".mise.toml", ".config/mise.toml", ".tool-versions"];
/// Exit status in the sandbox if the image has no mise.
pub const MISE_MISSING: u8 = 127;
/// Default owner of workspaces, whatever user the image has for its own programs.
pub const OWNER: &str = "root";
/// Limits on the output that is shown, in lines and in bytes.
const MAX_LINES: usize = 20;
const MAX_BYTES: usize = 16 << 10;
/// The log of mise in the sandbox, relative to the home of the workspace's owner.
pub const LOG: &str = ".cache/banger/mise-install.log";

/// Returns the file by which this repository requires tools, if there is one.
pub fn tool_file(plan: &Plan) -> Option<&'static str> {
    FILES.into_iter().find(|name| plan.files.iter().any(|file| file.path == name.as_bytes()))
}

/// Refuses to install tools without internet access, before anything is created.
pub fn check(plan: &Plan, nat: bool) -> Result<()> {
    match tool_file(plan) {
        Some(file) if !nat => Err(Error::Refused(format!(
            "the repository asks for tools in {file}, and the sandbox has no internet access"
        ))
        .with_hint("`--nat` gives it internet access, `--egress packages` only the package registries; `--no-bootstrap` skips the tools.")),
        _ => Ok(()),
    }
}

/// Installs the tools of a workspace. Returns the status, and the end of mise's output if the status is not 0.
pub async fn install(guest: &mut Guest, record: &Record) -> Result<(u8, Vec<u8>)> {
    let script = format!(
        "command -v mise > /dev/null || exit {MISE_MISSING}\n\
         log=$HOME/{LOG}\n\
         mkdir -p \"$(dirname \"$log\")\"\n\
         mise trust --quiet --all . > \"$log\" 2>&1\n\
         mise install --yes >> \"$log\" 2>&1 && exit 0\n\
         tail -n {MAX_LINES} \"$log\"\n\
         exit 1"
    );
    run(guest, record, &["sh".to_owned(), "-c".to_owned(), script]).await
}

/// Runs a command in a workspace, without input. Returns its status, and the end of its output.
pub async fn run(guest: &mut Guest, record: &Record, argv: &[String]) -> Result<(u8, Vec<u8>)> {
    run_captured(guest, exec(record, argv)).await
}

/// Returns the request for a command in a workspace.
pub fn exec(record: &Record, argv: &[String]) -> Exec {
    let mut exec = Exec {
        argv: argv.to_vec(),
        cwd: Some(record.directory().to_owned()),
        user: Some(record.owner().to_owned()),
        ..Exec::default()
    };
    put_env(&mut exec, record);
    exec
}

/// Returns the environment of programs in a workspace, or `None` if the image has no `env`.
pub async fn environment(guest: &mut Guest, record: &Record) -> Result<Option<BTreeMap<String, String>>> {
    let output = match run(guest, record, &["env", "-0"].map(str::to_owned)).await {
        Ok((0, output)) => output,
        Ok(_) | Err(Error::Guest(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&output).into_owned();
    let variables = text.split('\0').filter_map(|variable| variable.split_once('='));
    Ok(Some(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}

/// Creates directories that do not exist, for a user. Returns the last lines of the error if that fails.
pub async fn create_directories(
    guest: &mut Guest,
    user: &str,
    paths: &[String],
) -> Result<Result<(), String>> {
    const SCRIPT: &str = "user=$1; shift\n\
        for path; do [ -e \"$path\" ] || { mkdir -p -- \"$path\" && chown -- \"$user\" \"$path\"; } || exit 1; done";
    let arguments = std::iter::once(user.to_owned()).chain(paths.iter().cloned());
    run_as_root(guest, SCRIPT, arguments.collect(), paths.is_empty()).await
}

/// Makes a user the owner of a socket, so that no other user but root can connect to it.
pub async fn give_socket(guest: &mut Guest, user: &str, path: &str) -> Result<()> {
    const SCRIPT: &str = "chmod 600 \"$2\" && chown -- \"$1\" \"$2\"";
    let arguments = vec![user.to_owned(), path.to_owned()];
    let given = run_as_root(guest, SCRIPT, arguments, false).await?;
    given.map_err(|said| Error::Refused(format!("cannot share credentials with {user}: {}", said.trim())))
}

/// Returns whether a workspace has commits, on any branch or in the stash, that were not sent. Without git there are none.
pub async fn has_commits(guest: &mut Guest, record: &Record) -> Result<bool> {
    const SCRIPT: &str = "command -v git > /dev/null || exit 0\ncd -- \"$1\" || exit 1\n\
        git -c safe.directory='*' rev-list -n 1 --all HEAD ${2:+--not \"$2\"}";
    let arguments = [record.guest_path.clone(), record.commit.clone().unwrap_or_default()];
    let argv = ["sh", "-c", SCRIPT, "sh"].map(str::to_owned).into_iter().chain(arguments).collect();
    let exec = Exec { argv, cwd: Some("/".to_owned()), user: Some(OWNER.to_owned()), ..Exec::default() };
    match run_captured(guest, exec).await {
        Ok((0, output)) => Ok(!output.trim_ascii().is_empty()),
        // A repository without a commit has no HEAD. Of another failure nothing is known, so the work is kept.
        Ok(_) => Ok(record.commit.is_some()),
        Err(Error::Guest(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Mounts file systems in memory. Returns the last lines of the error if that fails.
pub async fn mount(guest: &mut Guest, all: &[Tmpfs]) -> Result<Result<(), String>> {
    const SCRIPT: &str = "while [ $# -gt 0 ]; do\n\
        mkdir -p -- \"$1\" && mount -t tmpfs -o \"$2\" tmpfs \"$1\" || exit 1\nshift 2\ndone";
    let arguments = all.iter().flat_map(|tmpfs| [tmpfs.target.clone(), tmpfs.options.clone()]);
    run_as_root(guest, SCRIPT, arguments.collect(), all.is_empty()).await
}

/// Runs a script as root, unless there is nothing to do.
async fn run_as_root(
    guest: &mut Guest,
    script: &str,
    arguments: Vec<String>,
    is_done: bool,
) -> Result<Result<(), String>> {
    if is_done {
        return Ok(Ok(()));
    }
    let argv = ["sh", "-c", script, "sh"].map(str::to_owned).into_iter().chain(arguments).collect();
    let exec = Exec { argv, cwd: Some("/".to_owned()), user: Some(OWNER.to_owned()), ..Exec::default() };
    Ok(match run_captured(guest, exec).await {
        Ok((0, _)) => Ok(()),
        Ok((_, output)) => Err(last_lines(&output)),
        Err(Error::Guest(failure)) => Err(format!("{}\n", failure.message)),
        Err(error) => return Err(error),
    })
}

async fn run_captured(guest: &mut Guest, exec: Exec) -> Result<(u8, Vec<u8>)> {
    guest
        .call(Request::Exec(exec), |call| {
            call.end_input()?;
            let mut output = Vec::new();
            loop {
                match call.frame()? {
                    Frame::Output(bytes) | Frame::ErrorOutput(bytes) => {
                        output.extend(bytes);
                        output.drain(..output.len().saturating_sub(MAX_BYTES));
                    }
                    Frame::Exit(exit) => return Ok((exit.status(), output)),
                    Frame::Failed(failure) => return Err(Error::Guest(failure)),
                    _ => {}
                }
            }
        })
        .await
}

/// Formats the last lines of a program's output.
pub fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(&Filter::default().pass(output)).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(MAX_LINES)..].iter().map(|line| format!("{line}\n")).collect()
}

/// Adds the variables of a workspace, unless the user has set them for a command.
pub fn put_env(exec: &mut Exec, record: &Record) {
    exec.unset.extend(record.setup.unset.iter().cloned());
    put_variables(exec, &record.env);
}

/// Adds variables that a command does not have yet.
pub fn put_variables(exec: &mut Exec, variables: &BTreeMap<String, String>) {
    let is_missing = |(name, _): &(&String, &String)| exec.env.iter().all(|(set, _)| set != *name);
    let more: Vec<_> =
        variables.iter().filter(is_missing).map(|(name, value)| (name.clone(), value.clone())).collect();
    exec.env.extend(more);
}

/// Changes the owner of a workspace to a user of the sandbox. Returns whether that user exists.
pub async fn change_owner(guest: &mut Guest, path: &str, user: &str) -> Result<bool> {
    const SCRIPT: &str = "id -u -- \"$1\" > /dev/null 2>&1 || exit 3\nexec chown -hR -- \"$1\" \"$2\"";
    let arguments = ["sh", "-c", SCRIPT, "sh", user, path].map(str::to_owned);
    let exec = Exec {
        argv: arguments.to_vec(),
        cwd: Some("/".to_owned()),
        user: Some(OWNER.to_owned()),
        ..Exec::default()
    };
    match run_captured(guest, exec).await? {
        (0, _) => Ok(true),
        (3, _) => Ok(false),
        (_, output) => Err(Error::Refused(format!(
            "cannot give {path} to {user} in the sandbox: {}",
            last_lines(&output).trim_end()
        ))),
    }
}

/// Wraps a command so that it finds the tools of its workspace.
pub fn with_mise(argv: &[String]) -> Vec<String> {
    ["mise", "exec", "--"].map(str::to_owned).into_iter().chain(argv.iter().cloned()).collect()
}
