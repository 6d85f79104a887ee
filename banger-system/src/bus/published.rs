//! The objects as clients last saw them, and the events that bring clients up to date.
//!
//! Events come in order, so usually they are passed on as they are. After a gap ([`Event::Lost`]) the difference between
//! what was published and the engine's current objects takes the place of what was lost. Events that are older than that
//! look come after it, and are left out.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use banger_domain::id::{ImageId, JobId, KernelId, VmId};

use crate::engine::{
    Engine,
    view::{Event, ImageView, JobView, KernelView, VmView},
};

/// The objects as they were last published.
#[derive(Default)]
pub struct Published {
    vms: Seen<VmId, VmView>,
    images: Seen<ImageId, ImageView>,
    kernels: Seen<KernelId, KernelView>,
    jobs: Seen<JobId, JobView>,
}

impl Published {
    /// Returns what to publish for an event.
    pub fn follow(&mut self, event: Event, engine: &Engine) -> Vec<Event> {
        let vm_changed = |old, new| Event::VmChanged { old, new };
        let image_changed = |old, new| Event::ImageChanged { old, new };
        let job_changed = |old, new| Event::JobChanged { old, new };
        let next = match event {
            Event::VmAdded(view) => self.vms.add(view.vm.id, view).map(Event::VmAdded),
            Event::VmChanged { old, new } => {
                let id = new.vm.id;
                self.vms.change(id, &old, new, || engine.vm(id)).map(|(old, new)| vm_changed(old, new))
            }
            Event::VmRemoved(view) => self.vms.remove(view.vm.id, view).map(Event::VmRemoved),
            Event::EgressDenied { view, destination } => {
                self.vms.0.contains_key(&view.vm.id).then_some(Event::EgressDenied { view, destination })
            }
            Event::ImageAdded(view) => self.images.add(view.id, view).map(Event::ImageAdded),
            Event::ImageChanged { old, new } => {
                let id = new.id;
                self.images
                    .change(id, &old, new, || engine.image(id))
                    .map(|(old, new)| image_changed(old, new))
            }
            Event::ImageRemoved(view) => self.images.remove(view.id, view).map(Event::ImageRemoved),
            Event::KernelAdded(view) => self.kernels.add(view.id, view).map(Event::KernelAdded),
            Event::KernelChanged { old, new } => {
                let id = new.id;
                self.kernels
                    .change(id, &old, new, || engine.kernel(id))
                    .map(|(old, new)| Event::KernelChanged { old, new })
            }
            Event::KernelRemoved(view) => self.kernels.remove(view.id, view).map(Event::KernelRemoved),
            Event::JobAdded(view) => self.jobs.add(view.id, view).map(Event::JobAdded),
            Event::JobChanged { old, new } => {
                let id = new.id;
                self.jobs.change(id, &old, new, || engine.job(id)).map(|(old, new)| job_changed(old, new))
            }
            Event::JobRemoved(view) => self.jobs.remove(view.id, view).map(Event::JobRemoved),
            Event::Lost => return self.catch_up(engine),
        };
        next.into_iter().collect()
    }

    /// Returns whether clients were told of a job, and not yet of its removal.
    pub fn has_job(&self, id: JobId) -> bool {
        self.jobs.0.contains_key(&id)
    }

    /// Returns how what was published becomes what is there: kernels and images before the sandboxes that use them.
    fn catch_up(&mut self, engine: &Engine) -> Vec<Event> {
        let mut events = Vec::new();
        let kernels = engine.kernels().into_iter().map(|view| (view.id, view));
        for difference in self.kernels.compare(kernels) {
            events.push(match difference {
                Difference::Added(view) => Event::KernelAdded(view),
                Difference::Changed(old, new) => Event::KernelChanged { old, new },
                Difference::Removed(view) => Event::KernelRemoved(view),
            });
        }
        let images = engine.images().into_iter().map(|view| (view.id, view));
        for difference in self.images.compare(images) {
            events.push(match difference {
                Difference::Added(view) => Event::ImageAdded(view),
                Difference::Changed(old, new) => Event::ImageChanged { old, new },
                Difference::Removed(view) => Event::ImageRemoved(view),
            });
        }
        let vms = engine.vms().into_iter().map(|view| (view.vm.id, view));
        for difference in self.vms.compare(vms) {
            events.push(match difference {
                Difference::Added(view) => Event::VmAdded(view),
                Difference::Changed(old, new) => Event::VmChanged { old, new },
                Difference::Removed(view) => Event::VmRemoved(view),
            });
        }
        let jobs = engine.jobs().into_iter().map(|view| (view.id, view));
        for difference in self.jobs.compare(jobs) {
            match difference {
                Difference::Added(view) => {
                    events.push(Event::JobAdded(Arc::clone(&view)));
                    // Its end is a signal of its own.
                    if view.outcome.is_some() {
                        let old = Arc::new(JobView { outcome: None, ..JobView::clone(&view) });
                        events.push(Event::JobChanged { old, new: view });
                    }
                }
                Difference::Changed(old, new) => events.push(Event::JobChanged { old, new }),
                Difference::Removed(view) => events.push(Event::JobRemoved(view)),
            }
        }
        events
    }
}

