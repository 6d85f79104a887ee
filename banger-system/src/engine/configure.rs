//! Changes a VM: its network and labels while it runs, its sizes while it is down.

use banger_domain::{
    id::VmId,
    lifecycle::State,
    limits::{Disk, check_growth},
    net::{
        nic::Nic,
        port::{MAX_PORTS, Port},
    },
    restart::RestartPolicy,
    vm::{Lifetime, Vm, VmSpec, check_labels},
};

use super::{
    Engine,
    error::{Error, Result},
    request::Configure,
    vm_task::{Command, VmTask},
};

impl Engine {
    /// Changes the settings of a VM: all of them, or none.
    pub async fn configure_vm(&self, id: VmId, change: Configure) -> Result<()> {
        self.send(id, |reply| Command::Configure { change: Box::new(change), reply }).await
    }

    /// Publishes a port of the host for a VM. Returns the port with its number, if it had none.
    pub async fn publish_port(&self, id: VmId, port: Port) -> Result<Port> {
        self.send(id, |reply| Command::Publish { port, reply }).await
    }

    /// Unpublishes a port. Fails if it is not published for this VM.
    pub async fn unpublish_port(&self, id: VmId, port: Port) -> Result<()> {
        self.send(id, |reply| Command::Unpublish { port, reply }).await
    }
}

/// Refuses policies that start a sandbox again which is deleted when it stops.
pub(super) fn require_to_stay(lifetime: &Lifetime, spec: &VmSpec) -> Result<()> {
    let starts = spec.restart != RestartPolicy::No || spec.autostart;
    match starts && *lifetime != Lifetime::Persistent {
        true => Err(Error::InvalidOption {
            why: "a sandbox that is deleted when it stops cannot start again".to_owned(),
        }),
        false => Ok(()),
    }
}

impl VmTask {
    pub(super) async fn set_lifetime(&mut self, lifetime: Lifetime) -> Result<()> {
        require_to_stay(&lifetime, &self.vm.spec)?;
        self.vm.lifetime = lifetime;
        self.save().await
    }

    pub(super) async fn configure(&mut self, change: Configure) -> Result<()> {
        let spec = &self.vm.spec;
        let mut labels = spec.labels.clone();
        labels.retain(|key, _| !change.removed_labels.contains(key));
        labels.extend(change.labels);
        check_labels(&labels).map_err(|error| Error::InvalidOption { why: error.to_string() })?;
        let egress = match change.egress {
            Some(change) => self.shared.changed_egress(&spec.egress, change)?,
            None => spec.egress.clone(),
        };
        let new = VmSpec {
            labels,
            vcpus: change.vcpus.unwrap_or(spec.vcpus),
            memory: change.memory.unwrap_or(spec.memory),
            disk_size: change.disk_size.unwrap_or(spec.disk_size),
            root_size: change.root_size.unwrap_or(spec.root_size),
            egress,
            idle: change.idle.unwrap_or(spec.idle),
            restart: change.restart.unwrap_or(spec.restart),
            autostart: change.autostart.unwrap_or(spec.autostart),
            ..spec.clone()
        };
        require_to_stay(&self.vm.lifetime, &new)?;
        let sizes = |spec: &VmSpec| (spec.vcpus, spec.memory, spec.disk_size, spec.root_size);
        if sizes(&new) != sizes(spec) {
            if self.vm.state == State::Suspended {
                return Err(Error::Suspended { name: self.vm.name.to_string() });
            }
            if self.vm.state.is_up() {
                return Err(Error::NotStopped { name: self.vm.name.to_string() });
            }
            self.require_unread_disks().await?;
            self.resize(&new).await?;
        }
        let other_policy = new.idle != self.vm.spec.idle;
        if other_policy {
            self.forget_use();
        }
        let started = self.vm.spec.starts_with_host();
        self.become_spec(new).await?;
        if other_policy && self.vm.state == State::Suspended {
            // It may wake when it is used from now on, or no longer. Failures are logged.
            drop(self.rest().await);
        }
        if self.vm.spec.starts_with_host() != started {
            self.shared.follow_autostart().await;
        }
        Ok(())
    }

