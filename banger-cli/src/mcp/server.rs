//! Serves a client: lists the tools, and runs each call in a task with a limit on their number.

use std::{
    collections::HashSet,
    io::{self, IsTerminal},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use banger_proto::{bus::ErrorName, count::counted};
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, Implementation, ListToolsResult,
        PaginatedRequestParams, ProgressNotificationParam, ServerCapabilities, ServerConfig,
    },
    service::{RequestContext, ServerInitializeError},
    transport::{async_rw::AsyncRwTransport, stdio_pipes},
};
use tokio::{
    sync::{Semaphore, broadcast, mpsc},
    task::JoinHandle,
    time::{Instant, interval_at, timeout},
};

use super::{
    failure,
    policy::Policy,
    tool::{self, Call, Entry},
    transport::Bounded,
};
use crate::{
    client::{bus::Bus, object::Object},
    error::{Error, Result},
    ui::signals::{Event, Listener, Signals, next_event},
};

/// Limit on calls at once. The service serves 32 of a user; this leaves some for others.
const MAX_CALLS: usize = 16;
/// Limit on calls that are running or wait for others.
const MAX_WAITING: usize = 64;
/// Limit on one request. The content of a file comes as one.
const MAX_REQUEST: usize = 4 << 20;
/// How long a cancelled call may take to end; it is asked again in the middle, and dropped at the end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls may take to end when the client has gone.
const END_TIMEOUT: Duration = Duration::from_secs(12);
/// Length of the queue of messages about the progress of a call.
const MAX_MESSAGES: usize = 16;
/// How long the client may take to read the last of them.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);
/// The signal that interrupts a command on a terminal.
const SIGINT: u8 = 2;

/// What the client tells the model about the tools as a whole.
const INSTRUCTIONS: &str = "\
Sandboxes are Linux virtual machines with a kernel of their own on the user's computer. They start in seconds; you are \
root in them. `run` runs one command in a new sandbox that is deleted afterwards. `create` makes one that stays; then use \
`exec`, `read_file` and `write_file`. `prepare` sends the user's repository, `diff` shows what has changed in the sandbox, \
and `apply` brings it back. Without `network` or `egress`, a sandbox has no internet access. Errors have a code, the \
causes, and a remedy.";

/// The state of a server.
pub struct Server {
    pub bus: Bus,
    pub policy: Policy,
    tools: Vec<Entry>,
    calls: Arc<Semaphore>,
    waiting: Semaphore,
    made: Mutex<Made>,
    /// Held while sandboxes are counted.
    counting: tokio::sync::Mutex<()>,
}

/// The sandboxes that this server has made.
#[derive(Debug, Default)]
struct Made {
    ids: HashSet<String>,
    /// How many are being made.
    pending: usize,
}

/// Permission to make one sandbox. Dropping it returns the permission.
pub struct Slot<'a>(&'a Server);

