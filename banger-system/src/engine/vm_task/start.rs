//! Creates and starts a VM. The module documentation of [`super`] lists the steps in order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use banger_domain::{
    clock::Occasion,
    id::{JobId, Timestamp, Uid, VmId},
    launch_spec::{self, Access, Drive, LaunchSpec, Medium},
    lifecycle::{Event, Reason, State, Transition, step},
    resource::{Resource, Scope},
    vm::{BootedFrom, Token, Vm},
};
use tracing::Instrument;

use super::{Goal, Next, TaskEvent, VmTask};
use crate::{
    engine::{
        Shared,
        error::{Error, Result, one_line},
        history::Phase,
        job::{JobHandle, Stages},
        lease::not_released,
        now,
        request::{KeepMemory, Start, StartCause, WaitFor},
        templates::Template,
        view::JobKind,
    },
    ports::{
        guest_link::{self, GuestFacts},
        supervisor::{EmptyJail, Started},
        vmm::{Capture, NetworkNamespace},
    },
};

/// Pause before asking the supervisor again when it could not report how a process ended.
const SUPERVISOR_RETRY: Duration = Duration::from_secs(1);

const START: Stages = &["start", "boot"];

/// A wait for a guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuestWait {
    begun: Instant,
    timeout: Duration,
    occasion: Occasion,
    boot: KnownBoot,
}

/// Whether a guest continues the boot that this VM was suspended in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownBoot {
    Yes,
    No,
}

impl GuestWait {
    /// Begins to wait for a guest that continues after a time in which it stood still.
    pub(super) fn after_a_jump(timeout: Duration, boot: KnownBoot) -> Self {
        Self { begun: Instant::now(), timeout, occasion: Occasion::Jump, boot }
    }

    /// Returns whether a guest would have had enough time, if there is nothing wrong with it.
    pub(super) fn was_long(&self, usual: Duration) -> bool {
        self.timeout >= usual
    }
}

/// What a VMM needs, and the jail for it.
pub(super) struct SetUp {
    pub(super) spec: LaunchSpec,
    pub(super) jail: Box<dyn EmptyJail>,
    /// Whether the VMM opens its TAP itself.
    opens_tap: bool,
}

impl VmTask {
    pub(super) async fn create_and_start(&mut self, job: JobHandle, start: Option<Start>) -> Next {
        if let Err(error) = self.refresh_kernel(&job).await {
            return self.undo_create(job, error).await;
        }
        job.stage("disk", format!("cloning {}", self.view().image_name));
        if let Err(error) = self.create_disks(&job).instrument(job.span()).await {
            return self.undo_create(job, error).await;
        }
        match start {
            None => {
                self.is_new = false;
                job.finish(Ok(()));
                Next::Continue
            }
            Some(start) => match self.admit_and_boot(&job, start).instrument(job.span()).await {
                Err(error) => self.undo_create(job, error).await,
                Ok(()) => {
                    self.await_start(job, start);
                    Next::Continue
                }
            },
        }
    }

    pub(super) async fn create_disks(&mut self, job: &JobHandle) -> Result<()> {
        let (id, image) = (self.vm.id, self.vm.image);
        let (root_size, work_size) = (self.vm.spec.root_size, self.vm.spec.disk_size);
        let (choice, vcpus) = (self.vm.spec.vmm, self.vm.spec.vcpus);
        let ports = self.shared.ports.clone();
        let make = async {
            ports.disks.create_directory(id).await?;
            ports.disks.clone_image(id, image, ports.vmm.overlay_by(choice, vcpus), root_size).await?;
            ports.disks.create_work_disk(id, work_size).await
        };
        self.lease.hold(Resource::Disks, make).await?;
        if job.is_canceled() {
            return Err(Error::Canceled);
        }
        self.shared.ports.store.put_vm(&self.vm).await?;
        if self.vm.spec.starts_with_host() {
            self.shared.follow_autostart().await;
        }
        Ok(())
    }

    /// Undoes a failed or cancelled creation: no row, process or file stays.
    pub(super) async fn undo_create(&mut self, job: JobHandle, error: Error) -> Next {
        self.lease.release_all().await;
        if let Err(error) = self.shared.ports.store.delete_vm(self.vm.id).await {
            tracing::error!(vm = %self.vm.id, %error, "cannot delete the row of a sandbox");
        }
        self.shared.inventory.remove_vm(self.vm.id);
        if self.vm.spec.starts_with_host() {
            self.shared.follow_autostart().await;
        }
        self.shared.remove_old_host_kernels().await;
        job.finish(Err(error));
        Next::Leave
    }

