//! Lets commands in a sandbox use credentials of the user while they run.
//!
//! ```text
//!   sandbox: git, ssh, docker ──► socket in /run ──► agent ──► this process ──► git credential fill, ssh-agent,
//!            hostile                                            filter, count,   docker's and podman's files
//!                                                               report           and helpers
//! ```
//!
//! This process answers, as long as the command runs. Each use is a line on its standard error. Passwords get to the
//! program that asks, over the stream of the agent: never on the bus, into a database or onto a disk. Everything that the
//! sandbox sends is bounded.

mod git;
mod rate;
mod registry;
mod spec;
mod ssh_agent;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use banger_proto::{
    bus::{names::VM_INTERFACE, option::agent},
    guest::{
        Exec, Request,
        message::{Endpoint, RegistryHelper},
    },
};
use tokio::{io::DuplexStream, sync::Semaphore, task::JoinSet};
use zbus::OwnedObjectPath;

pub use self::spec::Share;
use self::{
    rate::{MAX_CONNECTIONS, MAX_USES, Rate, Verdict},
    registry::{LookUp, Registry},
    ssh_agent::Keys,
};
use crate::{
    client::bus::Bus,
    error::{Error, Result},
    guest::{
        agent::Guest,
        relay::{Incoming, Relay},
    },
    ui::{sanitize, signals::Listener, terminal},
    workspace::tooling,
};

/// Limit on connections of the sandbox to one socket. Further ones wait.
const MAX_AT_ONCE: usize = 4;
/// How long a connection may last, with the time that it waits for the user to touch a key.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a connection waits for a stream to the sandbox.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a credential helper of the user may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes on their way between the two halves of a connection.
const BUFFER: usize = 16 << 10;

/// What is shared with a command, as long as this is kept.
#[derive(Default)]
pub struct Shares {
    variables: Vec<(String, String)>,
    /// Settings of git.
    settings: Vec<(String, String)>,
    /// Directories that the search path of the command begins with.
    path: Vec<String>,
    sockets: JoinSet<()>,
}

/// Answers the connections to one socket.
struct Answerer {
    bus: Bus,
    vm: OwnedObjectPath,
    sandbox: String,
    source: Source,
    connections: Mutex<Rate>,
    uses: Mutex<Rate>,
}

/// Where answers come from.
enum Source {
    /// Passwords for these hosts.
    Git(Vec<git::Site>),
    /// An ssh-agent, with these of its keys.
    SshAgent(PathBuf, Keys),
    /// The user's credentials for these registries.
    Registries(Vec<Registry>, LookUp),
}

impl Shares {
    /// Makes these credentials available to commands of this user in a sandbox. The variables are for the command only.
    pub async fn start(
        (bus, vm, listener): (&Bus, &OwnedObjectPath, &Listener),
        shares: &[Share],
        user: Option<&str>,
    ) -> Result<Self> {
        let mut this = Self::default();
        let sandbox = match shares.is_empty() {
            true => return Ok(this),
            false => bus.properties(vm, VM_INTERFACE).await?.name().to_owned(),
        };
        for source in sources(shares)? {
            let socket = socket_path(&source)?;
            // It has to be there before the socket.
            let helper = helper_of(&source, &socket, user);
            match &source {
                Source::Registries(..) => this.offer_clients(&socket),
                Source::Git(sites) => this.settings.extend(git::settings(sites, &socket)),
                Source::SshAgent(..) => this.variables.push(("SSH_AUTH_SOCK".to_owned(), socket.clone())),
            }
            let answerer = Arc::new(Answerer {
                bus: bus.clone(),
                vm: vm.clone(),
                sandbox: sandbox.clone(),
                source,
                connections: Mutex::new(Rate::new(MAX_CONNECTIONS)),
                uses: Mutex::new(Rate::new(MAX_USES)),
            });
            let helper = match helper {
                Some(helper) => {
                    let offered = answerer.open(&Request::RegistryHelper(helper)).await;
                    Some(offered.map_err(hint_earlier_version)?)
                }
                None => None,
            };
            let relay = answerer.open(&Request::Listen(Endpoint::Unix(socket.clone()))).await?;
            let mut guest = Guest::new(bus.clone(), vm.clone(), listener.resubscribe());
            if let Some(user) = user {
                tooling::give_socket(&mut guest, user, &socket).await?;
            }
            this.sockets.spawn(async move {
                // The sandbox has it as long as this stream is open.
                let _helper = helper;
                if let Err(error) = Arc::clone(&answerer).accept(Incoming::new(relay)).await {
                    answerer.tell(&format!("gets no more credentials: {error}"));
                }
            });
        }
        Ok(this)
    }

