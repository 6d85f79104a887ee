//! `dev.banger.Manager1`: the manager.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::{
    dns::DOMAIN,
    id::{JobId, Uid},
    name::Name,
};
use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_INTERFACE, action, detail},
    option::{catalog, filter, prune, refresh, subscribe},
    record::{CheckRow, ImageRow, JobRow, KernelRow, VmRow},
};
use zbus::{OwnedFd, OwnedObjectPath, OwnedVariant, Variant, interface, message::Header};

use super::{
    api::{Api, Target},
    caller::{Caller, RequestKind},
    catalog::{facts, kind_of},
    error::{Error, Result},
    export::{Change, Kind, Property, api, export},
    image::ImageKind,
    item, job,
    kernel::KernelKind,
    metrics,
    options::{Dict, Options},
    path,
    request::{
        needs_authorisation, read_create, read_image_import, read_image_pull, read_kernel_import,
        read_kernel_pull,
    },
    vm::VmKind,
};
use crate::{
    engine::{Engine, metrics::Whose},
    ports::{
        Check, Status,
        authority::{Interaction, Question, Verdict},
        registry::Prune,
    },
};

/// Increased by one with each addition to the interfaces.
const API_LEVEL: u32 = 10;
/// Features of this service, for clients that are newer than it.
const FEATURES: [&str; 11] = [
    "agent",
    "catalog",
    "egress",
    "image-import",
    "image-pull",
    "kernel-import",
    "log",
    "ssh",
    "vm-commit",
    "vm-fork",
    "vm-snapshot",
];
/// The kind of the manager.
#[derive(Clone)]
pub struct ManagerKind;

impl Kind for ManagerKind {
    type View = ();
    type Methods = Methods;
    const INTERFACE: &'static str = MANAGER_INTERFACE;
    const SIGNALS: &'static str = r#"
<signal name="VMNew"><arg name="id" type="s"/><arg name="vm" type="o"/></signal>
<signal name="VMRemoved"><arg name="id" type="s"/><arg name="vm" type="o"/></signal>
<signal name="ImageNew"><arg name="id" type="s"/><arg name="image" type="o"/></signal>
<signal name="ImageRemoved"><arg name="id" type="s"/><arg name="image" type="o"/></signal>
<signal name="JobNew"><arg name="id" type="s"/><arg name="job" type="o"/></signal>
<signal name="JobRemoved"><arg name="id" type="s"/><arg name="job" type="o"/><arg name="result" type="s"/></signal>"#;

    fn path(&self) -> OwnedObjectPath {
        path::manager()
    }

    fn properties() -> &'static [Property<()>] {
        PROPERTIES
    }

    fn methods(&self, api: Weak<Api>) -> Methods {
        Methods { api }
    }

    fn view(&self, _: &Engine) -> Option<Arc<()>> {
        Some(Arc::new(()))
    }

    fn target((): &(), _: &Api) -> Option<Target> {
        None
    }

    fn gone() -> Error {
        Error::new(ErrorName::UnknownObject, "there is no manager")
    }
}

const PROPERTIES: &[Property<()>] = &[
    Property {
        name: "Version",
        signature: "s",
        change: Change::Never,
        get: |(), _| env!("CARGO_PKG_VERSION").into(),
    },
    Property { name: "ApiLevel", signature: "u", change: Change::Never, get: |(), _| API_LEVEL.into() },
    Property {
        name: "Features",
        signature: "as",
        change: Change::Never,
        get: |(), _| FEATURES.map(str::to_owned).to_vec().into(),
    },
    Property {
        name: "DefaultImage",
        signature: "s",
        change: Change::Signaled,
        get: |(), reader| reader.engine.settings().default_image.to_string().into(),
    },
    Property {
        name: "DefaultKernel",
        signature: "s",
        change: Change::Signaled,
        get: |(), reader| reader.engine.settings().default_kernel.to_string().into(),
    },
    Property {
        name: "EgressPresets",
        signature: "as",
        change: Change::Never,
        get: |(), reader| {
            let presets = reader.engine.settings().presets.names().map(ToString::to_string);
            presets.collect::<Vec<String>>().into()
        },
    },
    Property { name: "DnsDomain", signature: "s", change: Change::Never, get: |(), _| DOMAIN.into() },
];

