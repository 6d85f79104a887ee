//! What the engine does with the network of machines, on a host in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod house;

use banger_domain::net::{
    nic::Nat,
    port::{MAX_PORTS, Port},
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{Configure, CreateVm, Manner, Stop},
    },
    ports,
};

use crate::house::{BOB, House, request};

fn port(text: &str) -> Port {
    text.parse().unwrap()
}

#[tokio::test]
async fn nat_changes_while_a_machine_runs_and_is_kept() {
    let house = House::new().await;
    let vm = house.running().await;
    let nat = |on| Configure { nat: Some(on), ..Configure::default() };
    house.engine.configure_vm(vm, nat(Nat::On)).await.unwrap();
    assert_eq!(house.sim.nic(vm).unwrap().nat, Nat::On);
    assert_eq!(house.engine.vm(vm).unwrap().vm.spec.nat, Nat::On);
    let house = house.restarted().await;
    assert_eq!(house.engine.vm(vm).unwrap().vm.spec.nat, Nat::On);
    house.engine.configure_vm(vm, nat(Nat::Off)).await.unwrap();
    assert_eq!(house.sim.nic(vm).unwrap().nat, Nat::Off);

    house.sim.fail_at(Some(0));
    assert!(house.engine.configure_vm(vm, nat(Nat::On)).await.is_err());
    assert_eq!(house.engine.vm(vm).unwrap().vm.spec.nat, Nat::Off);
}

#[tokio::test]
async fn sizes_change_while_a_machine_is_down_within_its_owners_share() {
    let house = House::new().await;
    let vm = house.running().await;
    let more = Configure {
        vcpus: Some(1),
        memory: Some(Bytes::gib(2)),
        disk_size: Some(Bytes::gib(16)),
        ..Configure::default()
    };
    assert!(matches!(house.engine.configure_vm(vm, more).await, Err(Error::NotStopped { .. })));
    let stop = Stop { timeout: None, manner: Manner::Clean };
    house.done(house.engine.stop_vm(vm, stop).await.unwrap()).await;
    house.engine.configure_vm(vm, more).await.unwrap();
    let spec = &house.engine.vm(vm).unwrap().vm.spec.clone();
    assert_eq!((spec.vcpus, spec.memory, spec.disk_size), (1, Bytes::gib(2), Bytes::gib(16)));
    for wrong in [
        Configure { vcpus: Some(0), ..Configure::default() },
        Configure { disk_size: Some(Bytes::gib(1 << 20)), ..Configure::default() },
    ] {
        assert!(matches!(house.engine.configure_vm(vm, wrong).await, Err(Error::Limit(_))));
    }
    assert_eq!(house.engine.vm(vm).unwrap().vm.spec, *spec);
}

#[tokio::test]
async fn a_port_leads_to_one_machine_until_it_is_taken_back() {
    let house = House::new().await;
    let (one, two) = (house.running().await, {
        let (vm, job) = house.engine.create_vm(CreateVm { owner: BOB, ..request() }).await.unwrap();
        house.done(job).await;
        vm
    });
    let web = port("loopback/tcp/8080/80");
    assert_eq!(house.engine.publish_port(one, web).await.unwrap(), web);
    assert_eq!(house.engine.publish_port(one, web).await.unwrap(), web);
    for (vm, wish) in [(one, "all/tcp/8080/81"), (two, "loopback/tcp/8080/80"), (two, "all/tcp/8080/80")] {
        let refused = house.engine.publish_port(vm, port(wish)).await;
        assert!(matches!(refused, Err(Error::Port(ports::Error::Taken { .. }))), "{refused:?}");
    }
    assert_eq!(house.sim.nic(one).unwrap().ports, [web].into());
    assert_eq!(house.sim.nic(two).unwrap().ports, [].into());
    let chosen = house.engine.publish_port(two, port("loopback/tcp/0/80")).await.unwrap();
    assert_ne!(chosen.host, 0);

    assert!(matches!(house.engine.unpublish_port(two, web).await, Err(Error::InvalidOption { .. })));
    house.engine.unpublish_port(one, web).await.unwrap();
    assert_eq!(house.sim.nic(one).unwrap().ports, [].into());
    house.engine.publish_port(two, web).await.unwrap();
}