    pub(super) async fn start(&mut self, start: Start) -> Result<JobId> {
        match self.vm.state {
            State::Paused => return Err(Error::Paused { name: self.vm.name.to_string() }),
            State::Suspended if start.cause == StartCause::HostBoot => {
                return Err(Error::Suspended { name: self.vm.name.to_string() });
            }
            State::Suspended if start.memory == KeepMemory::Yes => return self.resume(start).await,
            _ => {}
        }
        let transition = step(self.vm.state, Event::Start)?;
        if transition != Transition::Unchanged {
            self.require_unread_disks().await?;
            self.abandon_restart();
        }
        let job = match start.cause {
            // A sandbox must not stay down because its owner has many that start with the host.
            StartCause::HostBoot => self.begin_internal_job(JobKind::VmStart, START),
            _ => self.begin_job(JobKind::VmStart, START)?,
        };
        let id = job.id();
        if transition == Transition::Unchanged {
            match self.vm.is_ready() && start.wait_for == WaitFor::Agent {
                // The guest may be about to power off.
                true => self.confirm_up(job, start),
                false => self.await_start(job, start),
            }
            return Ok(id);
        }
        self.start_for(job, start).await;
        Ok(id)
    }

    /// Checks the lifecycle table and the owner's quota, then boots the VM.
    pub(super) async fn admit_and_boot(&mut self, job: &JobHandle, start: Start) -> Result<()> {
        if self.vm.state == State::Suspended && start.memory == KeepMemory::Yes {
            return Err(Error::Suspended { name: self.vm.name.to_string() });
        }
        let Transition::To(state) = step(self.vm.state, Event::Start)? else { return Ok(()) };
        let reason = match start.cause {
            StartCause::User | StartCause::Wake(_) => Reason::UserRequest,
            StartCause::HostBoot => Reason::HostBoot,
            StartCause::Restart => Reason::Restarted(Box::new(self.vm.reason.clone())),
        };
        let admitted = Vm { state, reason, ready_at: Timestamp::default(), ..self.vm.clone() };
        let view = self.view_of(admitted.clone());
        self.shared.inventory.publish_start(view, &self.shared.settings.limits)?;
        self.vm = admitted;
        // The disks change as soon as the guest boots.
        self.discard_capture().await;
        self.boot(job, start).await
    }

    /// Launches the VMM of a VM in state `starting`, and starts watching it and its guest. A failed launch releases
    /// all its resources.
    pub(super) async fn boot(&mut self, job: &JobHandle, start: Start) -> Result<()> {
        self.vm.token = Token::random();
        self.vm.started_at = now(&*self.shared.ports.clock);
        self.publish();
        job.stage("start", "starting the VMM");
        let begun = Instant::now();
        self.begin_phases();
        match self.launch_clean().await {
            Ok((started, from)) => {
                self.launched(started, from, begun).await;
                let timeout = start.ready_timeout.unwrap_or(self.shared.settings.ready_timeout);
                self.watch_guest(timeout, Occasion::Boot);
                job.stage("boot", "waiting for the guest");
                Ok(())
            }
            Err(error) => {
                self.phase_begun = None;
                self.lease.release(Scope::Boot).await;
                self.apply(Event::LaunchFailed);
                self.vm.reason = Reason::StartFailed(one_line(&error));
                self.save_or_log().await;
                Err(error)
            }
        }
    }

    /// Notes that the VMM runs, and watches it.
    pub(super) async fn launched(&mut self, started: Started, from: BootedFrom, begun: Instant) {
        let host_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.unit = started.unit;
        self.pid = started.pid;
        tracing::info!(vm = %self.vm.id, booted_from = from.as_str(), host_us, "started a VMM");
        if from != BootedFrom::Suspension {
            self.end_phase(Phase::Vmm);
        }
        self.vm.booted_from = Some(from);
        self.apply(Event::Launched);
        // If this fails, the row still says `starting`, and recovery handles that the same way.
        self.save_or_log().await;
        self.watch_vmm();
        self.watch_for_halt();
    }

