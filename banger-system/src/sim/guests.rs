//! VMMs and guests in memory. A guest answers at once unless it was told not to, and powers off when it is asked to.

use std::{
    collections::{BTreeMap, HashMap},
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    clock::Occasion,
    guest_end::GuestEnd,
    id::{Uid, VmId},
    idle::Use,
    launch_spec::LaunchSpec,
    resource::{self, Resource},
    stream,
    vm::Token,
    vmm::VmmChoice,
};
use banger_proto::{
    guest::{GuestConfig, rejuvenation::Identity},
    size::Bytes,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};
use tokio::{net::UnixStream, sync::watch};

use super::{Sim, templates};
use crate::ports::{
    Check, FromHost as _, Status,
    captures::HostFacts,
    disks::OverlayBy,
    guest_link::{self, Channel, GuestFacts, GuestLink, UnconfiguredGuest},
    logs::{self, Log, LogRange, Logs, ReaderGuard},
    streams::{self, Streams},
    supervisor::{self, EmptyJail, Ended, Started, Supervisor, Usage},
    templates::TemplateKey,
    vmm::{self, Capture, JailSpec, NetworkNamespace, Vmm, VmmCommand},
};

/// Streams to a guest's agent.
pub const STREAMS: usize = 23;
/// A process id that does not exist: it is above the largest possible one.
const NO_PID: u32 = 1 << 23;

#[async_trait]
impl Vmm for Sim {
    fn overlay_by(&self, _wish: VmmChoice, _vcpus: u32) -> OverlayBy {
        OverlayBy::Vmm
    }

    async fn jail_spec(&self, spec: &LaunchSpec) -> vmm::Result<JailSpec> {
        self.step("make sockets")?.sockets.insert(spec.vm);
        Ok(JailSpec {
            vm: spec.vm,
            owner: spec.owner,
            description: spec.name.clone(),
            memory_max: spec.memory,
            cpu_percent: spec.vcpus * 100,
            devices: Vec::new(),
            directory: None,
            network: NetworkNamespace::Private,
        })
    }

    async fn prepare_launch(&self, _spec: &LaunchSpec) -> vmm::Result<VmmCommand> {
        let null = || rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
        Ok(VmmCommand {
            argv: vec!["/bin/true".to_owned()],
            files: Vec::new(),
            console: null().map_err(|error| vmm::Error::os("open /dev/null", error))?,
            log: null().map_err(|error| vmm::Error::os("open /dev/null", error))?,
        })
    }

    async fn template_key(&self, spec: &LaunchSpec) -> vmm::Result<Option<TemplateKey>> {
        Ok(Some(self.key_of(spec)))
    }

    async fn prepare_template(&self, spec: &LaunchSpec) -> vmm::Result<VmmCommand> {
        self.prepare_launch(spec).await
    }

    async fn capture(&self, _vm: VmId) -> vmm::Result<Capture> {
        drop(self.step("capture a guest")?);
        Ok(templates::empty_capture()?)
    }

    async fn prepare_child(&self, spec: &LaunchSpec, _capture: &Capture) -> vmm::Result<VmmCommand> {
        self.prepare_launch(spec).await
    }

    async fn resume(&self, _vm: VmId, _capture: &Capture) -> vmm::Result<()> {
        self.continue_child()
    }

    async fn configure(&self, _spec: &LaunchSpec, _started: &Started) -> vmm::Result<()> {
        drop(self.step("configure a VMM")?);
        Ok(())
    }

    async fn facts(&self, _vm: VmId) -> vmm::Result<HostFacts> {
        self.vmm_facts()
    }

    async fn halt(&self, vm: VmId) -> vmm::Result<()> {
        self.halt_guest(vm)
    }

    async fn switch_layers(&self, _vm: VmId, layers: Vec<OwnedFd>) -> vmm::Result<()> {
        drop(self.step("switch layers")?);
        match layers.is_empty() {
            true => Err(vmm::Error::Failed { message: "there is nothing to write to".to_owned() }),
            false => Ok(()),
        }
    }

    async fn save(&self, vm: VmId, to: OwnedFd) -> vmm::Result<()> {
        self.save_guest(vm, to).await
    }

    async fn go_on(&self, vm: VmId) -> vmm::Result<()> {
        self.let_guest_run(vm)
    }

    async fn prepare_resume(&self, spec: &LaunchSpec) -> vmm::Result<VmmCommand> {
        self.prepare_launch(spec).await
    }