#[tokio::test]
async fn no_machine_has_more_ports_than_it_may() {
    let house = House::new().await;
    let vm = house.running().await;
    for host in 1..=u16::try_from(MAX_PORTS).unwrap() {
        house.engine.publish_port(vm, port(&format!("loopback/tcp/{}/80", 2000 + host))).await.unwrap();
    }
    let one_more = house.engine.publish_port(vm, port("loopback/tcp/9000/80")).await;
    assert!(matches!(one_more, Err(Error::InvalidOption { .. })), "{one_more:?}");
    assert_eq!(house.sim.nic(vm).unwrap().ports.len(), MAX_PORTS);
}

#[tokio::test]
async fn a_change_that_fails_at_any_step_leaves_all_as_it_was() {
    let house = House::new().await;
    let vm = house.running().await;
    let (view, nic) = (house.engine.vm(vm).unwrap(), house.sim.nic(vm).unwrap());
    let change = || Configure { nat: Some(Nat::On), ..Configure::default() };
    let mut failed = 0;
    loop {
        house.sim.fail_at(Some(failed));
        let changed = house.engine.configure_vm(vm, change()).await;
        house.sim.fail_at(None);
        if changed.is_ok() {
            break;
        }
        assert_eq!(house.sim.nic(vm).unwrap(), nic, "step {failed}");
        assert_eq!(house.engine.vm(vm).unwrap().vm, view.vm, "step {failed}");
        failed += 1;
    }
    // The interface, and the row.
    assert_eq!(failed, 2);
    assert_eq!(house.sim.nic(vm).unwrap().nat, Nat::On);
}

#[tokio::test]
async fn a_port_that_something_else_took_is_told_and_may_be_published_again() {
    let house = House::new().await;
    let vm = house.running().await;
    let (web, api) = (port("loopback/tcp/8080/80"), port("loopback/tcp/8081/81"));
    for port in [web, api] {
        house.engine.publish_port(vm, port).await.unwrap();
    }
    house.sim.occupy_port(8080, true);
    let house = house.restarted().await;
    let blocked = async || {
        let view = house.engine.vm(vm).unwrap();
        (view.vm.spec.ports.clone(), view.blocked_ports.clone())
    };
    while blocked().await.1.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(blocked().await, ([web, api].into(), [web].into()));
    assert_eq!(house.sim.nic(vm).unwrap().ports, [api].into());

    // What else changes is not hindered by it.
    let nat = Configure { nat: Some(Nat::On), ..Configure::default() };
    house.engine.configure_vm(vm, nat).await.unwrap();
    assert_eq!(house.sim.nic(vm).unwrap().ports, [api].into());
    let refused = house.engine.publish_port(vm, web).await;
    assert!(matches!(refused, Err(Error::Port(ports::Error::Taken { .. }))), "{refused:?}");
    house.sim.occupy_port(8080, false);
    house.engine.publish_port(vm, web).await.unwrap();
    assert_eq!(blocked().await, ([web, api].into(), [].into()));
    assert_eq!(house.sim.nic(vm).unwrap().ports, [web, api].into());
}

#[tokio::test]
async fn a_port_that_something_else_took_may_be_given_up() {
    let house = House::new().await;
    let vm = house.running().await;
    let web = port("loopback/tcp/8080/80");
    house.engine.publish_port(vm, web).await.unwrap();
    house.sim.occupy_port(8080, true);
    let house = house.restarted().await;
    while house.engine.vm(vm).unwrap().blocked_ports.is_empty() {
        tokio::task::yield_now().await;
    }
    house.engine.unpublish_port(vm, web).await.unwrap();
    let view = house.engine.vm(vm).unwrap();
    assert!(view.vm.spec.ports.is_empty() && view.blocked_ports.is_empty());
}
