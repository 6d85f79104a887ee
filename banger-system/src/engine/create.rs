//! Creates a VM from a request. Everything that can be checked is checked before anything is created.

use std::sync::Arc;

use banger_domain::{
    id::{JobId, KernelId, Timestamp, VmId},
    lifecycle::{Reason, State},
    name::{Name, Reference},
    net::{port::Port, subnet::Slot},
    ssh::HostKey,
    vm::{Token, Vm, VmSpec},
};
use banger_image::record::Image;
use banger_proto::size::Bytes;
use tokio::sync::mpsc;

use super::{
    Engine,
    configure::require_to_stay,
    error::{Error, Kind, Result},
    inventory::Admission,
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
        let Parts { image, kernel, vcpus, memory, disk_size, root_size } = self.parts(&request).await?;
        let owner = request.owner;
        let settings = &self.shared.settings;
        let ports = self.free_ports(&request.ports).await?;

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
                egress: request.egress,
                timezone: request.timezone,
                authorized_keys: request.authorized_keys,
                ports: ports.into_iter().collect(),
                labels: request.labels,
                idle: request.idle,
                restart: request.restart,
                autostart: request.autostart,
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
            booted_from: None,
            snapshot_of: None,
        };
        require_to_stay(&vm.lifetime, &vm.spec)?;
        let (sender, inbox) = mpsc::channel(INBOX);
        let view = self.shared.view(vm, String::new(), 0);
        let subnet = self.shared.subnet.get();
        let admission = Admission { view, names: names.into(), inbox: sender };
        let view = self.shared.inventory.admit(admission, subnet, &settings.limits)?;
        let mut vm = view.vm.clone();
        if hostname.is_none() {
            vm.spec.hostname = vm.name.clone();
        }
        let job = VmTask::create(Arc::clone(&self.shared), vm, inbox, request.start)?;
        Ok((id, job))
    }

    /// Checks all of a request that can be checked without creating anything, so that a user is not asked for a
    /// password in vain. Ports are not tried: their user may not be allowed to.
    pub async fn check_create(&self, request: &CreateVm) -> Result<()> {
        self.parts(request).await.map(drop)
    }

    /// Finds the image and the kernel of a request, and checks its sizes. The egress policy is checked first: clients ask for it
    /// before they build an image.
    async fn parts(&self, request: &CreateVm) -> Result<Parts> {
        let settings = &self.shared.settings;
        let owner = request.owner;
        self.shared.check_egress(&request.egress)?;
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
        Ok(Parts { image, kernel, vcpus, memory, disk_size, root_size })
    }

    async fn free_ports(&self, wishes: &[Port]) -> Result<Vec<Port>> {
        match wishes {
            [] => Ok(Vec::new()),
            wishes => Ok(self.shared.ports.network.free_ports(wishes).await?),
        }
    }
}

/// What a new VM is made of.
struct Parts {
    image: Arc<Image>,
    kernel: KernelId,
    vcpus: u32,
    memory: Bytes,
    disk_size: Bytes,
    root_size: Bytes,
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