    async fn load(&self, vm: VmId, _from: OwnedFd) -> vmm::Result<()> {
        self.until_fast().await;
        self.load_guest(vm)
    }

    async fn has_begun(&self, vm: VmId) -> vmm::Result<bool> {
        let state = self.lock();
        if state.silent_vmms {
            return Err(vmm::Error::Failed { message: "the VMM does not answer".to_owned() });
        }
        Ok(!state.interrupted.contains(&vm) && !state.captures.standing.contains(&vm))
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> guest_link::Result<UnixStream> {
        let mut state = self.lock();
        let Channel::Stream(purpose) = channel else { return Err(no_agent()) };
        if !state.agents {
            return Err(no_agent());
        }
        let os = |error| guest_link::Error::os("make a stream", error);
        let (ours, theirs) = StdStream::pair().map_err(os)?;
        ours.set_nonblocking(true).map_err(os)?;
        let (held, last) = state.streams.entry(vm).or_default();
        held.retain(|_, guest| is_held(guest));
        let stream = stream::choose(purpose, STREAMS, *last, |stream| held.contains_key(&stream));
        let stream = stream.ok_or(guest_link::Error::NoFreeStream)?;
        *last = stream;
        held.insert(stream, theirs);
        UnixStream::from_std(ours).map_err(os)
    }

    async fn remove_sockets(&self, vm: VmId) -> vmm::Result<()> {
        self.removal(Resource::Sockets)?.sockets.remove(&vm);
        Ok(())
    }

    async fn checks(&self) -> Vec<Check> {
        vec![Check {
            name: "VMM",
            status: Status::Warn,
            message: "sandboxes exist in memory only".to_owned(),
            hint: "start banger-system without --sim".to_owned(),
        }]
    }

    async fn found(&self) -> vmm::Result<Vec<VmId>> {
        Ok(self.scan(Resource::Sockets)?.sockets.iter().copied().collect())
    }
}

#[async_trait]
impl Supervisor for Sim {
    async fn start_jail(&self, spec: JailSpec) -> supervisor::Result<Box<dyn EmptyJail>> {
        let mut state = self.step("start a jail")?;
        if state.processes.contains_key(&spec.vm) {
            return Err(supervisor::Error::Exited { message: "something of this name is there".to_owned() });
        }
        state.processes.insert(spec.vm, watch::channel(None).0);
        Ok(Box::new(SimJail { sim: self.clone(), vm: spec.vm }))
    }

    async fn kill(&self, vm: VmId, signal: i32) -> supervisor::Result<()> {
        self.end_process(vm, Ended::Failed(format!("killed:{signal}")));
        Ok(())
    }

    async fn freeze(&self, vm: VmId) -> supervisor::Result<()> {
        self.step("freeze a process")?.frozen.insert(vm);
        Ok(())
    }

    async fn thaw(&self, vm: VmId) -> supervisor::Result<()> {
        self.step("thaw a process")?.frozen.remove(&vm);
        Ok(())
    }

    async fn remove(&self, vm: VmId) -> supervisor::Result<()> {
        self.may_end()?;
        self.end_process(vm, Ended::Failed("killed:9".to_owned()));
        self.removal(Resource::Unit)?.processes.remove(&vm);
        Ok(())
    }

    async fn ended(&self, vm: VmId) -> supervisor::Result<Ended> {
        let Some(mut end) = self.lock().processes.get(&vm).map(watch::Sender::subscribe) else {
            return Ok(Ended::Unknown);
        };
        let ended = end.wait_for(Option::is_some).await.map(|ended| ended.clone());
        Ok(ended.ok().flatten().unwrap_or(Ended::Unknown))
    }

    async fn found(&self) -> supervisor::Result<Vec<(VmId, Started)>> {
        let state = self.scan(Resource::Unit)?;
        let alive = state.processes.iter().filter(|(_, end)| end.borrow().is_none());
        Ok(alive.map(|(vm, _)| (*vm, started(*vm))).collect())
    }

