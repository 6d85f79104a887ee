//! Tools that run commands.

use std::{
    collections::BTreeMap,
    io::Cursor,
    pin::pin,
    time::{Duration, Instant},
};

use banger_proto::{
    bus::{
        option::{agent, delete},
        proxy::Options,
    },
    guest::Exec as Request,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::broadcast,
    task::JoinHandle,
    time::{interval, timeout},
};
use zbus::{OwnedObjectPath, Variant};

use super::{
    Call, Effect, Tool,
    sandbox::{Lifetime, Wishes},
};
use crate::{
    client::{bus::Bus, job::Jobs, service::id_of},
    command::vm::exec::{add_hint, hint_missing_workspace, put_into_workspace},
    error::Result,
    guest::attach::{self, Streams},
    mcp::{capture::Capture, failure::invalid},
    ui::{progress::Progress, signals::unless_ended},
    user::{defaults::Key, locale, settings::Settings},
    workspace::record::Records,
};

/// The longest time limit.
const MAX_TIME: u64 = 3600;
/// The highest limit on output, and on input.
pub const MAX_OUTPUT: usize = 1 << 20;
/// How long a command may wait for others in the sandbox.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the end of a run waits until its sandbox is deleted.
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit on a call: the longest time limit, and as much for the rest, such as pulling the image.
const CALL_LIMIT: Duration = Duration::from_secs(2 * MAX_TIME);
/// Interval of messages with new output.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// A command.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "command is neither a command line nor an array of words")]
#[schemars(inline)]
pub enum CommandLine {
    /// A command line for `/bin/sh -c`.
    Shell(String),
    /// A program and its arguments, without a shell.
    Words(Vec<String>),
}

impl CommandLine {
    fn argv(self) -> Result<Vec<String>> {
        let argv = match self {
            Self::Shell(line) if line.trim().is_empty() => Vec::new(),
            Self::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line],
            Self::Words(words) => words,
        };
        match argv.iter().any(|word| word.contains('\0')) || argv.first().is_none_or(String::is_empty) {
            true => Err(invalid("cannot run the command: it is empty or has a null character")),
            false => Ok(argv),
        }
    }
}

/// What a command has written, and how it ended.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ended {
    /// The exit status, or 128 plus the number of the signal that ended it. Absent if it has not ended by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    /// Its standard output; the middle is left out if there is too much.
    stdout: String,
    /// Its standard error; the middle is left out if there is too much.
    stderr: String,
    /// How many bytes it wrote to standard output.
    stdout_bytes: u64,
    /// How many bytes it wrote to standard error.
    stderr_bytes: u64,
    /// Whether something is left out of `stdout` or `stderr`.
    truncated: bool,
    /// Whether it was ended because of the time limit.
    timed_out: bool,
    /// How long it ran, in milliseconds.
    duration_ms: u64,
    /// With `background`, the number of the command: the tool `logs` shows its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    background_id: Option<u64>,
}

/// Limits of one command.
#[derive(Debug, Clone, Copy)]
struct Limits {
    time: Duration,
    output: usize,
}

impl Limits {
    fn new(call: &Call, seconds: Option<u64>, bytes: Option<u64>) -> Result<Self> {
        let policy = call.policy();
        let time = match seconds {
            None => policy.time_limit,
            Some(seconds @ 1..=MAX_TIME) => Duration::from_secs(seconds),
            Some(_) => return Err(invalid(format!("timeout_seconds must be between 1 and {MAX_TIME}"))),
        };
        let output = match bytes.map(usize::try_from) {
            None => policy.output_limit,
            Some(Ok(bytes)) if bytes <= MAX_OUTPUT => bytes,
            Some(_) => return Err(invalid(format!("max_output_bytes must be at most {MAX_OUTPUT}"))),
        };
        Ok(Self { time, output })
    }
}

/// Arguments of `exec`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// What to run: a command line for `/bin/sh`, or an array with a program and its arguments.
    command: CommandLine,
    /// The directory to run it in. The repository that was sent, else the home directory, if absent.
    #[serde(default)]
    cwd: Option<String>,
    /// Variables of the environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The user to run it as: a name or a number. The image's user, usually root, if absent.
    #[serde(default)]
    user: Option<String>,
    /// Its standard input.
    #[serde(default)]
    stdin: Option<String>,
    /// How long it may run before it is ended.
    #[serde(default)]
    timeout_seconds: Option<u64>,
    /// How much of each output stream to return: its beginning and its end.
    #[serde(default)]
    max_output_bytes: Option<u64>,
    /// Whether to leave it running, such as a server, and to return its number at once. The sandbox keeps its output.
    #[serde(default)]
    background: bool,
}