    /// Launches the VMM after releasing what an earlier boot left. The ledger still has resources that could not be
    /// released when that boot ended.
    async fn launch_clean(&mut self) -> Result<(Started, BootedFrom)> {
        self.release_boot().await?;
        self.template_in_use = None;
        let launched = self.launch(true).await;
        let Err(error) = launched else { return launched };
        let Some(key) = self.template_in_use.take() else { return Err(error) };
        self.end_phase(Phase::Vmm);
        self.release_boot().await?;
        let booted = self.launch(false).await?;
        // Nothing else was at fault.
        self.shared.distrust_template(&key, &error).await;
        Ok(booted)
    }

    /// Makes sandboxes boot from now on that would continue from the template of this boot, if it has one and its guest
    /// has not asked for its configuration. After that, a failure says nothing about the template.
    pub(super) async fn distrust_template(&mut self, cause: &Error) {
        if let Some(key) = self.template_in_use.take() {
            self.shared.distrust_template(&key, cause).await;
        }
    }

    pub(super) async fn release_boot(&mut self) -> Result<()> {
        let left = self.lease.release(Scope::Boot).await;
        not_released(self.vm.name.as_str(), left).map_or(Ok(()), Err)
    }

    /// Makes everything that a VMM needs.
    pub(super) async fn set_up(&mut self) -> Result<SetUp> {
        let ports = self.shared.ports.clone();
        let boot = ports.kernel_files.boot_files(self.vm.kernel).await?;
        self.shared.check_ceiling(&self.vm.spec.egress)?;
        self.shared.log_missing_presets(self.vm.id, &self.vm.spec.egress);
        let nic = self.shared.nic(&self.vm).await?;
        self.end_phase(Phase::Prepare);
        let attach = ports.disks.attach(self.vm.id, self.vm.image);
        let mut drives = self.lease.hold(Resource::Mapper, attach).await?;
        self.end_phase(Phase::Disks);
        if let Some(path) = boot.module_tree {
            drives.push(Drive { path, access: Access::ReadOnly, medium: Medium::File });
        }
        let spec = LaunchSpec {
            vm: self.vm.id,
            owner: self.vm.owner,
            name: self.vm.name.to_string(),
            vmm: self.vm.spec.vmm,
            vcpus: self.vm.spec.vcpus,
            memory: self.vm.spec.memory,
            kernel: boot.kernel,
            initramfs: boot.initramfs,
            drives,
            nics: vec![launch_spec::Nic { tap: nic.tap().to_string(), mac: nic.mac().to_string() }],
        };
        let jail_spec = self.lease.hold(Resource::Sockets, ports.vmm.jail_spec(&spec)).await?;
        let opens_tap = jail_spec.network == NetworkNamespace::Host;
        let jail = self.lease.hold(Resource::Unit, ports.supervisor.start_jail(jail_spec)).await?;
        self.end_phase(Phase::Jail);
        // Done while the jail starts, which takes longer.
        self.lease.hold(Resource::Nic, ports.network.plug(&nic)).await?;
        // Stored before the guest boots, so that a restarted service knows the guest's token.
        ports.store.put_vm(&self.vm).await?;
        self.end_phase(Phase::Network);
        Ok(SetUp { spec, jail, opens_tap })
    }

    async fn launch(&mut self, may_continue: bool) -> Result<(Started, BootedFrom)> {
        let SetUp { spec, jail, opens_tap } = self.set_up().await?;
        let ports = self.shared.ports.clone();
        self.missing_template = None;
        let template = match may_continue {
            true => self.shared.template_of(&spec, self.vm.kernel).await,
            false => None,
        };
        if let Some(Template { key, capture }) = template {
            if let Some(capture) = capture {
                self.template_in_use = Some(key);
                let continued = self.launch_from(&spec, &capture, jail).await;
                return continued.map(|started| (started, BootedFrom::Template));
            }
            self.missing_template = Some((key, spec.clone()));
        }
        let command = ports.vmm.prepare_launch(&spec).await?;
        let started = jail.run(command).await?;
        if opens_tap {
            ports.network.set_tap_owner(self.vm.id, Uid(started.user)).await?;
        }
        ports.vmm.configure(&spec, &started).await?;
        Ok((started, BootedFrom::Cold))
    }

    /// Launches a VMM that continues from a template.
    async fn launch_from(
        &self,
        spec: &LaunchSpec,
        capture: &Capture,
        jail: Box<dyn EmptyJail>,
    ) -> Result<Started> {
        let ports = &self.shared.ports;
        let command = ports.vmm.prepare_child(spec, capture).await?;
        let started = jail.run(command).await?;
        ports.vmm.resume(spec.vm, capture).await?;
        Ok(started)
    }