    async fn usage(&self, vms: Vec<(VmId, Uid)>) -> HashMap<VmId, Usage> {
        let state = self.lock();
        let alive = vms.into_iter().map(|(vm, _)| vm).filter(|vm| state.processes.contains_key(vm));
        alive.map(|vm| (vm, Usage { memory: Bytes::mib(64), cpu: Duration::from_millis(1500) })).collect()
    }
}

fn no_agent() -> guest_link::Error {
    guest_link::Error::Unavailable { message: "guests in memory have no agent".to_owned() }
}

/// Returns whether the other end of a stream is open.
fn is_held(guest: &StdStream) -> bool {
    let mut fds = [PollFd::new(guest, PollFlags::empty())];
    let looked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    looked.is_ok() && !fds[0].revents().contains(PollFlags::HUP)
}

/// A jail in memory.
struct SimJail {
    sim: Sim,
    vm: VmId,
}

#[async_trait]
impl EmptyJail for SimJail {
    async fn run(self: Box<Self>, _launch: VmmCommand) -> supervisor::Result<Started> {
        {
            let mut state = self.sim.step("start a VMM")?;
            state.boots += 1;
            state.guest_ends.remove(&self.vm);
            state.interrupted.remove(&self.vm);
            state.stopping_guests.remove(&self.vm);
            state.configured.remove(&self.vm);
            state.frozen_guests.remove(&self.vm);
            state.rejuvenated.remove(&self.vm);
        }
        Ok(started(self.vm))
    }
}

fn started(vm: VmId) -> Started {
    Started { unit: resource::unit_name(vm), pid: NO_PID, user: 0 }
}

#[async_trait]
impl GuestLink for Sim {
    async fn wait_unconfigured(&self, vm: VmId, timeout: Duration) -> guest_link::Result<UnconfiguredGuest> {
        self.answer(vm, "waiting for the guest", timeout).await?;
        if self.lock().configured.contains_key(&vm) {
            return Err(guest_link::Error::Unavailable { message: "the guest is configured".to_owned() });
        }
        Ok(UnconfiguredGuest { early_devices: self.has_built_in_drivers() })
    }

    async fn configure(&self, vm: VmId, config: &GuestConfig, timeout: Duration) -> guest_link::Result<()> {
        self.answer(vm, "waiting for the guest", timeout).await?;
        self.lock().configured.entry(vm).or_insert_with(|| config.clone());
        Ok(())
    }

    async fn wait_ready(&self, vm: VmId, token: &Token, timeout: Duration) -> guest_link::Result<GuestFacts> {
        self.answer(vm, "waiting for the guest", timeout).await?;
        let state = self.lock();
        let (boots, stopping) = (state.boots, state.stopping_guests.contains(&vm));
        let refused = |message: &str| Err(guest_link::Error::Unavailable { message: message.to_owned() });
        match state.configured.get(&vm) {
            None => return refused("the guest has no configuration"),
            Some(config) if config.token != token.as_str() => return refused("the token is wrong"),
            Some(_) => {}
        }
        Ok(GuestFacts { boot_id: format!("00000000-0000-4000-8000-{boots:012}"), stopping })
    }

    async fn shutdown(&self, vm: VmId, _token: &Token, timeout: Duration) -> guest_link::Result<()> {
        self.answer(vm, "asking the guest to power off", timeout).await?;
        self.end_process(vm, Ended::Clean);
        Ok(())
    }

    async fn sync_clock(&self, vm: VmId, token: &Token, occasion: Occasion) -> guest_link::Result<()> {
        if self.lock().is_silent(vm) {
            let what = "comparing the guest's clock".to_owned();
            return Err(guest_link::Error::Timeout { what, after: Duration::ZERO });
        }
        if self.lock().configured.get(&vm).is_none_or(|config| config.token != token.as_str()) {
            return Err(guest_link::Error::Unavailable { message: "the token is wrong".to_owned() });
        }
        *self.lock().clock_syncs.entry((vm, occasion)).or_default() += 1;
        Ok(())
    }

    async fn usage(&self, vm: VmId, _token: &Token) -> guest_link::Result<Use> {
        self.answer(vm, "asking who uses the guest", Duration::ZERO).await?;
        Ok(self.lock().uses.get(&vm).copied().unwrap_or_default())
    }

    async fn freeze(&self, vm: VmId, _token: &Token, timeout: Duration) -> guest_link::Result<()> {
        self.answer(vm, "freezing the guest", timeout).await?;
        let mut state = self.step("freeze a guest")?;
        if state.unfreezable.contains(&vm) {
            let message = "the guest did not freeze within 5 s".to_owned();
            return Err(guest_link::Error::Refused { message });
        }
        state.frozen_guests.insert(vm);
        Ok(())
    }

