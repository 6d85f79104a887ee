//! `dev.banger.Manager1.Image`: an image.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use banger_domain::id::ImageId;
use banger_image::oci::config::ImageConfig;
use banger_proto::bus::{ErrorName, names::IMAGE_INTERFACE, option::image_config};
use zbus::{OwnedFd, OwnedObjectPath, Variant, interface, message::Header};

use super::{
    api::{Api, Target},
    error::{Error, Result},
    export::{
        Change::{Never, Signaled, Silent},
        Kind, Property, api, export, property,
    },
    item,
    options::{Dict, Options},
    path,
    request::parse_name,
};
use crate::engine::{
    Engine,
    view::{ImageView, Object},
};

/// The kind of image objects.
#[derive(Clone)]
pub struct ImageKind(pub ImageId);

impl Kind for ImageKind {
    type View = ImageView;
    type Methods = Methods;
    const INTERFACE: &'static str = IMAGE_INTERFACE;
    const SIGNALS: &'static str = "";

    fn path(&self) -> OwnedObjectPath {
        path::image(self.0)
    }

    fn properties() -> &'static [Property<ImageView>] {
        PROPERTIES
    }

    fn methods(&self, api: Weak<Api>) -> Methods {
        Methods { api, id: self.0 }
    }

    fn view(&self, engine: &Engine) -> Option<Arc<ImageView>> {
        engine.image(self.0)
    }

    fn target(image: &ImageView, _: &Api) -> Option<Target> {
        Some(item::target(image))
    }

    fn gone() -> Error {
        Error::new(ErrorName::NoSuchImage, "the image has been deleted")
    }
}

const PROPERTIES: &[Property<ImageView>] = &[
    property("Id", "s", Never, item::id),
    property("Name", "s", Signaled, item::name),
    property("OwnerUid", "u", Signaled, item::owner),
    property("Shared", "b", Signaled, item::shared),
    property("Source", "s", Signaled, item::source),
    property("Digest", "s", Never, item::digest),
    property("Architecture", "s", Signaled, item::architecture),
    property("ManifestDigest", "s", Never, |image, _| {
        image.origin.as_ref().map(|origin| origin.manifest.to_string()).unwrap_or_default().into()
    }),
    property("Config", "a{sv}", Never, |image, _| config(&image.config).into()),
    property("VirtualSize", "t", Signaled, |image, _| image.facts.virtual_size.0.into()),
    property("ContentSize", "t", Signaled, |image, _| image.facts.content_size.0.into()),
    property("DiskUsage", "t", Signaled, |image, _| image.facts.disk_usage.0.into()),
    property("KernelId", "s", Signaled, |image, _| {
        image.kernel.map(|id| id.to_string()).unwrap_or_default().into()
    }),
    property("CreatedAt", "t", Signaled, item::created_at),
    property("UsedBy", "ao", Silent, |image, reader| {
        item::used_by(image, reader.engine.image_users(image.id).into_iter().map(Object::Vm), reader)
    }),
];

/// Returns the image's configuration for programs, without empty values.
fn config(config: &ImageConfig) -> HashMap<&'static str, Variant<'static>> {
    let mut map: HashMap<&'static str, Variant<'static>> = HashMap::new();
    let lists = [
        (image_config::ENV, &config.env),
        (image_config::ENTRYPOINT, &config.entrypoint),
        (image_config::CMD, &config.cmd),
        (image_config::EXPOSED_PORTS, &config.exposed_ports),
    ];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        map.insert(key, list.clone().into());
    }
    let texts = [
        (image_config::USER, &config.user),
        (image_config::WORKING_DIR, &config.working_dir),
        (image_config::STOP_SIGNAL, &config.stop_signal),
    ];
    for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        map.insert(key, text.clone().into());
    }
    if !config.labels.is_empty() {
        map.insert(image_config::LABELS, config.labels.clone().into_iter().collect::<HashMap<_, _>>().into());
    }
    map
}

/// The methods of an image.
pub struct Methods {
    api: Weak<Api>,
    id: ImageId,
}

/// An image.
#[interface(name = "dev.banger.Manager1.Image", introspection_docs = false)]
impl Methods {
    async fn delete(&self, options: Dict) -> Result<()> {
        Options::new(options).finish()?;
        Ok(api(&self.api)?.engine.delete_image(self.id).await?)
    }

    #[zbus(out_args("job"))]
    async fn export(
        &self,
        file: OwnedFd,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        Options::new(options).finish()?;
        let api = api(&self.api)?;
        let caller = api.callers.of(&header).await?;
        let job = api.engine.export_image(caller.uid, self.id, file.into())?;
        api.return_job(&caller, job).await
    }

    async fn rename(&self, name: String) -> Result<()> {
        Ok(api(&self.api)?.engine.rename_image(self.id, &parse_name(&name)?).await?)
    }

    #[zbus(out_args("image"))]
    async fn tag(
        &self,
        name: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        Options::new(options).finish()?;
        let api = api(&self.api)?;
        let caller = api.callers.of(&header).await?;
        let id = api.engine.tag_image(caller.uid, self.id, &parse_name(&name)?).await?;
        export(&api, ImageKind(id)).await?;
        Ok(path::image(id))
    }

    async fn set_shared(&self, shared: bool) -> Result<()> {
        Ok(api(&self.api)?.engine.share_image(self.id, shared).await?)
    }
}
