//! How a machine is made and comes up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use banger_domain::{
    clock::Occasion,
    id::{JobId, Timestamp, Uid},
    launch_spec::{self, Access, Drive, LaunchSpec, Medium},
    lifecycle::{Event, Reason, State, Transition, step},
    resource::{Resource, Scope},
    vm::Token,
};
use tracing::Instrument;

use super::{Goal, Happening, Next, Task};
use crate::{
    engine::{
        capability::Plan,
        error::{Error, Result, one_line},
        guest_archive,
        job::{JobHandle, Stages},
        now,
        request::{Start, WaitFor},
        view::JobKind,
    },
    ports::{NetworkOf, Started},
};

/// How long to wait before the supervisor is asked again, when it could not tell how a process ended.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

const START: Stages = &["start", "boot"];

impl Task {
    pub(super) async fn provision(&mut self, job: JobHandle, start: Option<Start>) -> Next {
        job.stage("disk", format!("cloning {}", self.view().image_name));
        if let Err(error) = self.make_disks(&job).instrument(job.span()).await {
            return self.abandon(job, error).await;
        }
        match start {
            None => {
                self.is_new = false;
                job.finish(Ok(()));
                Next::Continue
            }
            Some(start) => match self.begin_start(&job, start).instrument(job.span()).await {
                Err(error) => self.abandon(job, error).await,
                Ok(()) => {
                    self.await_start(job, start);
                    Next::Continue
                }
            },
        }
    }

    pub(super) async fn make_disks(&mut self, job: &JobHandle) -> Result<()> {
        let (id, image) = (self.vm.id, self.vm.image);
        let (root_size, work_size) = (self.vm.spec.root_size, self.vm.spec.disk_size);
        let (wish, vcpus) = (self.vm.spec.vmm, self.vm.spec.vcpus);
        let ports = self.shared.ports.clone();
        let make = async {
            ports.disks.create_directory(id).await?;
            ports.disks.clone_image(id, image, ports.vmm.layers(wish, vcpus), root_size).await?;
            ports.disks.create_work_disk(id, work_size).await
        };
        self.lease.hold(Resource::Disks, make).await?;
        if job.is_canceled() {
            return Err(Error::Canceled);
        }
        Ok(self.shared.ports.store.put_vm(&self.vm).await?)
    }

    /// Undoes a creation. Nothing stays: no row, no process, no file.
    pub(super) async fn abandon(&mut self, job: JobHandle, error: Error) -> Next {
        self.lease.release_all().await;
        if let Err(error) = self.shared.ports.store.delete_vm(self.vm.id).await {
            tracing::error!(vm = %self.vm.id, %error, "cannot forget a machine");
        }
        self.shared.registry.remove_vm(self.vm.id);
        job.finish(Err(error));
        Next::Leave
    }

    pub(super) async fn start(&mut self, start: Start) -> Result<JobId> {
        let transition = step(self.vm.state, Event::Start)?;
        let job = self.begin_job(JobKind::VmStart, START)?;
        let id = job.id();
        if transition == Transition::Unchanged {
            match self.vm.is_ready() && start.wait_for == WaitFor::Agent {
                // It may be about to power off.
                true => self.make_sure_it_is_up(job, start),
                false => self.await_start(job, start),
            }
            return Ok(id);
        }
        match self.begin_start(&job, start).instrument(job.span()).await {
            Ok(()) => self.await_start(job, start),
            Err(error) => job.finish(Err(error)),
        }
        Ok(id)
    }

    /// Brings the monitor up. When this fails, all that it made is released.
    pub(super) async fn begin_start(&mut self, job: &JobHandle, start: Start) -> Result<()> {
        let Transition::To(state) = step(self.vm.state, Event::Start)? else { return Ok(()) };
        let before = self.vm.clone();
        self.vm.state = state;
        self.vm.reason = Reason::UserRequest;
        self.vm.ready_at = Timestamp::default();
        if let Err(error) = self.shared.registry.publish_start(self.view(), &self.shared.settings.limits) {
            self.vm = before;
            return Err(error);
        }
        self.bring_up(job, start).await
    }

