//! A service that behaves like the real one, as far as a client can see. Names select the behaviour: `slow` never
//! becomes ready, `broken` does not start, `hanging` waits until it is cancelled, `stubborn` cannot be cancelled, and
//! `locked` requires authentication. `box` is served by the real agent on this host.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream as StdStream,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use banger_image::fixtures::layout;
use banger_proto::bus::names::{
    IMAGE_INTERFACE, IMAGE_PARENT, JOB_INTERFACE, JOB_PARENT, KERNEL_INTERFACE, KERNEL_PARENT,
    MANAGER_INTERFACE, MANAGER_PATH, SERVICE, VM_INTERFACE, VM_PARENT,
};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::{net::UnixStream, sync::watch};
use zbus::{
    Connection, Message, MessageStream, ObjectPath, OwnedObjectPath, OwnedVariant, Variant,
    message::{Flags, Type},
};

use crate::agent;

type Options = HashMap<String, OwnedVariant>;
type Properties = BTreeMap<&'static str, Variant<'static>>;

/// The image whose export is an image of one layer.
pub const LAYOUT: &str = "layout";

/// Returns this layer: 3 MiB that cannot be compressed.
pub fn exported_layer() -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    (0..3 << 17).flat_map(|_| next()).collect()
}

/// A call of a method.
#[derive(Debug, Clone)]
pub struct Call {
    pub member: String,
    /// Whether the client allows an interactive prompt.
    pub interactive: bool,
    /// The options as text, or the words of a change of an egress policy.
    pub options: BTreeMap<String, String>,
}