    async fn thaw(&self, vm: VmId, _token: &Token, timeout: Duration) -> guest_link::Result<()> {
        self.answer(vm, "thawing the guest", timeout).await?;
        let mut state = self.step("thaw a guest")?;
        let unavailable = |message: &str| Err(guest_link::Error::Unavailable { message: message.to_owned() });
        if state.captures.standing.contains(&vm) {
            return unavailable("the guest stands still");
        }
        if let Some(count) = &mut state.refused_thaws {
            *count += 1;
            return unavailable("the agent does not answer");
        }
        state.frozen_guests.remove(&vm);
        Ok(())
    }

    async fn rejuvenate(
        &self,
        vm: VmId,
        old: &Token,
        new: &Token,
        identity: Option<&Identity>,
        timeout: Duration,
    ) -> guest_link::Result<()> {
        self.answer(vm, "renewing the guest", timeout).await?;
        let mut state = self.step("rejuvenate a guest")?;
        let refused = |message: &str| Err(guest_link::Error::Refused { message: message.to_owned() });
        if !state.frozen_guests.contains(&vm) {
            return refused("the guest is not frozen");
        }
        let knows = |config: &GuestConfig| [old, new].iter().any(|token| config.token == token.as_str());
        if !state.configured.get(&vm).is_some_and(knows) {
            return refused("the token is wrong");
        }
        if let Some(config) = state.configured.get_mut(&vm) {
            new.as_str().clone_into(&mut config.token);
        }
        state.rejuvenated.entry(vm).or_default().push(identity.cloned());
        Ok(())
    }

    async fn open(&self, stream: UnixStream, _token: &Token) -> guest_link::Result<OwnedFd> {
        let stream = stream.into_std().map_err(|error| guest_link::Error::os("hand over a stream", error))?;
        Ok(stream.into())
    }
}

impl Sim {
    /// Forgets everything about the guest of a VM, which has ended or is new.
    pub fn forget_guest(&self, vm: VmId) {
        let mut state = self.lock();
        state.configured.remove(&vm);
        state.guest_ends.remove(&vm);
        state.vmm_logs.remove(&vm);
        state.machines.remove(&vm);
        state.clock_syncs.retain(|(other, _), _| *other != vm);
    }

    /// Answers for a guest, unless guests are silent.
    async fn answer(&self, vm: VmId, what: &str, timeout: Duration) -> guest_link::Result<()> {
        if !self.lock().is_silent(vm) {
            return Ok(());
        }
        tokio::time::sleep(timeout).await;
        Err(guest_link::Error::Timeout { what: what.to_owned(), after: timeout })
    }
}

#[async_trait]
impl Logs for Sim {
    async fn open(
        &self,
        vm: VmId,
        log: Log,
        _reading: LogRange,
        _hold: ReaderGuard,
    ) -> logs::Result<OwnedFd> {
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| logs::Error::os("make a pipe", error))?;
        if let (Log::Vmm, Some(text)) = (log, self.lock().vmm_logs.get(&vm)) {
            // A few lines fit into the pipe.
            rustix::io::write(&write, text.as_bytes())
                .map_err(|error| logs::Error::os("write a log", error))?;
        }
        Ok(read)
    }

    async fn append(&self, vm: VmId, log: Log, line: String) -> logs::Result<()> {
        if log == Log::Vmm {
            self.lock().vmm_logs.entry(vm).or_default().push_str(&line);
        }
        Ok(())
    }

    async fn guest_end(&self, vm: VmId) -> logs::Result<Option<GuestEnd>> {
        Ok(self.lock().guest_ends.get(&vm).copied())
    }

    async fn wait_for_halt(&self, vm: VmId) -> logs::Result<GuestEnd> {
        let mut ended = self.lock().guest_ended.subscribe();
        loop {
            let end = self.lock().guest_ends.get(&vm).copied().filter(|end| end.is_halted());
            if let Some(end) = end {
                return Ok(end);
            }
            // The sender lives as long as the host.
            let _ = ended.changed().await;
        }
    }
}

impl Streams for Sim {
    /// Counts nothing: guests in memory only have streams that a test makes itself.
    fn hand_out(&self, _user: Uid, _stream: &OwnedFd, _limit: usize) -> streams::Result<()> {
        Ok(())
    }

    fn open(&self) -> BTreeMap<Uid, usize> {
        BTreeMap::new()
    }
}