/// The methods of the manager.
pub struct Methods {
    api: Weak<Api>,
}

/// The manager.
#[interface(name = "dev.banger.Manager1", introspection_docs = false)]
impl Methods {
    #[zbus(name = "CreateVM", out_args("vm", "job"))]
    async fn create_vm(
        &self,
        name: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath)> {
        let (api, caller) = self.caller(&header).await?;
        let request = read_create(&api, &caller, &name, options).await?;
        if request.ports.iter().any(needs_authorisation) {
            api.engine.check_create(&request).await?;
            api.require_publish(&caller, &request.ports, &name).await?;
        }
        let lifetime = request.lifetime.clone();
        let (vm, job) = api.engine.create_vm(request).await?;
        api.bind(&caller, &lifetime).await;
        export(&api, VmKind(vm)).await?;
        Ok((path::vm(vm), api.return_job(&caller, job).await?))
    }

    #[zbus(name = "GetVM", out_args("vm"))]
    async fn get_vm(&self, reference: String, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let found = api.find_vm(&caller, &reference).await?;
        export(&api, VmKind(found.vm.id)).await?;
        Ok(path::vm(found.vm.id))
    }

    #[zbus(name = "ListVMs", out_args("vms"))]
    async fn list_vms(&self, filter: Dict, #[zbus(header)] header: Header<'_>) -> Result<Vec<VmRow>> {
        let (api, caller) = self.caller(&header).await?;
        let all = api.read_filter(&caller, filter).await?;
        let mut views = api.engine.vms();
        views.retain(|view| all || view.vm.owner == caller.uid);
        views.sort_by_key(|view| (view.vm.created_at, view.vm.id));
        let row = |view: &Arc<crate::engine::view::VmView>| VmRow {
            id: view.vm.id.to_string(),
            name: view.vm.name.to_string(),
            owner_uid: view.vm.owner.0,
            state: view.vm.state.to_string(),
            address: view.address_text(),
            path: path::vm(view.vm.id),
        };
        Ok(views.iter().map(row).collect())
    }