impl Tool for Exec {
    const NAME: &'static str = "exec";
    const ABOUT: &'static str = "Runs a command in a running sandbox and returns its exit status and output. Output is \
                                 also sent as progress while it runs.";
    const TIME_LIMIT: Duration = CALL_LIMIT;
    const EFFECT: Effect = Effect::Changes;
    type Output = Ended;

    async fn run(self, call: Call) -> Result<Ended> {
        let limits = Limits::new(&call, self.timeout_seconds, self.max_output_bytes)?;
        let Self { sandbox, command, cwd, env, user, stdin, background, .. } = self;
        let argv = command.argv()?;
        let found = call.find_for_use(&sandbox).await?;
        let mut exec = request(argv, env)?;
        (exec.cwd, exec.detach) = (cwd, background);
        exec.user = user.or(exec.user);
        if let Some(kept) = Records::of(&id_of(&found.path))?.find(None) {
            put_into_workspace(&mut exec, &kept.record);
        }
        let ended = match background {
            true => detach(&call, &found.path, &exec).await,
            false => attach(&call, &found.path, &exec, stdin, limits).await,
        };
        ended.map_err(|error| found.about(add_hint(hint_missing_workspace(error))))
    }
}

/// Arguments of `run`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What to run: a command line for `/bin/sh`, or an array with a program and its arguments.
    command: CommandLine,
    /// The image to clone: a name, or a reference of a registry such as `alpine:3.20`. The user's default if absent.
    #[serde(default)]
    image: Option<String>,
    /// The number of virtual processors. The user's default if absent.
    #[serde(default)]
    vcpus: Option<u32>,
    /// Memory, such as `512MiB` or `4GiB`. The user's default if absent.
    #[serde(default)]
    memory: Option<String>,
    /// Whether the sandbox gets internet access. The user's default, which is usually no, if absent.
    #[serde(default)]
    network: Option<bool>,
    /// The hosts that it may reach beyond this host, as for `create`.
    #[serde(default)]
    egress: Option<Vec<String>>,
    /// Variables of the environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Its standard input.
    #[serde(default)]
    stdin: Option<String>,
    /// How long it may run before it is ended.
    #[serde(default)]
    timeout_seconds: Option<u64>,
    /// How much of each output stream to return: its beginning and its end.
    #[serde(default)]
    max_output_bytes: Option<u64>,
}

impl Tool for Run {
    const NAME: &'static str = "run";
    const ABOUT: &'static str = "Runs one command in a new sandbox that is deleted afterwards, and returns its exit status \
                                 and output.";
    const TIME_LIMIT: Duration = CALL_LIMIT;
    const EFFECT: Effect = Effect::Adds;
    type Output = Ended;

    async fn run(self, call: Call) -> Result<Ended> {
        let limits = Limits::new(&call, self.timeout_seconds, self.max_output_bytes)?;
        let exec = request(self.command.argv()?, self.env)?;
        let Self { image, vcpus, memory, network, egress, stdin, .. } = self;
        let wishes = Wishes { image, vcpus, memory, network, egress, ..Wishes::default() };
        let vm = wishes.create(&call, None, BTreeMap::new(), Lifetime::Server).await?;
        let mut deletion = Deletion(Some((call.bus().clone(), vm.clone())));
        let ended = attach(&call, &vm, &exec, stdin, limits).await;
        // The next call may make a sandbox again.
        if let Some(deleting) = deletion.begin() {
            let _ = timeout(DELETE_TIMEOUT, deleting).await;
        }
        ended
    }
}

/// Deletes a sandbox when it is dropped, whatever ends the call.
struct Deletion(Option<(Bus, OwnedObjectPath)>);

