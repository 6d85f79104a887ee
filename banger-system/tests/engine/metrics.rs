//! The figures of the service, and whose they are.

use std::collections::BTreeSet;

use banger_domain::{
    guest_end::Ended,
    id::{Uid, VmId},
};
use banger_system::engine::{
    metrics::{Family, Values, Whose},
    request::{CreateVm, Start, Stop, StopMode},
};

use super::engine_lab::{ALICE, BOB, EngineLab, request};

/// The figures of one reading.
struct Figures(Vec<Family>);

impl Figures {
    async fn of(lab: &EngineLab, whose: Whose) -> Self {
        Self(lab.engine.metrics(whose).await)
    }

    /// Returns the values of a kind that have this among their labels.
    fn values(&self, name: &str, label: &str) -> Vec<f64> {
        let family = self.0.iter().find(|family| family.name == name).unwrap();
        let has = |labels: &[(&'static str, String)]| {
            label.is_empty() || labels.iter().any(|(_, value)| value == label)
        };
        match &family.values {
            Values::Gauges(values) | Values::Counters(values) => {
                values.iter().filter(|(labels, _)| has(labels)).map(|(_, value)| *value).collect()
            }
            Values::Histograms(values) => {
                values.iter().filter(|(labels, _)| has(labels)).map(|(_, times)| times.count as f64).collect()
            }
        }
    }

    /// Returns the values of all labels.
    fn labels(&self) -> BTreeSet<String> {
        let values = self.0.iter().flat_map(|family| match &family.values {
            Values::Gauges(values) | Values::Counters(values) => {
                values.iter().map(|(labels, _)| labels.clone()).collect::<Vec<_>>()
            }
            Values::Histograms(values) => values.iter().map(|(labels, _)| labels.clone()).collect(),
        });
        values.flatten().map(|(_, value)| value).collect()
    }
}

async fn create(lab: &EngineLab, owner: Uid, name: &str) -> VmId {
    let request = CreateVm { owner, name: Some(name.parse().unwrap()), ..request() };
    let (vm, job) = lab.engine.create_vm(request).await.unwrap();
    lab.done(job).await;
    vm
}

#[tokio::test]
async fn a_user_sees_only_their_own_figures() {
    let lab = EngineLab::new().await;
    let (hers, his) = (create(&lab, ALICE, "hers").await, create(&lab, BOB, "his").await);
    lab.sim.refuse_lookups(his, 7);
    let own = Figures::of(&lab, Whose::Own(ALICE)).await;
    let all = Figures::of(&lab, Whose::All).await;
    for text in [his.to_string(), "his".to_owned(), BOB.to_string()] {
        assert!(all.labels().contains(&text), "{text}");
        assert!(!own.labels().contains(&text), "{text} is in {:?}", own.labels());
    }
    assert!(own.labels().contains(&hers.to_string()));
    for (name, label, of_alice, of_all) in [
        ("sandboxes", "running", vec![1.0], vec![2.0]),
        ("sandbox_starts", "cold", vec![1.0], vec![2.0]),
        ("sandbox_start_phase", "guest", vec![1.0], vec![2.0]),
        ("jobs_ended", "vm-create", vec![1.0], vec![2.0]),
        ("quota_used", "running", vec![1.0], vec![0.0, 1.0, 1.0]),
        ("sandbox_refused_lookups", "", vec![0.0], vec![0.0, 7.0]),
    ] {
        assert_eq!(own.values(name, label), of_alice, "{name} of alice");
        let mut found = all.values(name, label);
        found.sort_by(f64::total_cmp);
        // Root has the images.
        assert_eq!(found, of_all, "{name} of all");
    }
    for of_the_host in ["connections", "image_files", "lookups", "problems", "start_time"] {
        assert!(all.0.iter().any(|family| family.name == of_the_host), "{of_the_host}");
        assert!(!own.0.iter().any(|family| family.name == of_the_host), "{of_the_host}");
    }
    let nobody = Figures::of(&lab, Whose::Own(Uid(4242))).await;
    assert_eq!(nobody.values("sandboxes", "running"), [0.0]);
    assert!(nobody.values("jobs_ended", "").is_empty());
}

#[tokio::test]
async fn starts_failures_and_usage_are_counted() {
    let mut lab = EngineLab::new().await;
    let vm = lab.running().await;
    let figures = Figures::of(&lab, Whose::Own(ALICE)).await;
    assert_eq!(figures.values("sandbox_cpu", &vm.to_string()), [1.5]);
    assert_eq!(figures.values("sandbox_memory", &vm.to_string()), [f64::from(64 << 20)]);
    assert_eq!(figures.values("sandbox_ready", &vm.to_string()), [1.0]);
    assert!(figures.values("sandbox_failures", "").is_empty());

    lab.sim.end_process(vm, Ended::Failed("killed:9".to_owned()));
    lab.until(vm, |state| state == Some(banger_domain::lifecycle::State::Failed)).await;
    lab.sim.silence_guests(true);
    lab.failed(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    let figures = Figures::of(&lab, Whose::Own(ALICE)).await;
    assert_eq!(figures.values("sandbox_failures", "vmm-exit"), [1.0]);
    assert_eq!(figures.values("sandbox_failures", "boot-timeout"), [1.0]);
    assert_eq!(figures.values("sandbox_starts", ""), [1.0]);
    assert_eq!(figures.values("sandbox_ready", &vm.to_string()), [0.0]);
    assert_eq!(figures.values("jobs_ended", "failed"), [1.0]);

    lab.done(lab.engine.stop_vm(vm, Stop { timeout: None, mode: StopMode::Forced }).await.unwrap()).await;
    let figures = Figures::of(&lab, Whose::Own(ALICE)).await;
    // It has no control group while it is down.
    assert!(figures.values("sandbox_cpu", "").is_empty());
    assert_eq!(figures.values("sandboxes", "stopped"), [1.0]);
    // What has happened stays counted when the sandbox is gone.
    lab.done(lab.engine.delete_vm(vm, StopMode::Graceful).await.unwrap()).await;
    let figures = Figures::of(&lab, Whose::Own(ALICE)).await;
    assert_eq!(figures.values("sandbox_failures", "vmm-exit"), [1.0]);
    assert!(figures.values("sandbox_info", "").is_empty());
}

#[tokio::test]
async fn a_start_that_fails_is_counted_once() {
    let lab = EngineLab::new().await;
    let (vm, job) = lab.engine.create_vm(CreateVm { start: None, ..request() }).await.unwrap();
    lab.done(job).await;
    lab.sim.fail_at(Some(0));
    lab.failed(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    lab.sim.fail_at(None);
    let figures = Figures::of(&lab, Whose::Own(ALICE)).await;
    assert_eq!(figures.values("sandbox_failures", "start-failed"), [1.0]);
    assert_eq!(figures.values("sandbox_failures", ""), [1.0]);
    assert!(figures.values("sandbox_starts", "").is_empty());
}
