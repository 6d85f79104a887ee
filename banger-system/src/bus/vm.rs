//! `dev.banger.Manager1.VM`: a sandbox.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::{
    egress::{Egress, log::EgressLog},
    id::{JobId, Timestamp, VmId},
    idle::Busy,
    lifecycle::State,
    name::Name,
    net::port::{Port, Scope},
    restart::RestartPolicy,
    stream::Purpose,
    vm::{BootedFrom, Lifetime},
};
use banger_proto::{
    bus::{
        ErrorName,
        names::{VM_INTERFACE, action, detail},
        option::{agent, configure, create, delete, lifetime, log, publish, snapshot, start, stop},
        record::{ChangeRow, PhaseRow},
    },
    size::Bytes,
};
use zbus::{OwnedFd as BusFd, OwnedObjectPath, OwnedVariant, Variant, interface, message::Header};

use super::{
    api::{Api, Target},
    caller::{Caller, RequestKind},
    error::{Error, Result},
    export::{Change, Kind, Property, Reader, api, export},
    job::JobKind,
    options::{Dict, Options},
    path, publisher,
    request::{
        parse_name, read_commit, read_egress, read_fork, read_idle, read_port, read_protocol, read_reach,
    },
    subscribers::Watching,
};
use crate::{
    engine::{
        Engine,
        agent::DEFAULT_TIMEOUT,
        request::{Configure, EgressChange, ForkVm, KeepMemory, Start, Stop, StopMode, WaitFor},
        stream::Service,
        view::{SnapshotView, VmView},
    },
    ports::{
        captures::Stored,
        logs::{Log, LogRange},
    },
};

/// The longest timeout that a caller may choose.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// The kind of sandbox objects.
#[derive(Clone)]
pub struct VmKind(pub VmId);

impl Kind for VmKind {
    type View = VmView;
    type Methods = Methods;
    const INTERFACE: &'static str = VM_INTERFACE;
    const SIGNALS: &'static str = r#"<signal name="StateChanged"><arg name="old_state" type="s"/><arg name="new_state" type="s"/><arg name="reason" type="s"/></signal><signal name="EgressDenied"><arg name="destination" type="s"/><arg name="port" type="q"/><arg name="protocol" type="s"/></signal>"#;

    fn path(&self) -> OwnedObjectPath {
        path::vm(self.0)
    }

    fn properties() -> &'static [Property<VmView>] {
        PROPERTIES
    }

    fn methods(&self, api: Weak<Api>) -> Methods {
        Methods { api, id: self.0 }
    }

    fn view(&self, engine: &Engine) -> Option<Arc<VmView>> {
        engine.vm(self.0)
    }

    fn target(view: &VmView, _: &Api) -> Option<Target> {
        let details = vec![(detail::VM, view.vm.name.to_string()), (detail::VM_ID, view.vm.id.to_string())];
        let object = format!("sandbox {}", view.vm.name);
        Some(Target { owner: view.vm.owner, is_shared: false, creator: None, object, details })
    }

    fn gone() -> Error {
        Error::new(ErrorName::NoSuchVm, "the sandbox has been deleted")
    }

    fn describe(&self, span: &tracing::Span) {
        span.record("vm", tracing::field::display(self.0));
    }
}

const fn constant(name: &'static str, signature: &'static str, get: Get) -> Property<VmView> {
    Property { name, signature, change: Change::Never, get }
}

const fn property(name: &'static str, signature: &'static str, get: Get) -> Property<VmView> {
    Property { name, signature, change: Change::Signaled, get }
}