    /// Adds the variables to a command.
    pub fn add_to(&self, exec: &mut Exec) {
        exec.env.extend(self.variables.iter().cloned());
        git::configure(&mut exec.env, &self.settings);
        exec.path.extend(self.path.iter().cloned());
    }

    /// Makes docker, podman and skopeo use the helper beside this socket.
    fn offer_clients(&mut self, socket: &str) {
        let directory = directory_of(socket);
        let variable = |name: &str, file: &str| (name.to_owned(), format!("{directory}/{file}"));
        self.variables.push(variable("DOCKER_CONFIG", "docker"));
        self.variables.push(variable("REGISTRY_AUTH_FILE", "auth.json"));
        self.path.push(format!("{directory}/bin"));
    }
}

/// Adds a hint if the agent has hung up at a request: an earlier version does not know it.
fn hint_earlier_version(error: Error) -> Error {
    match error {
        Error::Attach(_) => error.with_hint(
            "if the sandbox was started by an earlier version of banger, `banger vm restart NAME` gives it this one.",
        ),
        error => error,
    }
}

/// Returns the directory of a socket.
fn directory_of(socket: &str) -> &str {
    socket.rsplit_once('/').map_or(socket, |(directory, _)| directory)
}

/// Returns the helper that the clients of a source need in the sandbox.
fn helper_of(source: &Source, socket: &str, user: Option<&str>) -> Option<RegistryHelper> {
    let Source::Registries(registries, _) = source else { return None };
    Some(RegistryHelper {
        directory: directory_of(socket).to_owned(),
        registries: registries.iter().flat_map(Registry::keys).collect(),
        user: user.unwrap_or(tooling::OWNER).to_owned(),
    })
}

/// Returns the error for a command that would outlive its credentials, because of this option.
pub fn not_detached(option: &str) -> Error {
    Error::Refused(format!(
        "cannot use `--share` with `{option}`: this command answers for the credentials, and may end first"
    ))
    .with_hint(format!("leave out `{option}` or `--share`."))
}

/// Checks that the user has what is to be shared, before anything is done for it.
pub async fn check(shares: &[Share]) -> Result<()> {
    for source in sources(shares)? {
        match source {
            Source::SshAgent(path, keys) => ssh_agent::check(&path, &keys).await?,
            Source::Registries(registries, _) => {
                for registry in &registries {
                    registry::check(registry).await?;
                }
            }
            Source::Git(_) => {}
        }
    }
    Ok(())
}

/// Returns the error for a credential helper that was ended.
fn too_long() -> Error {
    let seconds = HELPER_TIMEOUT.as_secs();
    Error::Refused(format!("your credential helper took longer than {seconds} seconds, and was ended"))
}

fn sources(shares: &[Share]) -> Result<Vec<Source>> {
    let (mut sites, mut registries, mut keys, mut agent) = (Vec::new(), Vec::new(), Keys::default(), None);
    for share in shares {
        match share {
            Share::Git(site) => sites.push(site.clone()),
            Share::Registry(registry) => registries.push(registry.clone()),
            Share::SshAgent(key) => {
                keys.allow(key.as_deref());
                agent = Some(ssh_agent::socket_of_caller()?);
            }
        }
    }
    let git = (!sites.is_empty()).then_some(Source::Git(sites));
    let registries = (!registries.is_empty()).then(|| Source::Registries(registries, LookUp::default()));
    Ok(git.into_iter().chain(registries).chain(agent.map(|path| Source::SshAgent(path, keys))).collect())
}

