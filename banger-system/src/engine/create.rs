//! Creates a VM from a request. Everything that can be checked is checked before anything is created.

use std::{collections::BTreeSet, sync::Arc};

use banger_domain::{
    id::{JobId, Timestamp, VmId},
    lifecycle::{Reason, State},
    name::{Name, Reference},
    net::subnet::Slot,
    ssh::HostKey,
    vm::{Token, Vm, VmSpec},
};
use tokio::sync::mpsc;

use super::{
    Engine,
    error::{Error, Kind, Result},
    now,
    request::CreateVm,
    vm_task::{INBOX, VmTask},
};

use crate::ports::{FromHost as _, HostError};

/// How many generated names are tried before giving up.
const NAME_TRIES: u64 = 20;

impl Engine {
    /// Creates a VM. Returns at once, with the job that creates its disks and starts it.
    pub async fn create_vm(&self, request: CreateVm) -> Result<(VmId, JobId)> {
        let settings = &self.shared.settings;
        let owner = request.owner;
        let image = match &request.image {
            Some(reference) => self.image_by(owner, reference)?,
            None => self.default_image(owner)?,
        };
        let kernel = match (&request.kernel, image.kernel) {
            (Some(reference), _) => self.kernel_for(owner, reference).await?,
            (None, Some(id)) => {
                let missing = || Error::NoSuch { kind: Kind::Kernel, reference: id.to_string() };
                self.kernel(id).ok_or_else(missing)?.id
            }
            (None, None) => self.kernel_for(owner, &Reference::Name(settings.default_kernel.clone())).await?,
        };
        let vcpus = request.vcpus.unwrap_or(settings.vcpus);
        let memory = request.memory.unwrap_or(settings.memory);
        let disk_size = request.disk_size.unwrap_or(settings.disk_size);
        settings.limits.check_sizes(vcpus, memory, disk_size)?;
        let image_size = image.facts.virtual_size;
        let root_size = request.root_size.unwrap_or(settings.root_size.max(image_size));
        settings.limits.check_root_size(root_size, image_size)?;

        let id = VmId::random();
        let host_key = HostKey::random().map_err(|error| HostError::other("make a host key", error))?;
        let names = candidates(request.name);
        let first = names.first().cloned().ok_or(Error::Canceled)?;
        let hostname = request.hostname;
        let vm = Vm {
            id,
            name: first.clone(),
            owner,
            spec: VmSpec {
                vcpus,
                memory,
                disk_size,
                root_size,
                hostname: hostname.clone().unwrap_or(first),
                init: request.init,
                vmm: request.vmm,
                nat: request.nat,
                timezone: request.timezone,
                authorized_keys: request.authorized_keys,
                ports: BTreeSet::new(),
                labels: request.labels,
            },
            image: image.id,
            kernel,
            // The inventory assigns a free one.
            slot: Slot(0),
            state: State::Created,
            reason: Reason::None,
            lifetime: request.lifetime,
            token: Token::random(),
            host_key,
            created_at: now(&*self.shared.ports.clock),
            started_at: Timestamp::default(),
            ready_at: Timestamp::default(),
            boot_id: String::new(),
        };
        let (sender, inbox) = mpsc::channel(INBOX);
        let view = self.shared.view(vm, String::new(), 0);
        let subnet = self.shared.subnet.get();
        let view = self.shared.inventory.admit(view, names, subnet, sender, &settings.limits)?;
        let mut vm = view.vm.clone();
        if hostname.is_none() {
            vm.spec.hostname = vm.name.clone();
        }
        let job = VmTask::create(Arc::clone(&self.shared), vm, inbox, request.start)?;
        Ok((id, job))
    }
}

/// Returns the acceptable names: the requested one, else generated ones.
fn candidates(name: Option<Name>) -> Vec<Name> {
    match name {
        Some(name) => vec![name],
        None => (0..NAME_TRIES)
            .map(|try_| {
                let bits = uuid::Uuid::new_v4().as_u64_pair().0;
                if try_ < NAME_TRIES / 2 { Name::generated(bits) } else { Name::generated_numbered(bits) }
            })
            .collect(),
    }
}