    /// Makes a job wait for the start that is under way, or finishes it if its goal is reached.
    pub(super) fn await_start(&mut self, job: JobHandle, start: Start) {
        let goal = match start.wait_for {
            WaitFor::Running => Goal::Running,
            WaitFor::Agent => Goal::Ready,
        };
        if self.vm.is_ready() || (goal == Goal::Running && self.vm.state == State::Running) {
            self.is_new = false;
            return job.finish(Ok(()));
        }
        self.wait_for(job, goal);
    }

    /// Waits for the end of the VMM in the background, and meanwhile lists it among the host's virtual machines.
    pub(super) fn watch_vmm(&mut self) {
        let (shared, vm, pid) = (Arc::clone(&self.shared), self.vm.clone(), self.pid);
        let watch = async move {
            let listed = list_machine(&shared, &vm, pid);
            let ended = wait_for_end(&shared, vm.id);
            tokio::pin!(ended);
            tokio::select! {
                ended = &mut ended => ended,
                () = listed => ended.await,
            }
        };
        // It outlasts the request that started the VM.
        self.background.spawn(watch.instrument(self.span()));
    }

    /// Waits for the guest's agent in the background, and configures it if it has no configuration. The guest's clock
    /// is set before the guest counts as ready.
    pub(super) fn watch_guest(&mut self, timeout: Duration, occasion: Occasion) {
        let wait = GuestWait { begun: Instant::now(), timeout, occasion, boot: KnownBoot::No };
        if self.vm.is_ready() {
            // It was configured by an earlier run of the service.
            return self.watch_configured(wait);
        }
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.clone());
        self.background.spawn(async move {
            let configured = match shared.boot_config(&vm).await {
                Ok(config) => shared.ports.guest.configure(vm.id, &config, timeout).await,
                Err(error) => Err(guest_link::Error::Unavailable { message: one_line(&error) }),
            };
            TaskEvent::GuestConfigured(configured, wait)
        });
    }

    /// Waits until the agent of a configured guest answers, for the rest of the time.
    pub(super) fn watch_configured(&mut self, wait: GuestWait) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.clone());
        let GuestWait { begun, timeout, occasion, boot } = wait;
        let is_known = boot == KnownBoot::Yes && !self.suspended_boot.is_empty();
        let known = is_known.then(|| self.suspended_boot.clone());
        self.background.spawn(async move {
            let guest = &shared.ports.guest;
            // A guest whose agent sets the clock is ready. What it says of itself is known, and to find that out, the agent
            // asks its init: under emulation, that takes longer than all else after the memory was loaded.
            if let Some(boot_id) = known {
                let set = guest.sync_clock(vm.id, &vm.token, occasion);
                let set = tokio::time::timeout(timeout.saturating_sub(begun.elapsed()) / 2, set);
                if matches!(set.await, Ok(Ok(()))) {
                    return TaskEvent::GuestReady(Ok(GuestFacts { boot_id, stopping: false }));
                }
            }
            let ready = guest.wait_ready(vm.id, &vm.token, timeout.saturating_sub(begun.elapsed())).await;
            let ready = ready.map_err(|error| match error {
                guest_link::Error::Timeout { what, .. } => {
                    guest_link::Error::Timeout { what, after: timeout }
                }
                other => other,
            });
            if ready.is_ok()
                && let Err(error) = guest.sync_clock(vm.id, &vm.token, occasion).await
            {
                tracing::warn!(vm = %vm.id, %error, "cannot set the clock of a guest");
            }
            TaskEvent::GuestReady(ready)
        });
    }
}

async fn wait_for_end(shared: &Shared, vm: VmId) -> TaskEvent {
    loop {
        match shared.ports.supervisor.ended(vm).await {
            Ok(ended) => return TaskEvent::VmmEnded(ended),
            Err(error) => {
                tracing::warn!(%vm, %error, "cannot watch a VMM");
                tokio::time::sleep(SUPERVISOR_RETRY).await;
            }
        }
    }
}

/// Lists a sandbox among the host's virtual machines. It works without that.
async fn list_machine(shared: &Shared, vm: &Vm, pid: u32) {
    let register = async {
        let tap = shared.nic(vm).await?.tap().to_string();
        Ok::<_, Error>(shared.ports.machines.register(vm.id, pid, &tap).await?)
    };
    if let Err(error) = register.await {
        tracing::warn!(vm = %vm.id, error = %one_line(&error), "cannot list a sandbox among the host's machines");
    }
}