impl Deletion {
    /// Begins it, unless it has begun.
    fn begin(&mut self) -> Option<JoinHandle<()>> {
        let (bus, vm) = self.0.take()?;
        Some(tokio::spawn(async move {
            let options = Options::from([(delete::FORCE, Variant::from(true))]);
            let jobs = Jobs::of(&bus);
            // No signal ends it. If it fails, the service deletes the sandbox when this server ends.
            let (_signals, mut listener) = broadcast::channel(1);
            if let Ok(job) = bus.change_vm(&vm, "Delete", &options).await {
                let _ = jobs.finish(&bus, &job, Progress::Quiet.track(None), &mut listener).await;
            }
        }))
    }
}

impl Drop for Deletion {
    fn drop(&mut self) {
        drop(self.begin());
    }
}

/// Returns the request for a command, with the user's defaults.
fn request(argv: Vec<String>, env: BTreeMap<String, String>) -> Result<Request> {
    let settings = Settings::of_caller()?;
    Ok(Request {
        argv,
        env: env.into_iter().collect(),
        user: settings.defaults.text(Key::User).map(str::to_owned),
        locale: locale::of_caller(),
        wait: settings.wait.phase(),
        ..Request::default()
    })
}

/// Starts a background command.
async fn detach(call: &Call, vm: &OwnedObjectPath, exec: &Request) -> Result<Ended> {
    let starting = async {
        let stream = call.bus().open_agent(vm, agent::COMMAND, Some(OPEN_TIMEOUT)).await?;
        attach::detach(stream, exec).await
    };
    let background_id = unless_ended(&mut call.listener(), starting).await?;
    Ok(Ended { background_id, ..ended(&Capture::new(0), Instant::now()) })
}

/// Runs a command to its end, or to its time limit. Cancelling the call ends the command.
async fn attach(
    call: &Call,
    vm: &OwnedObjectPath,
    exec: &Request,
    stdin: Option<String>,
    limits: Limits,
) -> Result<Ended> {
    let mut listener = call.listener();
    let opening = call.bus().open_agent(vm, agent::COMMAND, Some(OPEN_TIMEOUT));
    let stream = unless_ended(&mut listener, opening).await?;
    let (capture, begun) = (Capture::new(limits.output), Instant::now());
    let (output, errors) = capture.writers();
    let input = Cursor::new(stdin.unwrap_or_default().into_bytes());
    let running = attach::run_on(stream, exec, Streams { input, output, errors });
    let running = timeout(limits.time, reported(call, &capture, running));
    // Dropping it hangs up, and the agent ends the command and what it started.
    let status = match unless_ended(&mut listener, async { Ok(running.await) }).await? {
        Ok(status) => Some(status?),
        Err(_) => None,
    };
    Ok(Ended { exit_code: status, timed_out: status.is_none(), ..ended(&capture, begun) })
}

/// Reports new output while a command runs.
async fn reported(call: &Call, capture: &Capture, running: impl Future<Output = Result<u8>>) -> Result<u8> {
    let report = || {
        if let Some(messages) = &call.messages
            && let Some(text) = capture.fresh()
        {
            // A client that reads slowly gets the rest with the result.
            let _ = messages.try_send(text);
        }
    };
    let mut running = pin!(running);
    let mut ticks = interval(REPORT_INTERVAL);
    loop {
        tokio::select! {
            biased;
            status = &mut running => {
                report();
                return status;
            }
            _ = ticks.tick() => report(),
        }
    }
}

fn ended(capture: &Capture, begun: Instant) -> Ended {
    let captured = capture.lock();
    let (output, errors) = (&captured.output, &captured.errors);
    Ended {
        exit_code: None,
        stdout: output.text(),
        stderr: errors.text(),
        stdout_bytes: output.total(),
        stderr_bytes: errors.total(),
        truncated: output.left_out() + errors.left_out() > 0,
        timed_out: false,
        duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        background_id: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn a_command_is_a_line_for_the_shell_or_a_list_of_words() {
        let argv = |value: Value| from_value::<CommandLine>(value).unwrap().argv().ok();
        assert_eq!(argv(json!("make test")).unwrap(), ["/bin/sh", "-c", "make test"]);
        assert_eq!(argv(json!(["make", "a b"])).unwrap(), ["make", "a b"]);
        for wrong in [json!(""), json!("  "), json!([]), json!([""]), json!("a\u{0}b"), json!(["a", "\u{0}"])]
        {
            assert_eq!(argv(wrong.clone()), None, "{wrong}");
        }
        assert!(from_value::<CommandLine>(json!(3)).is_err());
    }
}
