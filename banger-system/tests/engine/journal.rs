//! The fields of journal entries.

use banger_domain::{guest_end::Ended, lifecycle::State, vm::Lifetime};
use banger_system::engine::request::{ForkVm, Start, Stop};
use tracing::Instrument;

use super::{
    engine_lab::{ALICE, EngineLab},
    entries::{Entries, Entry},
};

fn has(entry: &Entry, fields: &[(&str, &str)]) -> bool {
    fields.iter().all(|(name, value)| entry.get(*name).is_some_and(|found| found == value))
}

#[tokio::test]
async fn every_entry_of_a_request_has_its_fields() {
    let entries = Entries::default();
    // This runtime has one thread.
    let _collecting = tracing::subscriber::set_default(entries.subscriber());
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    entries.take();
    let call = tracing::error_span!("call", uid = ALICE.0, operation = "Stop");
    let job = lab.engine.stop_vm(vm, Stop::default()).instrument(call).await.unwrap();
    lab.done(job).await;
    let (vm_text, job_text) = (vm.to_string(), job.to_string());
    let all = entries.take();
    let of_job: Vec<&Entry> = all.iter().filter(|entry| has(entry, &[("job", &job_text)])).collect();
    for message in ["started a job", "finished a job"] {
        assert!(of_job.iter().any(|entry| has(entry, &[("message", message)])), "{message}: {all:#?}");
    }
    for entry in of_job {
        let fields = [
            ("uid", "1000"),
            ("operation", "Stop"),
            ("vm", &vm_text),
            ("kind", "vm-stop"),
            ("owner", "1000"),
        ];
        assert!(has(entry, &fields), "{entry:?}");
    }
    // What happens by itself is of the sandbox, and of no request.
    let ended = all.iter().find(|entry| has(entry, &[("message", "the VMM has ended")])).unwrap();
    assert!(has(ended, &[("vm", &vm_text), ("owner", "1000")]), "{ended:?}");
    assert!(!ended.contains_key("uid"), "{ended:?}");
}

#[tokio::test]
async fn a_start_is_logged_with_its_job_and_its_sandbox() {
    let entries = Entries::default();
    let _collecting = tracing::subscriber::set_default(entries.subscriber());
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    entries.take();
    let job = lab.engine.start_vm(vm, Start::default()).await.unwrap();
    lab.done(job).await;
    let all = entries.take();
    let launched = all.iter().find(|entry| has(entry, &[("message", "started a VMM")])).unwrap();
    assert!(has(launched, &[("vm", &vm.to_string()), ("job", &job.to_string())]), "{launched:?}");
    // Nobody asked over the bus.
    assert!(!launched.contains_key("uid"));
}

#[tokio::test]
async fn the_life_of_a_fork_is_logged_with_its_own_sandbox() {
    let entries = Entries::default();
    let _collecting = tracing::subscriber::set_default(entries.subscriber());
    let mut lab = EngineLab::new().await;
    let parent = lab.running().await;
    lab.done(lab.engine.stop_vm(parent, Stop::default()).await.unwrap()).await;
    let fork = ForkVm { count: 1, names: Vec::new(), snapshot: None, lifetime: Lifetime::Persistent };
    let (children, job) = lab.engine.fork_vm(parent, fork).await.unwrap();
    lab.done(job).await;
    lab.done(lab.engine.start_vm(children[0], Start::default()).await.unwrap()).await;
    entries.take();
    lab.sim.end_process(children[0], Ended::Failed("killed:9".to_owned()));
    lab.until(children[0], |state| state == Some(State::Failed)).await;
    let all = entries.take();
    let ended = all.iter().find(|entry| has(entry, &[("message", "the VMM has ended")])).unwrap();
    assert!(has(ended, &[("vm", &children[0].to_string()), ("owner", "1000")]), "{ended:?}");
    assert!(!ended.contains_key("job") && !ended.contains_key("uid"), "{ended:?}");
}