/// A reply, or the name and message of an error.
type Answer = Result<(), (&'static str, String)>;

/// The result of a job: the name and message of an error, both empty on success.
type Outcome = (&'static str, String);

pub struct Service {
    connection: Connection,
    calls: Mutex<Vec<Call>>,
    state: Mutex<State>,
    /// Whether calls of `OpenAgent` get no answer.
    pub agents_hang: AtomicBool,
    lasting: OnceLock<agent::LastingAgent>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (&'static str, Properties)>,
    jobs: HashMap<String, watch::Sender<Option<Outcome>>>,
    made: u64,
}

impl Service {
    /// Starts a service with the sandboxes `web`, `db` and `locked`.
    pub async fn start(address: &str) -> Arc<Self> {
        let connection = zbus::connection::Builder::address(address).build().await.unwrap();
        let messages = MessageStream::from(&connection);
        let service = Arc::new(Self {
            connection,
            calls: Mutex::default(),
            state: Mutex::default(),
            agents_hang: AtomicBool::default(),
            lasting: OnceLock::new(),
        });
        for name in ["web", "db", "locked"] {
            service.add_vm(name, "running");
        }
        service.connection.request_name(SERVICE).await.unwrap();
        tokio::spawn(Arc::clone(&service).serve(messages));
        service
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Boots a sandbox again.
    pub fn boot(&self, name: &str) {
        let vm = self.find(VM_INTERFACE, name).unwrap();
        self.change_state(vm.as_str(), "Restart");
    }

    async fn serve(self: Arc<Self>, mut messages: MessageStream) {
        while let Some(Ok(message)) = messages.next().await {
            if message.message_type() == Type::MethodCall {
                tokio::spawn(Arc::clone(&self).answer(message));
            }
        }
    }

    async fn answer(self: Arc<Self>, message: Message) {
        let header = message.header();
        let (path, member) = (header.path().unwrap().to_string(), header.member().unwrap().to_string());
        let call = Call {
            interactive: message.primary_header().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH),
            options: options_of(&message),
            member: member.clone(),
        };
        self.calls.lock().unwrap().push(call.clone());
        let interface = header.interface().unwrap().to_string();
        let answered = match interface.as_str() {
            MANAGER_INTERFACE => self.manager(&message, &member, call).await,
            VM_INTERFACE => self.vm(&message, &path, &member, call).await,
            JOB_INTERFACE => self.job(&message, &path, &member).await,
            IMAGE_INTERFACE if member == "Export" => {
                let (file, _): (zbus::OwnedFd, Options) = message.body().deserialize().unwrap();
                let name = self.state.lock().unwrap().objects[&path].1.get("Name").cloned();
                let content = match name == Some(Variant::from(LAYOUT)) {
                    true => layout::of(&[exported_layer()], "latest").tar(),
                    false => vec![9; 100_000],
                };
                File::from(std::os::fd::OwnedFd::from(file)).write_all(&content).unwrap();
                let job = self.add_job();
                self.end_job(&job, ("", String::new()));
                self.reply(&message, &job).await
            }
            IMAGE_INTERFACE | KERNEL_INTERFACE => {
                self.state.lock().unwrap().objects.remove(&path);
                self.reply(&message, &()).await
            }
            "org.freedesktop.DBus.Properties" => self.properties(&message, &path).await,
            "org.freedesktop.DBus.ObjectManager" => self.objects(&message).await,
            _ => Err(("org.freedesktop.DBus.Error.UnknownInterface", interface)),
        };
        if let Err((name, text)) = answered {
            self.connection.reply_error(&header, name, &text).await.unwrap();
        }
    }

    async fn reply<B: serde::Serialize + zbus::DynamicType>(&self, to: &Message, body: &B) -> Answer {
        // The client may have hung up.
        let _ = self.connection.reply(&to.header(), body).await;
        Ok(())
    }

    async fn manager(&self, message: &Message, member: &str, call: Call) -> Answer {
        let body = message.body();
        match member {
            "CreateVM" => {
                let (name, options): (String, Options) = body.deserialize().unwrap();
                if call.options.get("image").is_none_or(|image| image != "\"debian\"") {
                    return Err((
                        "dev.banger.Error.NoSuchImage",
                        "there is no image debian-bookworm".to_owned(),
                    ));
                }
                let name = if name.is_empty() { "calm-otter".to_owned() } else { name };
                let at_rest = call.options.get("start").is_some_and(|start| start == "false");
                let vm = self.add_vm(&name, if at_rest { "created" } else { "running" });
                if let Some(labels) = options.get("labels") {
                    let labels = labels.clone().into();
                    self.state
                        .lock()
                        .unwrap()
                        .objects
                        .get_mut(vm.as_str())
                        .unwrap()
                        .1
                        .insert("Labels", labels);
                }
                let job = self.add_job();
                self.stage(message, &job, "disk", "cloning debian").await;
                self.reply(message, &(&vm, &job)).await?;
                self.stage(message, &job, "boot", "waiting for the guest").await;
                match name.as_str() {
                    "slow" => {
                        let text = "the guest of slow did not become ready within 1 s; it is still up";
                        self.end_job(&job, ("dev.banger.Error.GuestTimeout", text.to_owned()));
                    }
                    "broken" => {
                        self.state.lock().unwrap().objects.remove(vm.as_str());
                        self.end_job(&job, ("dev.banger.Error.VmmFailed", "qemu did not start".to_owned()));
                    }
                    "hanging" | "stubborn" => {}
                    _ => self.end_job(&job, ("", String::new())),
                }
                Ok(())
            }
            "PullImage" => {
                Err(("dev.banger.Error.NoSuchImage", "debian-bookworm is in no catalog".to_owned()))
            }
            "GetVM" | "GetImage" | "GetKernel" => {
                let reference: String = body.deserialize().unwrap();
                let interface = match member {
                    "GetVM" => VM_INTERFACE,
                    "GetImage" => IMAGE_INTERFACE,
                    _ => KERNEL_INTERFACE,
                };
                match self.find(interface, &reference) {
                    Some(path) => self.reply(message, &path).await,
                    None => Err(("dev.banger.Error.NoSuchVM", format!("there is no sandbox {reference}"))),
                }
            }
            "ImportImage" | "ImportKernel" => {
                let (name, files, _): (String, HashMap<String, zbus::OwnedFd>, Options) =
                    body.deserialize().unwrap();
                let mut contents: Vec<String> =
                    files.into_iter().map(|(name, fd)| format!("{name}={}", content(fd))).collect();
                contents.sort();
                let (interface, parent) = match member {
                    "ImportImage" => (IMAGE_INTERFACE, IMAGE_PARENT),
                    _ => (KERNEL_INTERFACE, KERNEL_PARENT),
                };
                self.add(interface, parent, &name, [("Source", Variant::from(contents.join(" ")))]);
                let job = self.add_job();
                self.end_job(&job, ("", String::new()));
                self.reply(message, &job).await
            }
            "Subscribe" => {
                self.reply(message, &()).await?;
                self.deny_something(message).await;
                Ok(())
            }
            "Diagnose" => {
                let rows =
                    [("kvm", "pass", "it works", ""), ("disk", "fail", "it is full", "buy another one")];
                self.reply(message, &(rows.to_vec(),)).await
            }
            "Repair" => {
                let rows = [("cache", "fixed", "removed 1 download", ""), ("kvm", "pass", "it works", "")];
                self.reply(message, &(rows.to_vec(),)).await
            }
            other => Err(("org.freedesktop.DBus.Error.UnknownMethod", other.to_owned())),
        }
    }

    async fn vm(&self, message: &Message, path: &str, member: &str, call: Call) -> Answer {
        let name = self.name_of(path).ok_or_else(unknown)?;
        if name == "locked" && !call.interactive {
            return Err((
                "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
                "an administrator has to allow this".to_owned(),
            ));
        }
        match member {
            "Start" | "Stop" | "Restart" | "Delete" => {
                let job = self.add_job();
                self.reply(message, &job).await?;
                self.stage(message, &job, "work", &format!("{member} of {name}")).await;
                self.change_state(path, member);
                self.end_job(&job, ("", String::new()));
                Ok(())
            }
            "Kill" | "Configure" | "SetLifetime" | "ChangeEgress" => self.reply(message, &()).await,
            "Rename" => {
                let (name,): (String,) = message.body().deserialize().unwrap();
                let name = Variant::from(name);
                self.state.lock().unwrap().objects.get_mut(path).unwrap().1.insert("Name", name);
                self.reply(message, &()).await
            }
            "OpenAgent" if self.agents_hang.load(Relaxed) => Ok(()),
            // Its sessions outlive the streams.
            "OpenAgent" if name == "lasting" => {
                let agent = self.lasting.get_or_init(|| agent::LastingAgent::start().unwrap());
                let stream = agent.connect().unwrap();
                self.reply(message, &zbus::Fd::from(std::os::fd::OwnedFd::from(stream))).await
            }
            "OpenAgent" => {
                let (ours, theirs) = StdStream::pair().unwrap();
                if name.starts_with("box") {
                    agent::serve_with_the_real_one(ours, &theirs).map_err(|error| {
                        let text =
                            format!("the agent is to be built with the whole workspace first: {error}");
                        ("dev.banger.Error.Internal", text)
                    })?;
                } else {
                    ours.set_nonblocking(true).unwrap();
                    tokio::spawn(agent::serve(UnixStream::from_std(ours).unwrap()));
                }
                self.reply(message, &zbus::Fd::from(std::os::fd::OwnedFd::from(theirs))).await
            }
            "OpenLog" => {
                let (reader, writer) = rustix::pipe::pipe().unwrap();
                File::from(writer).write_all(b"[\x1b[0;32m  OK  \x1b[0m] Started\r\n").unwrap();
                self.reply(message, &zbus::Fd::from(reader)).await
            }
            other => Err(("org.freedesktop.DBus.Error.UnknownMethod", other.to_owned())),
        }
    }

    async fn job(&self, message: &Message, path: &str, member: &str) -> Answer {
        let job = self.state.lock().unwrap().jobs.get(path).map(watch::Sender::subscribe);
        let mut job = job.ok_or_else(unknown)?;
        let stubborn = self.find(VM_INTERFACE, "stubborn").is_some();
        if member == "Cancel" && stubborn {
            return Err(("dev.banger.Error.NotCancelable", "it is too late for that".to_owned()));
        }
        if member == "Cancel" {
            self.state.lock().unwrap().objects.retain(|_, (_, vm)| vm["Name"] != Variant::from("hanging"));
            let canceled = ("dev.banger.Error.Canceled", "the operation was canceled".to_owned());
            self.end_job(&OwnedObjectPath::try_from(path).unwrap(), canceled);
            return self.reply(message, &()).await;
        }
        let (name, text) = job.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        let result = if name.is_empty() { "done" } else { "failed" };
        self.reply(message, &(result, name, text, HashMap::<String, Variant<'_>>::new())).await
    }

    async fn properties(&self, message: &Message, path: &str) -> Answer {
        if path == MANAGER_PATH {
            let defaults = [("DefaultImage", "debian-bookworm"), ("DefaultKernel", "debian")];
            let defaults: HashMap<_, _> = defaults.map(|(key, name)| (key, Variant::from(name))).into();
            return self.reply(message, &defaults).await;
        }
        let object = self.state.lock().unwrap().objects.get(path).map(|(_, properties)| properties.clone());
        self.reply(message, &object.ok_or_else(unknown)?).await
    }

    async fn objects(&self, message: &Message) -> Answer {
        let objects: HashMap<_, _> = {
            let state = self.state.lock().unwrap();
            state
                .objects
                .iter()
                .map(|(path, (interface, properties))| {
                    let path = ObjectPath::try_from(path.clone()).unwrap();
                    (path, HashMap::from([(*interface, properties.clone())]))
                })
                .collect()
        };
        self.reply(message, &objects).await
    }

    async fn stage(&self, caller: &Message, job: &OwnedObjectPath, stage: &str, text: &str) {
        let to = caller.header().sender().unwrap().to_owned();
        let body = (stage, 1u32, 2u32, text);
        // As a unicast signal, like the real service: the client has no match rule.
        let _ = self.connection.emit_signal(Some(to), job, JOB_INTERFACE, "Stage", &body).await;
    }

    /// Denies two destinations to the sandbox whose name says so, and tells a subscriber.
    async fn deny_something(&self, subscriber: &Message) {
        let Some(vm) = self.find(VM_INTERFACE, "box-denied") else { return };
        let to = subscriber.header().sender().unwrap().to_owned();
        for denied in [("evil.example", 0u16, "dns"), ("good.example", 0, "dns"), ("192.0.2.7", 443, "tcp")] {
            let _ = self
                .connection
                .emit_signal(Some(to.clone()), &vm, VM_INTERFACE, "EgressDenied", &denied)
                .await;
        }
    }

    fn add_vm(&self, name: &str, state: &'static str) -> OwnedObjectPath {
        self.add(
            VM_INTERFACE,
            VM_PARENT,
            name,
            [
                ("State", Variant::from(state)),
                ("Ready", Variant::from(state == "running")),
                ("ImageName", Variant::from("debian")),
                ("Vcpus", Variant::from(2u32)),
                ("Memory", Variant::from(1u64 << 30)),
                ("DiskSize", Variant::from(8u64 << 30)),
                ("RootSize", Variant::from(16u64 << 30)),
            ],
        )
    }

    fn add<const N: usize>(
        &self,
        interface: &'static str,
        parent: &str,
        name: &str,
        more: [(&'static str, Variant<'static>); N],
    ) -> OwnedObjectPath {
        let mut state = self.state.lock().unwrap();
        state.made += 1;
        let id = format!("{:032x}", state.made);
        let path = format!("{parent}/{id}");
        let mut properties = Properties::from(more);
        properties.insert("Id", Variant::from(id));
        properties.insert("Name", Variant::from(name.to_owned()));
        properties.insert("OwnerUid", Variant::from(1000u32));
        properties.insert("CreatedAt", Variant::from(state.made));
        state.objects.insert(path.clone(), (interface, properties));
        OwnedObjectPath::try_from(path).unwrap()
    }

    /// Does to a sandbox what a method is called for. A boot has a start time of its own.
    fn change_state(&self, path: &str, member: &str) {
        let mut state = self.state.lock().unwrap();
        state.made += 1;
        let now = state.made;
        if member == "Delete" {
            state.objects.remove(path);
            return;
        }
        let properties = &mut state.objects.get_mut(path).unwrap().1;
        let is_running = properties["State"] == Variant::from("running");
        if member == "Restart" || (member == "Start" && !is_running) {
            properties.insert("StartedAt", Variant::from(now));
        }
        let after = if member == "Stop" { "stopped" } else { "running" };
        properties.insert("State", Variant::from(after));
    }

    fn add_job(&self) -> OwnedObjectPath {
        let mut state = self.state.lock().unwrap();
        state.made += 1;
        let path = format!("{JOB_PARENT}/{:032x}", state.made);
        state.jobs.insert(path.clone(), watch::channel(None).0);
        OwnedObjectPath::try_from(path).unwrap()
    }

    fn end_job(&self, job: &OwnedObjectPath, outcome: Outcome) {
        self.state.lock().unwrap().jobs[job.as_str()].send_replace(Some(outcome));
    }

    fn find(&self, interface: &str, reference: &str) -> Option<ObjectPath<'static>> {
        let state = self.state.lock().unwrap();
        let wanted = Variant::from(reference.to_owned());
        let mut of_interface = state.objects.iter().filter(|(_, (known, _))| *known == interface);
        let found = of_interface.find(|(_, (_, object))| object["Name"] == wanted || object["Id"] == wanted);
        found.map(|(path, _)| ObjectPath::try_from(path.clone()).unwrap())
    }

    fn name_of(&self, path: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        match &state.objects.get(path)?.1["Name"] {
            Variant::Str(name) => Some(name.to_string()),
            _ => None,
        }
    }
}

fn unknown() -> (&'static str, String) {
    ("org.freedesktop.DBus.Error.UnknownObject", "there is no such object".to_owned())
}

/// Returns the last argument as text values, if it is a dictionary of options.
fn options_of(message: &Message) -> BTreeMap<String, String> {
    let body = message.body();
    let signature = body.signature().to_string();
    let options: Options = match signature.trim_start_matches('(').trim_end_matches(')') {
        "a{sv}" => body.deserialize::<(Options,)>().unwrap().0,
        "sa{sv}" => body.deserialize::<(String, Options)>().unwrap().1,
        "asas" => {
            let (allow, deny) = body.deserialize::<(Vec<String>, Vec<String>)>().unwrap();
            let words = |words| OwnedVariant::try_from(Variant::from(words)).unwrap();
            [("allow".to_owned(), words(allow)), ("deny".to_owned(), words(deny))].into()
        }
        _ => Options::new(),
    };
    let text = |value: &OwnedVariant| match &**value {
        Variant::Str(text) => Value::from(text.as_str()).to_string(),
        Variant::Bool(flag) => flag.to_string(),
        Variant::U32(number) => number.to_string(),
        Variant::U64(number) => number.to_string(),
        Variant::Dict(entries) => entries.to_string(),
        Variant::Array(list) => list.iter().map(|item| item.to_string()).collect::<Vec<_>>().join(","),
        other => panic!("{other:?}"),
    };
    options.iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

fn content(fd: zbus::OwnedFd) -> String {
    let mut bytes = Vec::new();
    File::from(std::os::fd::OwnedFd::from(fd)).read_to_end(&mut bytes).unwrap();
    match bytes.len() {
        0..=100 => String::from_utf8(bytes).unwrap(),
        long => format!("{long} bytes"),
    }
}