/// Returns a path for a socket in the guest's file system in memory, which no other command knows.
fn socket_path(source: &Source) -> Result<String> {
    let mut random = [0; 16];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|error| Error::io("get random bytes", error.into()))?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(match source {
        Source::Git(_) => format!("/run/banger-git-{name}.sock"),
        Source::SshAgent(..) => format!("/run/banger-ssh-{name}.sock"),
        // It has a directory of its own.
        Source::Registries(..) => format!("/run/banger-registries-{name}/socket"),
    })
}

impl Answerer {
    async fn open(&self, request: &Request) -> Result<Relay> {
        let stream = self.bus.open_agent(&self.vm, agent::CONNECTION, Some(STREAM_TIMEOUT)).await?;
        Relay::begin(stream, request).await
    }

    /// Answers connections as they come. While as many are answered as may be, the others wait in the sandbox. All end with
    /// this.
    async fn accept(self: Arc<Self>, mut incoming: Incoming) -> Result<()> {
        let mut connections = JoinSet::new();
        let slots = Arc::new(Semaphore::new(MAX_AT_ONCE));
        loop {
            let number = incoming.next().await?;
            while connections.try_join_next().is_some() {}
            while !self.count(&self.connections) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            // It is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await;
            let this = Arc::clone(&self);
            connections.spawn(async move {
                // A connection that fails gets no credentials, and that is all.
                let _ = tokio::time::timeout(CONNECTION_TIMEOUT, this.answer(number)).await;
                drop(slot);
            });
        }
    }

    async fn answer(&self, number: u64) -> Result<()> {
        let relay = self.open(&Request::Accept(number)).await?;
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let (carried, ()) = tokio::join!(relay.carry(theirs), self.talk(ours));
        carried.map(drop)
    }

    async fn talk(&self, connection: DuplexStream) {
        // Errors are of the connection, which ends.
        let _ = match &self.source {
            Source::Git(sites) => git::answer(connection, sites, self).await,
            Source::SshAgent(path, keys) => ssh_agent::answer(connection, path, keys, self).await,
            Source::Registries(registries, look_up) => {
                registry::answer(connection, registries, look_up, self).await
            }
        };
    }
}

/// Decides whether a credential may be used, and tells the user.
trait Uses {
    /// Returns whether there were few uses of late. Tells the user about this one.
    fn allow(&self, what: &str) -> bool;
    /// Tells the user about something that was refused.
    fn refuse(&self, what: &str);
    /// Tells the user what has become of a use that was allowed, and so is counted.
    fn explain(&self, _what: &str) {}
}

impl Uses for Answerer {
    fn allow(&self, what: &str) -> bool {
        let is_allowed = self.count(&self.uses);
        if is_allowed {
            self.tell(&format!("uses {what}"));
        }
        is_allowed
    }

    fn explain(&self, what: &str) {
        self.tell(what);
    }

    fn refuse(&self, what: &str) {
        if self.count(&self.uses) {
            self.tell(&format!("asked for {what}, which is not shared"));
        }
    }
}

impl Answerer {
    /// Counts a request. Returns whether there were few of late.
    fn count(&self, rate: &Mutex<Rate>) -> bool {
        // Each change under the lock is complete.
        let verdict = rate.lock().unwrap_or_else(PoisonError::into_inner).count(Instant::now());
        if verdict == Verdict::Last {
            self.tell("asks for credentials too often: further requests are refused for a minute");
        }
        verdict == Verdict::Allowed
    }

    /// Tells the user, also with `--quiet`. A command may have put the terminal into raw mode.
    fn tell(&self, what: &str) {
        terminal::line_in_raw_mode(&sanitize::line(&format!("note: {} {what}.", self.sandbox)));
    }
}