    /// Grows the disks, after checking that all new sizes are possible. A disk that has grown stays so when a later
    /// step fails: the guest loses nothing, and a repeated request finds it done.
    async fn resize(&self, new: &VmSpec) -> Result<()> {
        let (spec, limits) = (&self.vm.spec, &self.shared.settings.limits);
        check_growth(Disk::Work, spec.disk_size, new.disk_size)?;
        check_growth(Disk::System, spec.root_size, new.root_size)?;
        limits.check_sizes(new.vcpus, new.memory, new.disk_size)?;
        let (work_grows, root_grows) = (new.disk_size != spec.disk_size, new.root_size != spec.root_size);
        if root_grows {
            limits.check_root_size(new.root_size, self.shared.inventory.image_size(self.vm.image))?;
        }
        if work_grows || root_grows {
            self.shared.inventory.check_disks(&self.vm, new, limits)?;
        }
        let disks = &self.shared.ports.disks;
        if work_grows {
            disks.grow_work_disk(self.vm.id, new.disk_size).await?;
        }
        if root_grows {
            disks.grow_system_disk(self.vm.id, self.vm.image, new.root_size).await?;
        }
        Ok(())
    }

    pub(super) async fn publish_port(&mut self, wish: Port) -> Result<Port> {
        let port = match wish.host {
            0 => self.shared.ports.network.free_ports(&[wish]).await?.first().copied().unwrap_or(wish),
            _ => wish,
        };
        if self.blocked_ports.contains(&port) {
            return self.open_blocked_port(port).await;
        }
        if self.vm.spec.ports.contains(&port) {
            return Ok(port);
        }
        if self.vm.spec.ports.iter().any(|other| other.clashes_with(port)) {
            let message = format!(
                "port {}/{} is already published for {}; unpublish it first",
                port.host, port.protocol, self.vm.name
            );
            return Err(Error::Taken { message });
        }
        if self.vm.spec.ports.len() >= MAX_PORTS {
            let why = format!("a sandbox can have at most {MAX_PORTS} published ports");
            return Err(Error::InvalidOption { why });
        }
        let mut ports = self.vm.spec.ports.clone();
        ports.insert(port);
        self.become_spec(VmSpec { ports, ..self.vm.spec.clone() }).await?;
        Ok(port)
    }

    pub(super) async fn unpublish_port(&mut self, port: Port) -> Result<()> {
        let clashing = |other: &&Port| other.clashes_with(port);
        let Some(port) = self.vm.spec.ports.iter().find(clashing).copied() else {
            let why = format!(
                "port {}/{} of the host is not published for {}",
                port.host, port.protocol, self.vm.name
            );
            return Err(Error::InvalidOption { why });
        };
        let mut ports = self.vm.spec.ports.clone();
        ports.remove(&port);
        self.become_spec(VmSpec { ports, ..self.vm.spec.clone() }).await?;
        if self.blocked_ports.remove(&port) {
            self.publish();
        }
        Ok(())
    }

    /// Publishes a blocked port again, once the program that took it has released it.
    async fn open_blocked_port(&mut self, port: Port) -> Result<Port> {
        let old = self.open_nic(&self.vm).await?;
        let mut new = old.clone();
        new.ports.insert(port);
        self.shared.ports.network.change(&old, &new).await?;
        self.blocked_ports.remove(&port);
        self.publish();
        Ok(port)
    }

    /// Returns the interface of a running VM: its settings without the blocked ports.
    async fn open_nic(&self, vm: &Vm) -> Result<Nic> {
        let mut nic = self.shared.nic(vm).await?;
        nic.ports.retain(|port| !self.blocked_ports.contains(port));
        Ok(nic)
    }

    /// Applies new settings to the interface of a running VM, and stores them.
    async fn become_spec(&mut self, new: VmSpec) -> Result<()> {
        let old = self.vm.clone();
        self.vm.spec = new;
        if let Err(error) = self.follow_network(&old).await {
            self.vm.spec = old.spec;
            return Err(error);
        }
        if let Err(error) = self.save().await {
            // Settings that are not stored must not apply: the next start would not have them.
            let unsaved = std::mem::replace(&mut self.vm, old);
            if let Err(error) = self.follow_network(&unsaved).await {
                tracing::error!(vm = %self.vm.id, %error, "cannot undo a change of the network");
            }
            self.publish();
            return Err(error);
        }
        Ok(())
    }

    async fn follow_network(&self, old: &Vm) -> Result<()> {
        if self.dozes && self.vm.state == State::Suspended && old.spec.ports != self.vm.spec.ports {
            return Ok(self.shared.ports.network.doze(&self.shared.nic(&self.vm).await?).await?);
        }
        if !self.vm.state.is_up() {
            return Ok(());
        }
        let (old, new) = (self.open_nic(old).await?, self.open_nic(&self.vm).await?);
        if old != new {
            self.shared.ports.network.change(&old, &new).await?;
        }
        Ok(())
    }
}