    #[zbus(out_args("job"))]
    async fn import_image(
        &self,
        name: String,
        files: HashMap<String, OwnedFd>,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let request = read_image_import(&api, &caller, &name, files, options).await?;
        let job = api.engine.import_image(request)?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("job"))]
    async fn pull_image(
        &self,
        reference: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let request = read_image_pull(&api, &caller, &reference, options).await?;
        let job = api.engine.pull_image(request)?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("job"))]
    async fn prune_cache(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let dry_run = options.boolean(prune::DRY_RUN)?.unwrap_or_default();
        let older_than = options.number(prune::OLDER_THAN)?.map(Duration::from_micros);
        options.finish()?;
        let job = api.engine.prune_cache(caller.uid, Prune { older_than, dry_run })?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("image"))]
    async fn get_image(
        &self,
        reference: String,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let found = api.find_image(&caller, &reference).await?;
        export(&api, ImageKind(found.id)).await?;
        Ok(path::image(found.id))
    }

    #[zbus(out_args("images"))]
    async fn list_images(&self, filter: Dict, #[zbus(header)] header: Header<'_>) -> Result<Vec<ImageRow>> {
        let (api, caller) = self.caller(&header).await?;
        let all = api.read_filter(&caller, filter).await?;
        let images = item::visible(api.engine.images(), &caller, all);
        let row = |image: &Arc<banger_image::record::Image>| ImageRow {
            id: image.id.to_string(),
            name: image.name.to_string(),
            source: image.source.clone(),
            owner_uid: image.owner.0,
            virtual_size: image.facts.virtual_size.0,
            shared: image.shared,
            path: path::image(image.id),
        };
        Ok(images.iter().map(row).collect())
    }

    #[zbus(out_args("job"))]
    async fn import_kernel(
        &self,
        name: String,
        files: HashMap<String, OwnedFd>,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let request = read_kernel_import(&api, &caller, &name, files, options).await?;
        let job = api.engine.import_kernel(request)?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("job"))]
    async fn pull_kernel(
        &self,
        entry: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let request = read_kernel_pull(&api, &caller, &entry, options).await?;
        let job = api.engine.pull_kernel(request)?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("entries"))]
    async fn list_catalog(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<Vec<Dict>> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let kind = options.string(catalog::KIND)?;
        options.finish()?;
        if !matches!(kind.as_deref(), None | Some(catalog::IMAGE | catalog::KERNEL_KIND)) {
            return Err(Error::invalid_option("kind must be image or kernel"));
        }
        let offers = api.engine.offers(caller.uid).offers;
        let wanted = offers.iter().filter(|offer| kind.as_deref().is_none_or(|kind| kind == kind_of(offer)));
        wanted.map(facts).collect()
    }

    #[zbus(out_args("job"))]
    async fn refresh_catalog(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let older_than = options.number(refresh::OLDER_THAN)?.map(Duration::from_micros);
        options.finish()?;
        let job = api.engine.refresh_catalogs(caller.uid, older_than.unwrap_or_default())?;
        api.return_job(&caller, job).await
    }

    #[zbus(out_args("kernel"))]
    async fn get_kernel(
        &self,
        reference: String,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let found = api.find_kernel(&caller, &reference).await?;
        export(&api, KernelKind(found.id)).await?;
        Ok(path::kernel(found.id))
    }

    #[zbus(out_args("kernels"))]
    async fn list_kernels(&self, filter: Dict, #[zbus(header)] header: Header<'_>) -> Result<Vec<KernelRow>> {
        let (api, caller) = self.caller(&header).await?;
        let all = api.read_filter(&caller, filter).await?;
        let kernels = item::visible(api.engine.kernels(), &caller, all);
        let row = |kernel: &Arc<banger_image::record::Kernel>| KernelRow {
            id: kernel.id.to_string(),
            name: kernel.name.to_string(),
            owner_uid: kernel.owner.0,
            size: kernel.facts.size.0,
            shared: kernel.shared,
            path: path::kernel(kernel.id),
        };
        Ok(kernels.iter().map(row).collect())
    }

    #[zbus(out_args("job"))]
    async fn get_job(&self, id: String, #[zbus(header)] header: Header<'_>) -> Result<OwnedObjectPath> {
        let (api, caller) = self.caller(&header).await?;
        let none = || Error::new(ErrorName::NoSuchJob, "there is no such job");
        let id: JobId = id.parse().map_err(|_| none())?;
        let found = api.engine.job(id).ok_or_else(none)?;
        let is_own =
            found.owner == caller.uid || api.subscribers.creator(id) == Some(caller.connection.clone());
        if !is_own && !api.may_view_others(&caller).await {
            return Err(none());
        }
        Ok(path::job(id))
    }

    #[zbus(out_args("jobs"))]
    async fn list_jobs(&self, filter: Dict, #[zbus(header)] header: Header<'_>) -> Result<Vec<JobRow>> {
        let (api, caller) = self.caller(&header).await?;
        let all = api.read_filter(&caller, filter).await?;
        let mut jobs = api.engine.jobs();
        jobs.retain(|job| all || job.owner == caller.uid);
        jobs.sort_by_key(|job| (job.started_at, job.id));
        let row = |view: &Arc<crate::engine::view::JobView>| JobRow {
            id: view.id.to_string(),
            kind: view.kind.as_str().to_owned(),
            owner_uid: view.owner.0,
            state: job::state(view).to_owned(),
            progress: job::progress(view),
            path: path::job(view.id),
        };
        Ok(jobs.iter().map(row).collect())
    }

    async fn subscribe(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let (api, caller) = self.caller(&header).await?;
        let mut options = Options::new(options);
        let all_owners = options.boolean(subscribe::ALL_OWNERS)?.unwrap_or_default();
        options.finish()?;
        if all_owners {
            api.require(&caller, action::VM_VIEW_OTHERS, Vec::new()).await?;
        }
        api.subscribe(&caller, all_owners)
    }

    async fn unsubscribe(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let (api, caller) = self.caller(&header).await?;
        api.subscribers.remove(&caller.connection);
        Ok(())
    }

    #[zbus(out_args("permissions"))]
    async fn get_permissions(&self, #[zbus(header)] header: Header<'_>) -> Result<HashMap<String, String>> {
        let (api, caller) = self.caller(&header).await?;
        let mut permissions = HashMap::new();
        for action in action::ALL {
            let question = Question {
                connection: caller.connection.clone(),
                action,
                details: Vec::new(),
                interaction: Interaction::Forbidden,
            };
            let word = match api.engine.authority().check(question).await {
                _ if caller.uid == Uid::ROOT => "yes",
                Verdict::Yes => "yes",
                Verdict::NeedsInteraction => "auth",
                Verdict::No(_) => "no",
                Verdict::Undecided(why) => return Err(Error::new(ErrorName::HostNotReady, why)),
            };
            permissions.insert(action.to_owned(), word.to_owned());
        }
        Ok(permissions)
    }

    #[zbus(out_args("limits"))]
    async fn get_limits(&self) -> Result<Dict> {
        let api = api(&self.api)?;
        let limits = &api.engine.settings().limits;
        let rows: [(&str, Variant<'static>); 7] = [
            ("vms", limits.vms.into()),
            ("running", limits.running.into()),
            ("vcpus", limits.vcpus.into()),
            ("memory", limits.memory.0.into()),
            ("disk", limits.disk.0.into()),
            ("images", limits.images.into()),
            ("image-disk", limits.image_disk.0.into()),
        ];
        let owned =
            |(key, value): (&str, Variant<'static>)| Ok((key.to_owned(), OwnedVariant::try_from(value)?));
        rows.into_iter().map(owned).collect()
    }

    #[zbus(out_args("stream"))]
    async fn open_metrics(&self, filter: Dict, #[zbus(header)] header: Header<'_>) -> Result<OwnedFd> {
        let (api, caller) = self.caller(&header).await?;
        let all = api.read_filter(&caller, filter).await? || api.may_view_others(&caller).await;
        let place = api.callers.acquire(caller.uid, RequestKind::Metrics)?;
        let whose = if all { Whose::All } else { Whose::Own(caller.uid) };
        let text = metrics::to_text(api.metrics(whose, API_LEVEL).await)?;
        Ok(metrics::send(text, place)?.into())
    }

    #[zbus(out_args("checks"))]
    async fn diagnose(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<Vec<CheckRow>> {
        let (api, caller) = self.caller(&header).await?;
        Options::new(options).finish()?;
        Ok(api.engine.diagnose(caller.uid).await.into_iter().map(row_of).collect())
    }

    #[zbus(out_args("checks"))]
    async fn repair(&self, options: Dict, #[zbus(header)] header: Header<'_>) -> Result<Vec<CheckRow>> {
        let (api, caller) = self.caller(&header).await?;
        Options::new(options).finish()?;
        Ok(api.engine.repair(caller.uid).await?.into_iter().map(row_of).collect())
    }
}

fn row_of(check: Check) -> CheckRow {
    CheckRow {
        check: check.name.to_owned(),
        status: match check.status {
            Status::Pass => "pass",
            Status::Warn => "warn",
            Status::Fail => "fail",
            Status::Fixed => "fixed",
        }
        .to_owned(),
        message: check.message,
        hint: check.hint,
    }
}

impl Methods {
    async fn caller(&self, header: &Header<'_>) -> Result<(Arc<Api>, Caller)> {
        let api = api(&self.api)?;
        let caller = api.callers.of(header).await?;
        Ok((api, caller))
    }
}

impl Api {
    /// Reads a list's filter: whether it includes all users' objects, which needs an authorisation.
    async fn read_filter(&self, caller: &Caller, options: Dict) -> Result<bool> {
        let mut options = Options::new(options);
        let all = options.boolean(filter::ALL)?.unwrap_or_default();
        options.finish()?;
        if all {
            self.require(caller, action::VM_VIEW_OTHERS, Vec::new()).await?;
        }
        Ok(all)
    }

    pub(super) async fn require_share(&self, caller: &Caller, shared: bool, name: &Name) -> Result<()> {
        match shared {
            true => {
                let details = vec![
                    (detail::IMAGE, name.to_string()),
                    (detail::OBJECT, format!("image or kernel {name}")),
                ];
                self.require(caller, action::IMAGE_MANAGE_SHARED, details).await
            }
            false => Ok(()),
        }
    }
}
