//! Tools for sandboxes as a whole.

use std::{collections::BTreeMap, time::Duration};

use banger_proto::{
    bus::{
        names::VM_INTERFACE,
        option::{create, delete, lifetime, stop},
        proxy::Options,
    },
    size::Bytes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zbus::{OwnedObjectPath, Variant};

use super::{Call, Effect, Found, LONG, Tool};
use crate::{
    client::{
        job::Jobs,
        object::{self, Object},
        service::id_of,
    },
    command::vm::{
        change,
        created::{about, explain, kept},
        run_detached::is_gone,
        size_args::{SizeArgs, size},
        vm_args::{VmArgs, Wanted},
    },
    error::Result,
    guest::agent::Guest,
    mcp::failure::invalid,
    ssh::installed,
    user::{settings::Settings, user_files},
};

/// The main facts about a sandbox.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Sandbox {
    /// Its name.
    name: String,
    /// Its id, which never changes.
    id: String,
    /// `created`, `starting`, `running`, `paused`, `stopping`, `stopped`, `failed` or `deleting`.
    state: String,
    /// The image that it was cloned from.
    image: String,
    /// Its IPv4 address, if it has one.
    address: String,
    /// Whether it has internet access.
    network: bool,
    /// What it may reach beyond this host: entries of a policy, or `all`.
    egress: Vec<String>,
    /// Its labels.
    labels: BTreeMap<String, String>,
}

impl Sandbox {
    fn of(object: &Object) -> Self {
        let labels = serde_json::from_value(object.json()["labels"].take());
        Self {
            name: object.name().to_owned(),
            id: object.text("Id").to_owned(),
            state: object.text("State").to_owned(),
            image: object.text("ImageName").to_owned(),
            address: object.text("Address").to_owned(),
            network: object.has_egress(),
            egress: object.strings("Egress"),
            labels: labels.unwrap_or_default(),
        }
    }
}

/// What a new sandbox is like; its defaults are the user's.
#[derive(Debug, Default)]
pub struct Wishes {
    pub image: Option<String>,
    pub vcpus: Option<u32>,
    pub memory: Option<String>,
    pub root_size: Option<String>,
    pub disk_size: Option<String>,
    pub network: Option<bool>,
    pub egress: Option<Vec<String>>,
}

/// How long a new sandbox exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is deleted.
    Persistent,
    /// Until it is deleted, or this server ends.
    Server,
}

impl Wishes {
    /// Creates a sandbox and waits until its agent answers.
    pub async fn create(
        self,
        call: &Call,
        name: Option<String>,
        labels: BTreeMap<String, String>,
        lives: Lifetime,
    ) -> Result<OwnedObjectPath> {
        let (policy, bus) = (call.policy(), call.bus());
        let settings = Settings::of_caller()?;
        let wanted = Wanted {
            name,
            image: policy.image(self.image.clone())?,
            sizes: self.sizes()?,
            egress: policy.egress(self.network, self.egress.clone(), &settings)?,
            labels: policy.labels(labels)?,
        };
        let vm_args = VmArgs::wanted(wanted).with(&settings);
        let slot = call.server.reserve().await?;
        let (jobs, progress, mut listener) = (Jobs::of(bus), call.progress(), call.listener());
        let lifetime = match lives {
            Lifetime::Persistent => lifetime::PERSISTENT,
            Lifetime::Server => lifetime::CALLER,
        };
        let lifetime = Options::from([(create::LIFETIME, Variant::from(lifetime))]);
        let (vm, job) = vm_args.create(bus, &jobs, &progress, &mut listener, lifetime).await?;
        slot.fill(id_of(&vm));
        if let Err(error) = jobs.finish(bus, &job, progress.track(None), &mut listener).await {
            return Err(explain(bus, &vm, error).await);
        }
        installed::refresh(bus).await;
        if policy.host_dir.is_some() {
            let mut guest = Guest::new(bus.clone(), vm.clone(), listener);
            match user_files::send(&mut guest, &settings).await {
                Ok(problems) => problems.iter().for_each(|problem| progress.note(problem)),
                Err(error) => return Err(about(bus, &vm, kept(error)).await),
            }
        }
        Ok(vm)
    }

    fn sizes(&self) -> Result<SizeArgs> {
        let parse = |field: &str, text: &Option<String>| -> Result<Option<Bytes>> {
            let parsed = text.as_deref().map(size).transpose();
            parsed.map_err(|error| invalid(format!("cannot read {field}: {error}")))
        };
        if self.vcpus == Some(0) {
            return Err(invalid("cannot read vcpus: it must be 1 or more"));
        }
        let memory = parse("memory", &self.memory)?;
        let (root, disk) = (parse("root_size", &self.root_size)?, parse("disk_size", &self.disk_size)?);
        Ok(SizeArgs::new(self.vcpus, memory, root, disk))
    }
}

/// Arguments of `create`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Its name: lower-case letters, digits and hyphens. A generated one if absent.
    #[serde(default)]
    name: Option<String>,
    /// The image to clone: a name, or a reference of a registry such as `alpine:3.20`. The user's default if absent.
    #[serde(default)]
    image: Option<String>,
    /// The number of virtual processors. The user's default if absent.
    #[serde(default)]
    vcpus: Option<u32>,
    /// Memory, such as `512MiB` or `4GiB`. The user's default if absent.
    #[serde(default)]
    memory: Option<String>,
    /// Size of the system disk, such as `20GiB`. The image's if absent.
    #[serde(default)]
    root_size: Option<String>,
    /// Size of the work disk at /root, such as `8GiB`. The user's default if absent.
    #[serde(default)]
    disk_size: Option<String>,
    /// Whether it gets internet access. The user's default, which is usually no, if absent.
    #[serde(default)]
    network: Option<bool>,
    /// The hosts that it may reach beyond this host: names, `*.` and a domain, addresses, networks, or presets such as
    /// `packages`, each with `:PORT` if need be. It can only narrow what the user allows.
    #[serde(default)]
    egress: Option<Vec<String>>,
    /// Labels, by which the user can select it.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Whether it is deleted when this server ends.
    #[serde(default)]
    ephemeral: bool,
}

