//! Each boot of a guest is configured once, also if the service ends in the middle of it.

use banger_domain::{id::VmId, lifecycle::State};
use banger_system::engine::request::{Start, Stop};

use super::engine_lab::{EngineLab, request};

impl EngineLab {
    /// Returns the token of a VM's boot.
    fn token(&self, vm: VmId) -> String {
        self.engine.vm(vm).unwrap().vm.token.as_str().to_owned()
    }

    /// Returns the token that a guest was configured with.
    fn configured_token(&self, vm: VmId) -> Option<String> {
        self.sim.configured(vm).map(|config| config.token)
    }
}

#[tokio::test(start_paused = true)]
async fn each_boot_has_a_configuration_of_its_own() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let view = lab.engine.vm(vm).unwrap();
    let first = lab.sim.configured(vm).unwrap();
    assert_eq!(first.hostname, view.vm.spec.hostname.as_str());
    assert_eq!(first.token, lab.token(vm));
    assert!(first.network.is_some() && first.work_disk.is_some());

    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    let second = lab.configured_token(vm).unwrap();
    assert_eq!(second, lab.token(vm));
    assert_ne!(second, first.token);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ends_before_the_guest_is_configured_configures_it_later() {
    let mut lab = EngineLab::new().await;
    lab.sim.silence_guests(true);
    let (vm, _) = lab.engine.create_vm(request()).await.unwrap();
    lab.until(vm, |state| state == Some(State::Running)).await;
    let token = lab.token(vm);
    assert_eq!(lab.configured_token(vm), None);

    lab.tasks.abort_all().await;
    lab.sim.silence_guests(false);
    let lab = lab.restart().await;
    lab.wait_until("the guest is ready", |lab| lab.engine.vm(vm).unwrap().vm.is_ready()).await;
    assert_eq!(lab.configured_token(vm).unwrap(), token);
}

#[tokio::test(start_paused = true)]
async fn a_configured_guest_keeps_its_configuration_over_a_restart_of_the_service() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let before = lab.sim.configured(vm);
    let lab = lab.restart().await;
    lab.wait_until("the guest is ready", |lab| lab.engine.vm(vm).unwrap().vm.is_ready()).await;
    assert_eq!(lab.sim.configured(vm), before);
    assert_eq!(lab.configured_token(vm).unwrap(), lab.token(vm));
}
