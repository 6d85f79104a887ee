//! The host's list of virtual machines.

use banger_domain::lifecycle::State;
use banger_system::engine::request::{Stop, StopMode};

use super::engine_lab::EngineLab;

#[tokio::test(start_paused = true)]
async fn sandboxes_are_listed_when_they_start_and_when_the_service_does() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let listed = |lab: &EngineLab| lab.sim.machines().iter().any(|(listed, pid)| *listed == vm && *pid > 0);
    lab.wait_until("the sandbox is listed", listed).await;

    lab.sim.lose_machines(false);
    let lab = lab.restart().await;
    lab.wait_until("the sandbox is listed again", listed).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_without_the_list_runs_sandboxes() {
    let lab = EngineLab::new().await;
    lab.sim.lose_machines(true);
    let vm = lab.running().await;
    assert_eq!(lab.state(vm), State::Running);
    lab.done(lab.engine.stop_vm(vm, Stop { timeout: None, mode: StopMode::Graceful }).await.unwrap()).await;
    assert_eq!(lab.state(vm), State::Stopped);
}
