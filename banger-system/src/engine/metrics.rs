//! The figures of this service, as data. The D-Bus API writes them as text.
//!
//! A user gets the figures of their own sandboxes and jobs. Those of other users, of the host and of the service are for
//! callers who may see everybody's objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::UNIX_EPOCH,
};

use banger_domain::{id::Uid, lifecycle::State};

use super::{
    Engine,
    counts::{EventCounts, Histogram},
    view::{JobView, VmView},
};

/// Whose figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those of one user.
    Own(Uid),
    /// Those of everybody, the host and the service.
    All,
}

impl Whose {
    fn includes(self, owner: Uid) -> bool {
        match self {
            Whose::Own(user) => user == owner,
            Whose::All => true,
        }
    }
}

/// Names and values that distinguish the figures of one kind. Values are ids, uids and words of the code, so that their
/// number is bounded; only `sandbox_info` has names.
pub type Labels = Vec<(&'static str, String)>;

/// Figures of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Its name, without prefix, unit and suffix.
    pub name: &'static str,
    /// What it is, in one sentence without its full stop.
    pub help: &'static str,
    /// The unit of the values.
    pub unit: Option<Unit>,
    /// The values.
    pub values: Values,
}

/// The unit of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// The values of a kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// They go up and down.
    Gauges(Vec<(Labels, f64)>),
    /// They grow until the service or the sandbox starts again.
    Counters(Vec<(Labels, f64)>),
    /// Distributions of times.
    Histograms(Vec<(Labels, Histogram)>),
}