type Get = fn(&VmView, &Reader<'_>) -> Variant<'static>;

const PROPERTIES: &[Property<VmView>] = &[
    constant("Id", "s", |view, _| view.vm.id.to_string().into()),
    property("Name", "s", |view, _| view.vm.name.to_string().into()),
    constant("OwnerUid", "u", |view, _| view.vm.owner.0.into()),
    property("State", "s", |view, _| view.vm.state.as_str().into()),
    property("StateReason", "s", |view, _| view.vm.reason.to_string().into()),
    property("Ready", "b", |view, _| view.is_ready().into()),
    property("BootId", "s", |view, _| view.vm.boot_id.clone().into()),
    property("BootedFrom", "s", |view, _| {
        view.vm.booted_from.map(BootedFrom::as_str).unwrap_or_default().to_owned().into()
    }),
    property("SuspendedAt", "t", |view, _| suspended(view).map_or(0, |stored| stored.at.0).into()),
    property("SuspendedSize", "t", |view, _| suspended(view).map_or(0, |stored| stored.size.0).into()),
    property("ImageId", "s", |view, _| view.vm.image.to_string().into()),
    property("ImageName", "s", |view, _| view.image_name.clone().into()),
    property("KernelId", "s", |view, _| view.vm.kernel.to_string().into()),
    property("KernelName", "s", |view, _| view.kernel_name.clone().into()),
    property("Vcpus", "u", |view, _| view.vm.spec.vcpus.into()),
    property("Memory", "t", |view, _| view.vm.spec.memory.0.into()),
    property("DiskSize", "t", |view, _| view.vm.spec.disk_size.0.into()),
    property("RootSize", "t", |view, _| view.vm.spec.root_size.0.into()),
    property("Address", "s", |view, _| view.address_text().into()),
    constant("MacAddress", "s", |view, _| view.mac.to_string().into()),
    Property {
        name: "DnsNames",
        signature: "as",
        change: Change::Silent,
        get: |view, reader| reader.engine.dns_names(view.vm.id).into(),
    },
    Property {
        name: "RefusedLookups",
        signature: "t",
        change: Change::Silent,
        get: |view, reader| reader.engine.refused_lookups(view.vm.id).into(),
    },
    property("Nat", "b", |view, _| (view.vm.spec.egress == Egress::Everything).into()),
    property("Egress", "as", |view, _| view.vm.spec.egress.words().into()),
    property("EgressCut", "as", |view, reader| reader.engine.egress_cut(&view.vm.spec.egress).into()),
    Property {
        name: "EgressAllowed",
        signature: "a(stt)",
        change: Change::Silent,
        get: |view, reader| allowed(&reader.engine.egress_log(view.vm.id)),
    },
    Property {
        name: "EgressDenials",
        signature: "a(sqstt)",
        change: Change::Silent,
        get: |view, reader| denied(&reader.engine.egress_log(view.vm.id)),
    },
    constant("SshHostKey", "s", |view, _| view.vm.host_key.public().to_owned().into()),
    property("PublishedPorts", "a(sqqs)", |view, _| ports(&view.vm.spec.ports)),
    property("BlockedPorts", "a(sqqs)", |view, _| ports(&view.blocked_ports)),
    property("IdleAction", "s", |view, _| {
        view.vm.spec.idle.map_or("", |idle| idle.action.as_str()).to_owned().into()
    }),
    property("IdleAfter", "t", |view, _| {
        view.vm.spec.idle.map_or(0, |idle| idle.after.as_micros() as u64).into()
    }),
    property("IdleAt", "t", |view, _| view.idle_at.unwrap_or_default().0.into()),
    property("BusyWith", "s", |view, _| view.busy.map_or("", Busy::as_str).to_owned().into()),
    property("Lifetime", "s", |view, _| view.vm.lifetime.as_str().into()),
    property("Labels", "a{ss}", |view, _| {
        let labels: HashMap<String, String> = view.vm.spec.labels.clone().into_iter().collect();
        labels.into()
    }),
    property("Restart", "s", |view, _| view.vm.spec.restart.as_str().into()),
    property("Autostart", "b", |view, _| view.vm.spec.autostart.into()),
    constant("CreatedAt", "t", |view, _| view.vm.created_at.0.into()),
    property("StartedAt", "t", |view, _| view.vm.started_at.0.into()),
    property("ReadyAt", "t", |view, _| view.vm.ready_at.0.into()),
    property("Unit", "s", |view, _| view.unit.clone().into()),
    property("MainPid", "u", |view, _| view.pid.into()),
    Property {
        name: "Jobs",
        signature: "ao",
        change: Change::Silent,
        get: |view, reader| {
            let jobs: Vec<OwnedObjectPath> =
                reader.engine.vm_jobs(view.vm.id).into_iter().map(path::job).collect();
            jobs.into()
        },
    },
];

/// Returns what is known of the memory of a suspended sandbox.
fn suspended(view: &VmView) -> Option<Stored> {
    view.captured.filter(|_| matches!(view.vm.state, State::Suspended | State::Resuming))
}

/// Returns a snapshot as a dictionary.
fn facts(view: &SnapshotView) -> Result<Dict> {
    let layers = view.frozen.iter().map(|layer| layer.size.0);
    let memory = view.captured.map_or(0, |captured| captured.size.0);
    let rows: [(&str, Variant<'static>); 4] = [
        (snapshot::NAME, view.vm.name.to_string().into()),
        (snapshot::CREATED_AT, view.vm.created_at.0.into()),
        (snapshot::MEMORY, view.has_memory().into()),
        (snapshot::SIZE, layers.fold(memory, u64::saturating_add).into()),
    ];
    let owned = |(key, value): (&str, Variant<'static>)| Ok((key.to_owned(), OwnedVariant::try_from(value)?));
    rows.into_iter().map(owned).collect()
}

/// Returns the allowed names as rows: name, number of look-ups, and when last.
fn allowed(log: &EgressLog) -> Variant<'static> {
    let rows = log.allowed().into_iter().map(|(name, tally)| (name.to_string(), tally.count, tally.last.0));
    rows.collect::<Vec<(String, u64, u64)>>().into()
}

/// Returns the denied destinations as rows: name or address, port, protocol, how often, and when last.
fn denied(log: &EgressLog) -> Variant<'static> {
    let rows = log
        .denied()
        .into_iter()
        .map(|(to, tally)| (to.host(), to.port(), to.protocol().to_owned(), tally.count, tally.last.0));
    rows.collect::<Vec<(String, u16, String, u64, u64)>>().into()
}

/// Returns the ports as rows: protocol, port of the guest, port of the host, and address of the host.
fn ports(ports: &BTreeSet<Port>) -> Variant<'static> {
    let row = |port: &Port| {
        let address = match port.scope {
            Scope::Loopback => "127.0.0.1",
            Scope::All => "0.0.0.0",
        };
        (port.protocol.as_str().to_owned(), port.guest, port.host, address.to_owned())
    };
    ports.iter().map(row).collect::<Vec<(String, u16, u16, String)>>().into()
}