    /// Launches the VMM of a sandbox that is `starting`.
    pub(super) async fn bring_up(&mut self, job: &JobHandle, start: Start) -> Result<()> {
        self.vm.token = Token::random();
        self.vm.started_at = now(&*self.shared.ports.clock);
        self.publish();
        job.stage("start", "starting the machine monitor");
        let begun = Instant::now();
        match self.launch_anew().await {
            Ok(started) => {
                let host_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                tracing::info!(vm = %self.vm.id, host_us, "a machine runs");
                self.unit = started.unit;
                self.pid = started.pid;
                self.happen(Event::Launched);
                // The row says `starting` if this fails, and a restart of the service makes the same of it.
                self.log_failed_save().await;
                self.watch_end();
                self.watch_for_standstill();
                let timeout = start.ready_timeout.unwrap_or(self.shared.settings.ready_timeout);
                self.watch_guest(timeout, Occasion::Boot);
                job.stage("boot", "waiting for the guest");
                Ok(())
            }
            Err(error) => {
                self.lease.release(Scope::Boot).await;
                self.happen(Event::LaunchFailed);
                self.vm.reason = Reason::StartFailed(one_line(&error));
                self.log_failed_save().await;
                Err(error)
            }
        }
    }

    /// Launches the monitor once nothing is left of an earlier one: where that could not be released when it ended,
    /// the ledger has it still.
    async fn launch_anew(&mut self) -> Result<Started> {
        match self.lease.release(Scope::Boot).await.into_iter().next() {
            Some(error) => Err(error.into()),
            None => self.launch().await,
        }
    }

    pub(super) async fn launch(&mut self) -> Result<Started> {
        let ports = self.shared.ports.clone();
        let boot = ports.kernel_files.boot_files(self.vm.kernel).await?;
        let Plan { nic, mut guest } = self.shared.plan(&self.vm).await?;
        let attach = ports.disks.attach(self.vm.id, self.vm.image);
        let mut drives = self.lease.hold(Resource::Mapper, attach).await?;
        if let Some(path) = boot.module_tree {
            guest.module_disk = Some(launch_spec::device(drives.len()));
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
            guest_archive: guest_archive::of(&guest)?,
            drives,
            nics: vec![launch_spec::Nic { tap: nic.tap().to_string(), mac: nic.mac().to_string() }],
        };
        let confinement = self.lease.hold(Resource::Sockets, ports.vmm.confine(&spec)).await?;
        let opens_tap = confinement.network == NetworkOf::Host;
        let confined = self.lease.hold(Resource::Unit, ports.supervisor.confine(confinement)).await?;
        // All this is done while the walls are built, which takes longer.
        self.lease.hold(Resource::Nic, ports.network.plug(&nic)).await?;
        let launch = ports.vmm.prepare(&spec).await?;
        // The token must be known before the guest is: a restart of the service in between finds it.
        ports.store.put_vm(&self.vm).await?;
        let started = confined.run(launch).await?;
        if opens_tap {
            ports.network.give_tap(self.vm.id, Uid(started.user)).await?;
        }
        ports.vmm.configure(&spec, &started).await?;
        Ok(started)
    }

    /// Lets a job wait for a start that is under way, or finishes it when there is nothing to wait for.
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

    pub(super) fn watch_end(&mut self) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.id);
        self.beside.spawn(async move {
            loop {
                match shared.ports.supervisor.ended(vm).await {
                    Ok(ended) => return Happening::Ended(ended),
                    Err(error) => {
                        tracing::warn!(%vm, %error, "cannot watch a machine");
                        tokio::time::sleep(WATCH_AGAIN).await;
                    }
                }
            }
        });
    }

    /// Waits for the guest, and sets its clock before anybody is told that it is ready.
    pub(super) fn watch_guest(&mut self, timeout: Duration, occasion: Occasion) {
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        self.beside.spawn(async move {
            let guest = &shared.ports.guest;
            let ready = guest.wait_ready(vm, &token, timeout).await;
            if ready.is_ok()
                && let Err(error) = guest.mend_clock(vm, &token, occasion).await
            {
                tracing::warn!(%vm, %error, "cannot set the clock of a guest");
            }
            Happening::Guest(ready)
        });
    }
}
