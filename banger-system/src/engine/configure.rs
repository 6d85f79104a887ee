//! What may be changed of a machine: its network at once, its size while it is down.

use banger_proto::size::Bytes;

use super::{
    Engine,
    error::{Error, Result},
    machine::{Command, Task},
    request::Configure,
};
use crate::{
    domain::{
        id::VmId,
        net::{
            nic::Nic,
            port::{MAX_PORTS, Port},
        },
        vm::{Vm, VmSpec},
    },
    ports,
};

impl Engine {
    /// Changes what a machine is to be: all of it, or nothing.
    pub async fn configure_vm(&self, id: VmId, change: Configure) -> Result<()> {
        self.ask(id, |reply| Command::Configure { change, reply }).await
    }

    /// Lets a port of the host lead to a machine. Returns it with its number, where it had none.
    pub async fn publish_port(&self, id: VmId, port: Port) -> Result<Port> {
        self.ask(id, |reply| Command::Publish { port, reply }).await
    }

    /// Takes back what [`Engine::publish_port`] did. A port that does not lead to the machine is an error.
    pub async fn unpublish_port(&self, id: VmId, port: Port) -> Result<()> {
        self.ask(id, |reply| Command::Unpublish { port, reply }).await
    }
}

impl Task {
    pub(super) async fn configure(&mut self, change: Configure) -> Result<()> {
        let spec = &self.vm.spec;
        let new = VmSpec {
            vcpus: change.vcpus.unwrap_or(spec.vcpus),
            memory: change.memory.unwrap_or(spec.memory),
            disk_size: change.disk_size.unwrap_or(spec.disk_size),
            nat: change.nat.unwrap_or(spec.nat),
            ..spec.clone()
        };
        let resized = (new.vcpus, new.memory, new.disk_size) != (spec.vcpus, spec.memory, spec.disk_size);
        if resized {
            if self.vm.state.is_up() {
                return Err(Error::NotStopped { name: self.vm.name.to_string() });
            }
            self.shared.settings.limits.check_sizes(new.vcpus, new.memory, new.disk_size)?;
            if new.disk_size != spec.disk_size {
                let (owner, more) = (self.vm.owner, new.disk_size.0.saturating_sub(spec.disk_size.0));
                self.shared.registry.check_disk(owner, Bytes(more), &self.shared.settings.limits)?;
                self.shared.ports.disks.grow_work_disk(self.vm.id, new.disk_size).await?;
            }
        }
        self.become_spec(new).await
    }

    pub(super) async fn publish_port(&mut self, wish: Port) -> Result<Port> {
        let port = self.shared.ports.network.numbered(wish).await?;
        if self.blocked_ports.contains(&port) {
            return self.open_blocked_port(port).await;
        }
        if self.vm.spec.ports.contains(&port) {
            return Ok(port);
        }
        if self.vm.spec.ports.iter().any(|other| other.clashes_with(port)) {
            let message = format!(
                "port {}/{} leads to {} already; unpublish it first",
                port.host, port.protocol, self.vm.name
            );
            return Err(ports::Error::Taken { message }.into());
        }
        if self.vm.spec.ports.len() >= MAX_PORTS {
            let why = format!("no more than {MAX_PORTS} ports may lead to one sandbox");
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
                "port {}/{} of this host does not lead to {}",
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

    /// Lets a port lead to the guest again, when whoever took it has given it up.
    async fn open_blocked_port(&mut self, port: Port) -> Result<Port> {
        let old = self.open_nic(&self.vm).await?;
        let mut new = old.clone();
        new.ports.insert(port);
        self.shared.ports.network.change(&old, &new).await?;
        self.blocked_ports.remove(&port);
        self.publish();
        Ok(port)
    }

    /// The interface that a sandbox that is up has: all that it is to have but what is blocked.
    async fn open_nic(&self, vm: &Vm) -> Result<Nic> {
        let mut nic = self.shared.nic(vm).await?;
        nic.ports.retain(|port| !self.blocked_ports.contains(port));
        Ok(nic)
    }

    /// Makes the interface of a machine that is up what the machine is to have, and keeps the wish.
    async fn become_spec(&mut self, new: VmSpec) -> Result<()> {
        let old = self.vm.clone();
        self.vm.spec = new;
        if let Err(error) = self.follow_network(&old).await {
            self.vm.spec = old.spec;
            return Err(error);
        }
        if let Err(error) = self.save().await {
            // What is not kept must not be there either: the next start would make something else of it.
            let kept = std::mem::replace(&mut self.vm, old);
            if let Err(error) = self.follow_network(&kept).await {
                tracing::error!(vm = %self.vm.id, %error, "cannot undo a change of the network");
            }
            self.publish();
            return Err(error);
        }
        Ok(())
    }

    async fn follow_network(&self, old: &Vm) -> Result<()> {
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