/// The methods of a sandbox.
pub struct Methods {
    api: Weak<Api>,
    id: VmId,
}

/// A sandbox.
#[interface(name = "dev.banger.Manager1.VM", introspection_docs = false)]
impl Methods {
    #[zbus(out_args("job"))]
    async fn start(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let is_cold = options.boolean(start::COLD)?.unwrap_or_default();
        let memory = if is_cold { KeepMemory::No } else { KeepMemory::Yes };
        let start = Start { memory, ..read_start(&mut options)? };
        options.finish()?;
        let job = api.engine.start_vm(self.id, start).await?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("job"))]
    async fn stop(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let stop = read_stop(&mut options)?;
        options.finish()?;
        let job = api.engine.stop_vm(self.id, stop).await?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("job"))]
    async fn restart(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let (stop, start) = (read_stop(&mut options)?, read_start(&mut options)?);
        options.finish()?;
        let job = api.engine.restart_vm(self.id, stop, start).await?;
        api.return_job(&caller, job).await
    }

    async fn kill(&self, signal: i32) -> Result<()> {
        Ok(api(&self.api)?.engine.kill_vm(self.id, signal).await?)
    }

    async fn pause(&self) -> Result<()> {
        Ok(api(&self.api)?.engine.pause_vm(self.id).await?)
    }

    async fn unpause(&self) -> Result<()> {
        Ok(api(&self.api)?.engine.unpause_vm(self.id).await?)
    }

    #[zbus(out_args("job"))]
    async fn suspend(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        Options::new(options).finish()?;
        let job = api.engine.suspend_vm(self.id).await?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("job"))]
    async fn resume(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let start = read_start(&mut options)?;
        options.finish()?;
        let job = api.engine.resume_vm(self.id, start).await?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("job"))]
    async fn delete(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let mode = mode(options.boolean(delete::FORCE)?);
        options.finish()?;
        let job = api.engine.delete_vm(self.id, mode).await?;
        api.return_job(&caller, job).await
    }

    async fn rename(&self, name: String) -> Result<()> {
        let name: Name = name.parse().map_err(|error| Error::of(ErrorName::InvalidName, &error))?;
        Ok(api(&self.api)?.engine.rename_vm(self.id, name).await?)
    }

    async fn set_lifetime(&self, lifetime: String, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let (api, caller) = self.caller(&header).await?;
        let lifetime = api.lifetime(&caller, Some(&lifetime)).await?;
        api.engine.set_lifetime(self.id, lifetime.clone()).await?;
        api.bind(&caller, &lifetime).await;
        Ok(())
    }

    async fn configure(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let change = Configure {
            vcpus: options.small_number(configure::VCPUS)?,
            memory: options.number(configure::MEMORY)?.map(Bytes),
            disk_size: options.number(configure::DISK_SIZE)?.map(Bytes),
            root_size: options.number(configure::ROOT_SIZE)?.map(Bytes),
            egress: read_reach(&mut options)?.map(Into::into),
            restart: read_restart(&mut options)?,
            autostart: options.boolean(configure::AUTOSTART)?,
            labels: options.strings(configure::LABELS)?,
            removed_labels: options.list(configure::REMOVE_LABELS)?,
            idle: read_idle(&mut options)?,
        };
        options.finish()?;
        // More resources need the right to run sandboxes: a user who was removed from the group keeps what there is.
        if change.adds_resources() {
            api.require(&caller, action::VM_RUN, Vec::new()).await?;
        }
        Ok(api.engine.configure_vm(self.id, change).await?)
    }

    async fn set_egress(&self, entries: Vec<String>, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let (api, caller) = self.caller(&header).await?;
        let egress = read_egress(&entries)?;
        if egress != Egress::Nothing {
            api.require(&caller, action::VM_RUN, Vec::new()).await?;
        }
        Ok(api.engine.set_egress(self.id, egress).await?)
    }

    async fn change_egress(
        &self,
        allow: Vec<String>,
        deny: Vec<String>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        let (api, caller) = self.caller(&header).await?;
        let change = EgressChange::Entries { allow: read_egress(&allow)?, deny: read_egress(&deny)? };
        if change.adds() {
            api.require(&caller, action::VM_RUN, Vec::new()).await?;
        }
        Ok(api.engine.set_egress(self.id, change).await?)
    }

    #[zbus(out_args("job"))]
    async fn commit(
        &self,
        name: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let job = api.engine.commit_vm(self.id, read_commit(&caller, &name, options)?).await?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("children", "job"))]
    async fn fork(
        &self,
        count: u32,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(Vec<OwnedObjectPath>, OwnedObjectPath)> {
        let (api, caller) = self.caller(&header).await?;
        let (request, lifetime) = read_fork(count, options)?;
        let lifetime = api.lifetime(&caller, lifetime.as_deref()).await?;
        let request = ForkVm { lifetime: lifetime.clone(), ..request };
        let (children, job) = api.engine.fork_vm(self.id, request).await?;
        api.bind(&caller, &lifetime).await;
        for child in &children {
            export(&api, VmKind(*child)).await?;
        }
        Ok((children.into_iter().map(path::vm).collect(), api.return_job(&caller, job).await?))
    }

    #[zbus(out_args("job"))]
    async fn create_snapshot(
        &self,
        name: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        Options::new(options).finish()?;
        let job = api.engine.create_snapshot(self.id, parse_name(&name)?).await?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("snapshots"))]
    async fn list_snapshots(&self) -> Result<Vec<Dict>> {
        api(&self.api)?.engine.snapshots(self.id).iter().map(|view| facts(view)).collect()
    }

    #[zbus(out_args("job"))]
    async fn restore_snapshot(
        &self,
        name: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        Options::new(options).finish()?;
        let job = api.engine.restore_snapshot(self.id, parse_name(&name)?).await?;
        api.return_job(&caller, job).await
    }

    async fn delete_snapshot(&self, name: String) -> Result<()> {
        Ok(api(&self.api)?.engine.delete_snapshot(self.id, parse_name(&name)?).await?)
    }

    #[zbus(out_args("actual_port"))]
    async fn publish_port(
        &self,
        protocol: String,
        guest_port: u16,
        host_port: u16,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<u16> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let scope = options.string(publish::SCOPE)?;
        options.finish()?;
        let port = read_port(&protocol, guest_port, host_port, scope.as_deref())?;
        let name = api.engine.vm(self.id).map(|view| view.vm.name.to_string()).unwrap_or_default();
        api.require_publish(&caller, &[port], &name).await?;
        Ok(api.engine.publish_port(self.id, port).await?.host)
    }

    #[zbus(out_args("changes", "phases"))]
    async fn get_history(&self, options: Dict) -> Result<(Vec<ChangeRow>, Vec<PhaseRow>)> {
        Options::new(options).finish()?;
        let history = api(&self.api)?.engine.history(self.id).ok_or_else(VmKind::gone)?;
        let changes = history.changes().map(|(at, condition)| ChangeRow {
            at_usec: at.0,
            state: condition.state.as_str().to_owned(),
            ready: condition.ready,
            reason: condition.reason.to_string(),
        });
        let phases = history.phases().iter().map(|(phase, took)| PhaseRow {
            phase: phase.as_str().to_owned(),
            usec: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        });
        Ok((changes.collect(), phases.collect()))
    }

    async fn unpublish_port(&self, protocol: String, host_port: u16) -> Result<()> {
        let protocol = read_protocol(&protocol)?;
        let port = Port { scope: Scope::Loopback, protocol, host: host_port, guest: 0 };
        Ok(api(&self.api)?.engine.unpublish_port(self.id, port).await?)
    }

    #[zbus(out_args("stream"))]
    async fn open_agent(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<BusFd> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let purpose = match options.string(agent::PURPOSE)? {
            None => Purpose::default(),
            Some(word) => Purpose::parse(&word).ok_or_else(|| {
                Error::invalid_option("the purpose must be question, command or connection")
            })?,
        };
        let timeout = read_timeout(&mut options, agent::TIMEOUT)?.unwrap_or(DEFAULT_TIMEOUT);
        options.finish()?;
        self.require_wake(&api, &caller).await?;
        tokio::select! {
            biased;
            // Without the caller, nobody could receive the stream.
            () = api.callers.disconnected(&caller.connection) => {
                Err(Error::new(ErrorName::AccessDenied, "the caller has disconnected"))
            }
            stream = api.engine.open_agent(self.id, caller.uid, purpose, timeout) => Ok(to_bus_fd(stream?)),
        }
    }

    #[zbus(out_args("stream"))]
    async fn open_stream(
        &self,
        service: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<BusFd> {
        let (api, caller) = self.caller(&header).await?;
        let service = Service::parse(&service)
            .ok_or_else(|| Error::new(ErrorName::InvalidArgs, "the service must be ssh"))?;
        Options::new(options).finish()?;
        self.require_wake(&api, &caller).await?;
        Ok(to_bus_fd(api.engine.open_stream(self.id, caller.uid, service).await?))
    }

    #[zbus(out_args("pipe"))]
    async fn open_log(
        &self,
        log: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<BusFd> {
        let (api, caller) = self.caller(&header).await?;
        let log = match log.as_str() {
            log::CONSOLE => Log::Console,
            log::VMM => Log::Vmm,
            _ => return Err(Error::new(ErrorName::InvalidArgs, "the log must be console or vmm")),
        };
        let mut options = Options::new(options);
        let reading = LogRange {
            tail: options.small_number(log::TAIL)?,
            since: options.number(log::SINCE)?.map(Timestamp),
            until: options.number(log::UNTIL)?.map(Timestamp),
            follow: options.boolean(log::FOLLOW)?.unwrap_or_default(),
        };
        options.finish()?;
        if reading.follow && reading.until.is_some() {
            return Err(Error::invalid_option("follow and until-usec exclude each other"));
        }
        let place = api.callers.acquire(caller.uid, RequestKind::Log)?;
        Ok(to_bus_fd(api.engine.open_log(self.id, log, reading, Box::new(place)).await?))
    }
}

impl Methods {
    /// Checks that the caller may resume the sandbox, if it is suspended.
    async fn require_wake(&self, api: &Api, caller: &Caller) -> Result<()> {
        match api.engine.vm(self.id).is_some_and(|view| view.vm.state == State::Suspended) {
            true => api.require(caller, action::VM_RUN, Vec::new()).await,
            false => Ok(()),
        }
    }

    async fn caller(&self, header: &Header<'_>) -> Result<(Arc<Api>, Caller)> {
        let api = api(&self.api)?;
        let caller = api.callers.of(header).await?;
        Ok((api, caller))
    }
}

impl Api {
    /// Exports a job, subscribes its creator to it, and returns its path.
    pub async fn return_job(self: &Arc<Self>, caller: &Caller, job: JobId) -> Result<OwnedObjectPath> {
        export(self, JobKind(job)).await?;
        if self.subscribers.watch_job(job, &caller.connection) == Watching::TooLate {
            // It has ended already, and was announced to the others.
            publisher::send_completed(self, job, &caller.connection).await?;
        }
        Ok(path::job(job))
    }

    /// Deletes a sandbox that was just bound to a caller, if the caller has disconnected meanwhile.
    pub async fn bind(&self, caller: &Caller, lifetime: &Lifetime) {
        if matches!(lifetime, Lifetime::Caller { .. }) && !self.callers.is_connected(&caller.connection) {
            self.engine.client_disconnected(&caller.connection, self.callers.bus_id()).await;
        }
    }

    /// Returns the lifetime for a word, bound to the caller if the word says so.
    pub async fn lifetime(&self, caller: &Caller, word: Option<&str>) -> Result<Lifetime> {
        match word {
            None | Some(lifetime::PERSISTENT) => Ok(Lifetime::Persistent),
            Some(lifetime::UNTIL_STOPPED) => Ok(Lifetime::UntilStopped),
            Some(lifetime::CALLER) => {
                let bus = self.callers.bus_id().to_owned();
                Ok(Lifetime::Caller { connection: caller.connection.clone(), bus })
            }
            Some(_) => Err(Error::invalid_option("the lifetime must be persistent, until-stopped or caller")),
        }
    }
}

fn to_bus_fd(fd: OwnedFd) -> BusFd {
    BusFd::from(fd)
}

/// Parses the options of a start.
pub fn read_start(options: &mut Options) -> Result<Start> {
    let wait_for = match options.string(create::WAIT_FOR)?.as_deref() {
        None | Some("agent") => WaitFor::Agent,
        Some("running") => WaitFor::Running,
        Some(_) => return Err(Error::invalid_option("wait-for must be running or agent")),
    };
    Ok(Start { wait_for, ready_timeout: read_timeout(options, start::READY_TIMEOUT)?, ..Start::default() })
}

/// Parses the restart policy, if there is one.
pub fn read_restart(options: &mut Options) -> Result<Option<RestartPolicy>> {
    let Some(word) = options.string(create::RESTART)? else { return Ok(None) };
    let policy = RestartPolicy::parse(&word)
        .ok_or_else(|| Error::invalid_option("restart must be no, on-failure or always"))?;
    Ok(Some(policy))
}

fn read_stop(options: &mut Options) -> Result<Stop> {
    Ok(Stop { timeout: read_timeout(options, stop::TIMEOUT)?, mode: mode(options.boolean(stop::FORCE)?) })
}

fn read_timeout(options: &mut Options, key: &'static str) -> Result<Option<Duration>> {
    let timeout = options.number(key)?.map(Duration::from_micros);
    match timeout {
        Some(timeout) if timeout > MAX_TIMEOUT => {
            Err(Error::invalid_option(format!("{key} must be at most a day")))
        }
        timeout => Ok(timeout),
    }
}

fn mode(force: Option<bool>) -> StopMode {
    if force.unwrap_or_default() { StopMode::Forced } else { StopMode::Graceful }
}