impl Family {
    /// Returns values that go up and down.
    pub fn gauges(
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Self {
        Self { name, help, unit: None, values: Values::Gauges(values.into_iter().collect()) }
    }

    /// Returns values that only grow.
    pub fn counters(
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Self {
        Self { name, help, unit: None, values: Values::Counters(values.into_iter().collect()) }
    }

    /// Gives the values a unit.
    pub fn of_unit(self, unit: Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }
}

impl Engine {
    /// Returns the figures of one user, or of everybody. Asks the host what sandboxes use.
    pub async fn metrics(&self, whose: Whose) -> Vec<Family> {
        let mut views = self.vms();
        views.retain(|view| whose.includes(view.vm.owner));
        views.sort_by_key(|view| (view.vm.created_at, view.vm.id));
        let mut jobs = self.jobs();
        jobs.retain(|job| whose.includes(job.owner));
        let counts = match whose {
            Whose::Own(user) => self.shared.counts.of(user),
            Whose::All => self.shared.counts.all(),
        };
        let mut all = self.of_sandboxes(&views).await;
        all.extend(of_jobs(&jobs));
        all.extend(of_events(counts));
        all.extend(self.of_users(whose, &views));
        if whose == Whose::All {
            all.extend(self.of_the_host());
        }
        all
    }

    async fn of_sandboxes(&self, views: &[Arc<VmView>]) -> Vec<Family> {
        let up = views.iter().filter(|view| view.vm.state.is_up());
        let usage =
            self.shared.ports.supervisor.usage(up.map(|view| (view.vm.id, view.vm.owner)).collect()).await;
        let logs = views
            .iter()
            .map(|view| (view, self.shared.ports.network.egress_totals(view.vm.id)))
            .collect::<Vec<_>>();
        let used = || views.iter().filter_map(|view| Some((of(view), usage.get(&view.vm.id)?)));
        let states = State::ALL.map(|state| {
            let count = views.iter().filter(|view| view.vm.state == state).count();
            (vec![("state", state.to_string())], count as f64)
        });
        let about = |view: &Arc<VmView>| {
            let mut labels = of(view);
            labels.push(("name", view.vm.name.to_string()));
            labels.push(("uid", view.vm.owner.to_string()));
            labels.push(("image", view.image_name.clone()));
            (labels, 1.0)
        };
        vec![
            Family::gauges("sandboxes", "Number of sandboxes", states),
            Family::gauges("sandbox_info", "Name, owner and image of a sandbox", views.iter().map(about)),
            Family::gauges(
                "sandbox_ready",
                "Whether the guest answers",
                views.iter().map(|view| (of(view), f64::from(u8::from(view.is_ready())))),
            ),
            Family::gauges(
                "sandbox_memory",
                "Memory of the control group of a sandbox",
                used().map(|(labels, usage)| (labels, usage.memory.0 as f64)),
            )
            .of_unit(Unit::Bytes),
            Family::counters(
                "sandbox_cpu",
                "Processor time of the control group of a sandbox",
                used().map(|(labels, usage)| (labels, usage.cpu.as_secs_f64())),
            )
            .of_unit(Unit::Seconds),
            Family::counters(
                "sandbox_refused_lookups",
                "Look-ups of names that a sandbox may not reach",
                views.iter().map(|view| (of(view), self.refused_lookups(view.vm.id) as f64)),
            ),
            Family::counters(
                "sandbox_allowed_lookups",
                "Look-ups of names that the egress policy of a sandbox allows",
                logs.iter().map(|(view, totals)| (of(view), totals.allowed as f64)),
            ),
            Family::counters(
                "sandbox_egress_denials",
                "Attempts of a sandbox to reach what its egress policy does not allow",
                logs.iter().map(|(view, totals)| (of(view), totals.denied as f64)),
            ),
        ]
    }

    /// Returns what each user has, and may have.
    fn of_users(&self, whose: Whose, views: &[Arc<VmView>]) -> Vec<Family> {
        let limits = &self.shared.settings.limits;
        let streams = self.shared.ports.streams.open();
        let images = self.images();
        let users: BTreeSet<Uid> = match whose {
            Whose::Own(user) => BTreeSet::from([user]),
            Whose::All => {
                let owners =
                    views.iter().map(|view| view.vm.owner).chain(images.iter().map(|image| image.owner));
                owners.chain(streams.keys().copied()).collect()
            }
        };
        let mut counted = Vec::new();
        let mut bytes = Vec::new();
        for user in &users {
            let usage = self.usage(*user);
            let own = images.iter().filter(|image| image.owner == *user).count();
            let open = streams.get(user).copied().unwrap_or_default();
            let label = |what: &str| vec![("uid", user.to_string()), ("resource", what.to_owned())];
            counted.extend([
                (label("sandboxes"), f64::from(usage.vms)),
                (label("running"), f64::from(usage.running)),
                (label("images"), own as f64),
                (label("streams"), open as f64),
            ]);
            bytes.extend([
                (label("memory"), usage.memory.0 as f64),
                (label("disk"), usage.disk.0 as f64),
                (label("image-disk"), self.shared.inventory.private_bytes(*user).0 as f64),
            ]);
        }
        let label = |what: &str| vec![("resource", what.to_owned())];
        let counts = [
            ("sandboxes", limits.vms),
            ("running", limits.running),
            ("images", limits.images),
            ("streams", limits.streams),
        ];
        let sizes = [("memory", limits.memory), ("disk", limits.disk), ("image-disk", limits.image_disk)];
        vec![
            Family::gauges("quota_used", "What a user has of what is counted", counted),
            Family::gauges(
                "quota_limit",
                "What each user may have of that",
                counts.map(|(what, limit)| (label(what), f64::from(limit))),
            ),
            Family::gauges("quota_used", "What a user has of what has a size", bytes).of_unit(Unit::Bytes),
            Family::gauges(
                "quota_limit",
                "What each user may have of that",
                sizes.map(|(what, limit)| (label(what), limit.0 as f64)),
            )
            .of_unit(Unit::Bytes),
        ]
    }

    /// Returns what only an administrator sees.
    fn of_the_host(&self) -> Vec<Family> {
        let none = Labels::new;
        let files: BTreeMap<_, _> =
            self.images().iter().map(|image| (image.facts.file, image.facts.disk_usage.0)).collect();
        let lookups = self.shared.ports.names.lookups();
        let lookups = [
            ("answered", lookups.answered),
            ("forwarded", lookups.forwarded),
            ("refused", lookups.refused),
            ("limited", lookups.limited),
        ];
        let started = self.shared.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut all = vec![
            Family::gauges(
                "image_files",
                "Disk space of all images; a file that several share counts once",
                [(none(), files.into_values().sum::<u64>() as f64)],
            )
            .of_unit(Unit::Bytes),
            Family::counters(
                "lookups",
                "Questions to the name server",
                lookups.map(|(result, count)| (vec![("result", result.to_owned())], count as f64)),
            ),
            Family::gauges(
                "problems",
                "What could not be removed from the host or looked up on it",
                [(none(), self.shared.problems.all().len() as f64)],
            ),
            Family::gauges("start_time", "When the service started", [(none(), started.as_secs_f64())])
                .of_unit(Unit::Seconds),
        ];
        if let Some(connections) = self.shared.ports.network.connections() {
            all.extend([
                Family::gauges(
                    "connections",
                    "Connections that the host tracks",
                    [(none(), connections.tracked as f64)],
                ),
                Family::gauges(
                    "connections_limit",
                    "How many connections the host can track",
                    [(none(), connections.limit as f64)],
                ),
            ]);
        }
        all
    }
}

fn of(view: &VmView) -> Labels {
    vec![("id", view.vm.id.to_string())]
}

fn of_jobs(jobs: &[Arc<JobView>]) -> Vec<Family> {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for job in jobs.iter().filter(|job| job.outcome.is_none()) {
        *counts.entry(job.kind.as_str()).or_default() += 1;
    }
    let values = counts.into_iter().map(|(kind, count)| (vec![("kind", kind.to_owned())], count as f64));
    vec![Family::gauges("jobs", "Jobs that run or wait", values)]
}

fn of_events(counts: EventCounts) -> Vec<Family> {
    let EventCounts { starts, failures, phases, jobs } = counts;
    let one = |key: &'static str, value: String, count: u64| (vec![(key, value)], count as f64);
    vec![
        Family::counters(
            "sandbox_starts",
            "Starts whose guest answered",
            starts.into_iter().map(|(from, count)| one("from", from.to_owned(), count)),
        ),
        Family::counters(
            "sandbox_failures",
            "Starts and sandboxes that failed",
            failures.into_iter().map(|(reason, count)| one("reason", reason, count)),
        ),
        Family {
            name: "sandbox_start_phase",
            help: "Times that the phases of starts took",
            unit: Some(Unit::Seconds),
            values: Values::Histograms(
                phases
                    .into_iter()
                    .map(|(phase, times)| (vec![("phase", phase.as_str().to_owned())], times))
                    .collect(),
            ),
        },
        Family::counters(
            "jobs_ended",
            "Jobs that ended",
            jobs.into_iter().map(|((kind, result), count)| {
                (vec![("kind", kind.to_owned()), ("result", result.to_owned())], count as f64)
            }),
        ),
    ]
}