/// The published objects of one kind.
struct Seen<Id, View>(HashMap<Id, Arc<View>>);

/// What differs between what was published and what is there.
enum Difference<View> {
    Added(Arc<View>),
    Changed(Arc<View>, Arc<View>),
    Removed(Arc<View>),
}

impl<Id: Copy + Eq + Hash, View> Seen<Id, View> {
    fn add(&mut self, id: Id, view: Arc<View>) -> Option<Arc<View>> {
        if self.0.contains_key(&id) {
            return None;
        }
        self.0.insert(id, Arc::clone(&view));
        Some(view)
    }

    /// Returns the change to publish. If the event does not follow what was published, that is newer, and its current
    /// view counts.
    fn change(
        &mut self,
        id: Id,
        old: &Arc<View>,
        new: Arc<View>,
        current: impl Fn() -> Option<Arc<View>>,
    ) -> Option<(Arc<View>, Arc<View>)> {
        let published = self.0.get_mut(&id)?;
        let new = if Arc::ptr_eq(published, old) { new } else { current()? };
        if Arc::ptr_eq(published, &new) {
            return None;
        }
        Some((std::mem::replace(published, Arc::clone(&new)), new))
    }

    fn remove(&mut self, id: Id, view: Arc<View>) -> Option<Arc<View>> {
        self.0.remove(&id).map(|_| view)
    }

    fn compare(&mut self, current: impl Iterator<Item = (Id, Arc<View>)>) -> Vec<Difference<View>> {
        let mut differences = Vec::new();
        let mut there = HashSet::new();
        for (id, new) in current {
            there.insert(id);
            match self.0.insert(id, Arc::clone(&new)) {
                None => differences.push(Difference::Added(new)),
                Some(old) if Arc::ptr_eq(&old, &new) => {}
                Some(old) => differences.push(Difference::Changed(old, new)),
            }
        }
        let gone = self.0.extract_if(|id, _| !there.contains(id));
        differences.extend(gone.map(|(_, view)| Difference::Removed(view)));
        differences
    }
}

impl<Id, View> Default for Seen<Id, View> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;

    use banger_domain::id::Uid;
    use banger_proto::size::Bytes;

    use super::*;
    use crate::{
        config::{Config, Host},
        engine::request::{ImportImage, ImportKernel, ImportSource},
        sim::Sim,
        tasks::Tasks,
    };

    /// Returns a word for each event: what happened to which kind.
    fn words(events: &[Event]) -> Vec<&'static str> {
        events
            .iter()
            .map(|event| match event {
                Event::ImageAdded(_) => "+image",
                Event::ImageChanged { .. } => "~image",
                Event::ImageRemoved(_) => "-image",
                Event::KernelAdded(_) => "+kernel",
                Event::KernelChanged { .. } => "~kernel",
                Event::KernelRemoved(_) => "-kernel",
                Event::JobAdded(_) => "+job",
                Event::JobChanged { .. } => "~job",
                Event::JobRemoved(_) => "-job",
                _ => "vm",
            })
            .collect()
    }

    #[tokio::test]
    async fn after_a_gap_the_difference_is_published_and_older_events_are_left_out() {
        let settings = Config::default().settings(Host { cpus: 2, memory: Bytes::gib(16) }).unwrap();
        let (engine, mut events) = Engine::new(Sim::new().ports(), settings, &Tasks::default());
        let mut published = Published::default();
        let null = || File::open("/dev/null").unwrap().into();
        let kernel = ImportKernel {
            owner: Uid::ROOT,
            name: "debian".parse().unwrap(),
            shared: false,
            vmlinuz: null(),
            modules: None,
        };
        engine.wait_job(engine.import_kernel(kernel).unwrap(), None).await.unwrap();
        // Without a gap, everything is passed on.
        while let Some(event) = events.try_recv() {
            assert_eq!(published.follow(event, &engine).len(), 1);
        }
        assert!(published.follow(Event::Lost, &engine).is_empty());

        let image = ImportImage {
            owner: Uid::ROOT,
            name: "bookworm".parse().unwrap(),
            shared: false,
            kernel: None,
            content: ImportSource::Rootfs(null()),
        };
        engine.wait_job(engine.import_image(image).unwrap(), None).await.unwrap();
        let id = engine.images()[0].id;
        engine.share_image(id, true).await.unwrap();
        engine.delete_kernel(engine.kernels()[0].id).await.unwrap();
        assert_eq!(words(&published.follow(Event::Lost, &engine)), ["-kernel", "+image", "+job", "~job"]);
        // They were in the queue when the look came.
        while let Some(event) = events.try_recv() {
            assert!(published.follow(event, &engine).is_empty());
        }
        engine.share_image(id, false).await.unwrap();
        let event = events.recv().await.unwrap();
        assert_eq!(words(&published.follow(event, &engine)), ["~image"]);
    }
}