impl Tool for Create {
    const NAME: &'static str = "create";
    const ABOUT: &'static str = "Creates a sandbox and boots it. Returns when commands can run in it.";
    const TIME_LIMIT: Duration = LONG;
    const EFFECT: Effect = Effect::Adds;
    type Output = Sandbox;

    async fn run(self, call: Call) -> Result<Sandbox> {
        let Self { name, image, vcpus, memory, root_size, disk_size, network, egress, labels, ephemeral } =
            self;
        let wishes = Wishes { image, vcpus, memory, root_size, disk_size, network, egress };
        let lives = if ephemeral { Lifetime::Server } else { Lifetime::Persistent };
        let vm = wishes.create(&call, name, labels, lives).await?;
        Ok(Sandbox::of(&call.bus().properties(&vm, VM_INTERFACE).await?))
    }
}

/// Arguments of `list`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct List {}

/// Result of `list`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Listed {
    /// The sandboxes, the oldest first.
    sandboxes: Vec<Sandbox>,
}

impl Tool for List {
    const NAME: &'static str = "list";
    const ABOUT: &'static str = "Lists the sandboxes, running or not.";
    const EFFECT: Effect = Effect::Reads;
    type Output = Listed;

    async fn run(self, call: Call) -> Result<Listed> {
        let mut sandboxes = call.policy().visible(call.bus()).await?;
        object::sort(&mut sandboxes);
        Ok(Listed { sandboxes: sandboxes.iter().map(Sandbox::of).collect() })
    }
}

/// Arguments of `show`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Show {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
}

impl Tool for Show {
    const NAME: &'static str = "show";
    const ABOUT: &'static str = "Shows all details of a sandbox, as `banger vm show --json` does.";
    const EFFECT: Effect = Effect::Reads;
    type Output = Map<String, Value>;

    async fn run(self, call: Call) -> Result<Map<String, Value>> {
        match call.find(&self.sandbox).await?.object.json() {
            Value::Object(properties) => Ok(properties),
            _ => Ok(Map::new()),
        }
    }
}

/// Arguments of `start`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
}

impl Tool for Start {
    const NAME: &'static str = "start";
    const ABOUT: &'static str = "Boots a stopped sandbox. A running one stays as it is.";
    const TIME_LIMIT: Duration = LONG;
    const EFFECT: Effect = Effect::Adds;
    type Output = Sandbox;

    async fn run(self, call: Call) -> Result<Sandbox> {
        let found = call.find_for_use(&self.sandbox).await?;
        change(&call, &found, "Start", Options::new()).await?;
        Ok(Sandbox::of(&call.bus().properties(&found.path, VM_INTERFACE).await?))
    }
}

/// Arguments of `stop`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// Whether to kill it at once. What the guest has not written to disk is lost.
    #[serde(default)]
    force: bool,
}

impl Tool for Stop {
    const NAME: &'static str = "stop";
    const ABOUT: &'static str = "Shuts a sandbox down and keeps its disks. `start` boots it again.";
    const TIME_LIMIT: Duration = LONG;
    const EFFECT: Effect = Effect::Changes;
    type Output = Sandbox;

    async fn run(self, call: Call) -> Result<Sandbox> {
        let found = call.find(&self.sandbox).await?;
        let options = Options::from([(stop::FORCE, Variant::from(self.force))]);
        change(&call, &found, "Stop", options).await?;
        Ok(Sandbox::of(&call.bus().properties(&found.path, VM_INTERFACE).await?))
    }
}

/// Arguments of `delete`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// Whether to kill it first if it is running, and to delete its snapshots.
    #[serde(default)]
    force: bool,
}

/// Result of `delete`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Deleted {
    /// The name of the sandbox that was deleted.
    deleted: String,
}

impl Tool for Delete {
    const NAME: &'static str = "delete";
    const ABOUT: &'static str = "Deletes a sandbox and its disks for good.";
    const TIME_LIMIT: Duration = LONG;
    const EFFECT: Effect = Effect::Changes;
    type Output = Deleted;

    async fn run(self, call: Call) -> Result<Deleted> {
        let found = call.find(&self.sandbox).await?;
        delete(&call, &found, self.force).await?;
        Ok(Deleted { deleted: found.object.name().to_owned() })
    }
}

/// Deletes a sandbox.
async fn delete(call: &Call, found: &Found, force: bool) -> Result<()> {
    let options = Options::from([(delete::FORCE, Variant::from(force))]);
    let done = change(call, found, "Delete", options).await;
    installed::refresh(call.bus()).await;
    match done {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Calls a method of a sandbox, and waits for its job.
async fn change(call: &Call, found: &Found, method: &str, options: Options<'_>) -> Result<()> {
    let (bus, jobs) = (call.bus(), Jobs::of(call.bus()));
    let done = async {
        let job = bus.change_vm(&found.path, method, &options).await?;
        jobs.finish(bus, &job, call.progress().track(None), &mut call.listener()).await
    };
    done.await.map(drop).map_err(|error| found.about(change::add_hint(error, method)))
}