impl Server {
    /// Creates a server.
    pub fn new(bus: Bus, policy: Policy) -> Self {
        let tools = tool::all(&policy);
        Self {
            bus,
            policy,
            tools,
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            waiting: Semaphore::new(MAX_WAITING),
            made: Mutex::default(),
            counting: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the permission to make a sandbox, unless there are as many as are allowed.
    pub async fn reserve(&self) -> Result<Slot<'_>> {
        let _counting = self.counting.lock().await;
        let visible = self.policy.visible(&self.bus).await?;
        let mut made = self.made();
        // With a label, those of earlier servers count, too.
        let is_ours = |sandbox: &Object| self.policy.label.is_some() || made.ids.contains(sandbox.text("Id"));
        let is_counted = |sandbox: &&Object| is_ours(sandbox) && sandbox.text("State") != "deleting";
        let count = visible.iter().filter(is_counted).count() + made.pending;
        let max = self.policy.max;
        if count >= max as usize {
            return Err(failure::not_allowed(format!(
                "cannot create a sandbox: at most {max} may exist at once"
            ))
            .with_hint(
                "delete one with the tool `delete`; the user can allow more with `banger mcp --max 20`.",
            ));
        }
        made.pending += 1;
        Ok(Slot(self))
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        // Each change under the lock is complete.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    /// Counts the sandbox that was made.
    pub fn fill(self, id: String) {
        self.0.made().ids.insert(id);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.made().pending -= 1;
    }
}

/// Serves the client on standard input and output until it hangs up.
pub async fn serve(bus: Bus, policy: Policy) -> Result<()> {
    if io::stdin().is_terminal() {
        eprintln!(
            "note: this waits for a coding agent on standard input; `banger mcp --help` shows how to add it to one."
        );
    }
    let (input, output) = stdio_pipes();
    let transport = AsyncRwTransport::new(input, output).with_max_line_length(MAX_REQUEST);
    let mut signals = Signals::catch()?.listen();
    let server = Arc::new(Server::new(bus, policy));
    let handler = Handler(Arc::clone(&server));
    let started = tokio::select! {
        started = handler.serve(Bounded::new(transport)) => started,
        signal = signal_to_end(&mut signals) => return Err(Error::Interrupted { signal }),
    };
    let service = match started {
        Ok(service) => service,
        // A client that hangs up at once has asked for nothing.
        Err(ServerInitializeError::ConnectionClosed(_)) => return Ok(()),
        Err(_) => return Err(Error::Refused("cannot serve the client: it does not speak MCP".to_owned())),
    };
    let stop = service.cancellation_token();
    let ended = tokio::select! {
        _ = service.waiting() => Ok(()),
        error = server.bus.lost() => {
            stop.cancel();
            Err(error)
        }
        signal = signal_to_end(&mut signals) => {
            stop.cancel();
            Err(Error::Interrupted { signal })
        }
    };
    // Calls have been cancelled. They clean up, and only then may the connection to the service end.
    let all = u32::try_from(MAX_CALLS).unwrap_or(u32::MAX);
    let _ = timeout(END_TIMEOUT, server.calls.acquire_many(all)).await;
    ended
}

async fn signal_to_end(signals: &mut Listener) -> u8 {
    loop {
        if let Some(signal) = next_event(signals).await.ends() {
            return signal;
        }
    }
}

/// The server as the library calls it.
#[derive(Clone)]
struct Handler(Arc<Server>);

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let banger = Implementation::new("banger", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(banger)
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = self.0.tools.iter().map(|entry| entry.tool.clone());
        Ok(ListToolsResult::with_all_items(tools.collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(entry) = self.0.tools.iter().find(|entry| entry.tool.name == request.name) else {
            return Err(ErrorData::invalid_params(format!("there is no tool {}", request.name), None));
        };
        let result = match self.run(entry, request.arguments.unwrap_or_default(), context).await {
            Ok(value) => CallToolResult::structured(value),
            Err(error) => failure::result(&error),
        };
        Ok(result.into())
    }
}

impl Handler {
    async fn run(
        &self,
        entry: &Entry,
        arguments: rmcp::model::JsonObject,
        context: RequestContext<RoleServer>,
    ) -> Result<serde_json::Value> {
        let server = &self.0;
        let Ok(_waiting) = server.waiting.try_acquire() else { return Err(too_many()) };
        let permit = tokio::select! {
            // It is never closed.
            permit = Arc::clone(&server.calls).acquire_owned() => permit.map_err(|_| too_many())?,
            () = context.ct.cancelled() => return Err(Error::Interrupted { signal: SIGINT }),
        };
        let (events, listener) = broadcast::channel(MAX_MESSAGES);
        let (messages, reporter) = report(&context);
        let call = Call { server: Arc::clone(server), listener, messages, permit: Arc::new(permit) };
        let done = {
            let mut work = pin!((entry.run)(call, arguments));
            tokio::select! {
                biased;
                done = &mut work => done,
                () = context.ct.cancelled() => cancel(&events, work).await,
                () = tokio::time::sleep(entry.time_limit) => {
                    cancel(&events, work).await.map_err(|_| took_too_long(&entry.tool.name, entry.time_limit))
                }
            }
        };
        if let Some(reporter) = reporter {
            let _ = timeout(MESSAGE_TIMEOUT, reporter).await;
        }
        done
    }
}

/// Interrupts a call, and waits until it has cleaned up.
async fn cancel<T>(events: &broadcast::Sender<Event>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let half = CANCEL_TIMEOUT / 2;
    let mut again = interval_at(Instant::now(), half);
    let asking = async {
        loop {
            again.tick().await;
            // It may listen to nothing at the moment.
            let _ = events.send(Event::Signal(SIGINT));
        }
    };
    tokio::select! {
        done = work => done,
        () = tokio::time::sleep(CANCEL_TIMEOUT) => Err(Error::Interrupted { signal: SIGINT }),
        () = asking => Err(Error::Interrupted { signal: SIGINT }),
    }
}

/// Starts to report the progress of a call, if the client asks for it.
fn report(context: &RequestContext<RoleServer>) -> (Option<mpsc::Sender<String>>, Option<JoinHandle<()>>) {
    let Some(token) = context.meta.get_progress_token() else { return (None, None) };
    let (sender, mut messages) = mpsc::channel::<String>(MAX_MESSAGES);
    let peer = context.peer.clone();
    let reporter = tokio::spawn(async move {
        let mut count = 0.0;
        while let Some(message) = messages.recv().await {
            count += 1.0;
            let param = ProgressNotificationParam::new(token.clone(), count).with_message(message);
            if peer.notify_progress(param).await.is_err() {
                return;
            }
        }
    });
    (Some(sender), Some(reporter))
}

fn took_too_long(tool: &str, limit: Duration) -> Error {
    let minutes = counted(usize::try_from(limit.as_secs() / 60).unwrap_or(usize::MAX), "minute");
    Error::Refused(format!("cannot finish {tool}: it took longer than {minutes}"))
}

fn too_many() -> Error {
    Error::Service {
        name: ErrorName::TooManyRequests,
        message: format!("this server already has {MAX_WAITING} calls to answer"),
    }
}
