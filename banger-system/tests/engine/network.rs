//! The network of sandboxes, on a host in memory.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use banger_domain::{
    dns::table::Client,
    egress::{Egress, preset::Presets},
    id::Uid,
    limits::Exceeded,
    net::{
        nic::Nat,
        port::{MAX_PORTS, Port},
    },
};
use banger_proto::size::Bytes;
use banger_system::engine::{
    Settings,
    error::Error,
    request::{Configure, CreateVm, EgressChange, Start, Stop, StopMode},
    view::Event,
};

use tokio::task::JoinSet;

use crate::engine_lab::{ALICE, BOB, EngineLab, TIMEOUT, request};

fn port(text: &str) -> Port {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn nat_changes_while_a_sandbox_runs_and_is_kept() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let nat = |on: Egress| Configure { egress: Some(on.into()), ..Configure::default() };
    lab.engine.configure_vm(vm, nat(Egress::Everything)).await.unwrap();
    assert_eq!(lab.sim.nic(vm).unwrap().nat, Nat::On);
    assert_eq!(lab.engine.vm(vm).unwrap().vm.spec.egress, Egress::Everything);
    let lab = lab.restart().await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.spec.egress, Egress::Everything);
    lab.engine.configure_vm(vm, nat(Egress::Nothing)).await.unwrap();
    assert_eq!(lab.sim.nic(vm).unwrap().nat, Nat::Off);

    lab.sim.fail_at(Some(0));
    assert!(lab.engine.configure_vm(vm, nat(Egress::Everything)).await.is_err());
    assert_eq!(lab.engine.vm(vm).unwrap().vm.spec.egress, Egress::Nothing);
}

#[tokio::test(start_paused = true)]
async fn sizes_change_while_a_sandbox_is_down_within_its_owners_quota() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let more = Configure {
        vcpus: Some(1),
        memory: Some(Bytes::gib(2)),
        disk_size: Some(Bytes::gib(16)),
        ..Configure::default()
    };
    assert!(matches!(lab.engine.configure_vm(vm, more.clone()).await, Err(Error::NotStopped { .. })));
    let stop = Stop { timeout: None, mode: StopMode::Graceful };
    lab.done(lab.engine.stop_vm(vm, stop).await.unwrap()).await;
    lab.engine.configure_vm(vm, more).await.unwrap();
    let spec = &lab.engine.vm(vm).unwrap().vm.spec.clone();
    assert_eq!((spec.vcpus, spec.memory, spec.disk_size), (1, Bytes::gib(2), Bytes::gib(16)));
    for wrong in [
        Configure { vcpus: Some(0), ..Configure::default() },
        Configure { disk_size: Some(Bytes::gib(1 << 20)), ..Configure::default() },
    ] {
        assert!(matches!(lab.engine.configure_vm(vm, wrong).await, Err(Error::Limit(_))));
    }
    assert_eq!(lab.engine.vm(vm).unwrap().vm.spec, *spec);
}

#[tokio::test(start_paused = true)]
async fn a_port_is_published_for_one_sandbox_until_it_is_unpublished() {
    let lab = EngineLab::new().await;
    let (one, two) = (lab.running().await, {
        let (vm, job) = lab.engine.create_vm(CreateVm { owner: BOB, ..request() }).await.unwrap();
        lab.done(job).await;
        vm
    });
    let web = port("loopback/tcp/8080/80");
    assert_eq!(lab.engine.publish_port(one, web).await.unwrap(), web);
    assert_eq!(lab.engine.publish_port(one, web).await.unwrap(), web);
    for (vm, wish) in [(one, "all/tcp/8080/81"), (two, "loopback/tcp/8080/80"), (two, "all/tcp/8080/80")] {
        let refused = lab.engine.publish_port(vm, port(wish)).await;
        assert!(matches!(refused, Err(Error::Taken { .. })), "{refused:?}");
    }
    assert_eq!(lab.sim.nic(one).unwrap().ports, [web].into());
    assert_eq!(lab.sim.nic(two).unwrap().ports, [].into());
    let chosen = lab.engine.publish_port(two, port("loopback/tcp/0/80")).await.unwrap();
    assert_ne!(chosen.host, 0);

    assert!(matches!(lab.engine.unpublish_port(two, web).await, Err(Error::InvalidOption { .. })));
    lab.engine.unpublish_port(one, web).await.unwrap();
    assert_eq!(lab.sim.nic(one).unwrap().ports, [].into());
    lab.engine.publish_port(two, web).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_has_at_most_the_allowed_number_of_ports() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    for host in 1..=u16::try_from(MAX_PORTS).unwrap() {
        lab.engine.publish_port(vm, port(&format!("loopback/tcp/{}/80", 2000 + host))).await.unwrap();
    }
    let one_more = lab.engine.publish_port(vm, port("loopback/tcp/9000/80")).await;
    assert!(matches!(one_more, Err(Error::InvalidOption { .. })), "{one_more:?}");
    assert_eq!(lab.sim.nic(vm).unwrap().ports.len(), MAX_PORTS);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_fails_at_any_step_leaves_all_as_it_was() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let (view, nic) = (lab.engine.vm(vm).unwrap(), lab.sim.nic(vm).unwrap());
    let change = || Configure { egress: Some(Egress::Everything.into()), ..Configure::default() };
    let mut failed = 0;
    loop {
        lab.sim.fail_at(Some(failed));
        let changed = lab.engine.configure_vm(vm, change()).await;
        lab.sim.fail_at(None);
        if changed.is_ok() {
            break;
        }
        assert_eq!(lab.sim.nic(vm).unwrap(), nic, "step {failed}");
        assert_eq!(lab.engine.vm(vm).unwrap().vm, view.vm, "step {failed}");
        failed += 1;
    }
    // Steps: the interface, and the row.
    assert_eq!(failed, 2);
    assert_eq!(lab.sim.nic(vm).unwrap().nat, Nat::On);
}

#[tokio::test(start_paused = true)]
async fn a_port_that_something_else_took_is_told_and_may_be_published_again() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let (web, api) = (port("loopback/tcp/8080/80"), port("loopback/tcp/8081/81"));
    for port in [web, api] {
        lab.engine.publish_port(vm, port).await.unwrap();
    }
    lab.sim.occupy_port(8080, true);
    let lab = lab.restart().await;
    let blocked = async || {
        let view = lab.engine.vm(vm).unwrap();
        (view.vm.spec.ports.clone(), view.blocked_ports.clone())
    };
    while blocked().await.1.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(blocked().await, ([web, api].into(), [web].into()));
    assert_eq!(lab.sim.nic(vm).unwrap().ports, [api].into());

    // Other changes still work.
    let nat = Configure { egress: Some(Egress::Everything.into()), ..Configure::default() };
    lab.engine.configure_vm(vm, nat).await.unwrap();
    assert_eq!(lab.sim.nic(vm).unwrap().ports, [api].into());
    let refused = lab.engine.publish_port(vm, web).await;
    assert!(matches!(refused, Err(Error::Taken { .. })), "{refused:?}");
    lab.sim.occupy_port(8080, false);
    lab.engine.publish_port(vm, web).await.unwrap();
    assert_eq!(blocked().await, ([web, api].into(), [].into()));
    assert_eq!(lab.sim.nic(vm).unwrap().ports, [web, api].into());
}

#[tokio::test(start_paused = true)]
async fn a_port_that_something_else_took_may_be_given_up() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let web = port("loopback/tcp/8080/80");
    lab.engine.publish_port(vm, web).await.unwrap();
    lab.sim.occupy_port(8080, true);
    let lab = lab.restart().await;
    while lab.engine.vm(vm).unwrap().blocked_ports.is_empty() {
        tokio::task::yield_now().await;
    }
    lab.engine.unpublish_port(vm, web).await.unwrap();
    let view = lab.engine.vm(vm).unwrap();
    assert!(view.vm.spec.ports.is_empty() && view.blocked_ports.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_created_with_its_ports_or_not_at_all() {
    let mut lab = EngineLab::new().await;
    let wish =
        |ports: &[&str]| CreateVm { ports: ports.iter().map(|text| port(text)).collect(), ..request() };
    let (one, job) = lab.engine.create_vm(wish(&["loopback/tcp/8080/80", "all/udp/0/53"])).await.unwrap();
    lab.done(job).await;
    let ports = lab.engine.vm(one).unwrap().vm.spec.ports.clone();
    assert_eq!(lab.sim.nic(one).unwrap().ports, ports);
    assert!(ports.contains(&port("loopback/tcp/8080/80")) && ports.len() == 2, "{ports:?}");
    assert!(ports.iter().all(|port| port.host != 0), "{ports:?}");

    // A port that is taken is refused before anything is made.
    let before = lab.sim.alive();
    lab.sim.occupy_port(9000, true);
    for taken in ["loopback/tcp/8080/80", "loopback/tcp/9000/80"] {
        let refused = lab.engine.create_vm(wish(&["all/tcp/0/1", taken])).await;
        assert!(matches!(refused, Err(Error::Taken { .. })), "{refused:?}");
    }
    assert_eq!((lab.sim.alive(), lab.engine.vms().len()), (before.clone(), 1));

    // One that is taken after that check makes the creation fail, which removes what was made.
    let (two, job) = lab.engine.create_vm(wish(&["loopback/tcp/7000/80"])).await.unwrap();
    lab.sim.occupy_port(7000, true);
    assert!(lab.failed(job).await.contains("port 7000/tcp"), "{two}");
    lab.until(two, |state| state.is_none()).await;
    assert_eq!(lab.sim.alive(), before);
}

fn policy(words: &[&str]) -> Egress {
    Egress::parse(words).unwrap()
}

/// An engine whose host has a preset and a ceiling.
async fn with_ceiling(ceiling: &[&str]) -> EngineLab {
    EngineLab::with(settings_with(ceiling)).await
}

fn settings_with(ceiling: &[&str]) -> impl FnOnce(&mut Settings) {
    let mut presets = Presets::default();
    presets.add("git".parse().unwrap(), vec!["git.example:443".parse().unwrap()]);
    let ceiling = policy(ceiling);
    |settings| {
        settings.presets = presets.into();
        settings.egress_ceiling = ceiling;
    }
}

#[tokio::test(start_paused = true)]
async fn an_egress_policy_changes_while_a_sandbox_runs_and_is_kept() {
    let lab = with_ceiling(&["all"]).await;
    let vm = lab.running().await;
    lab.engine.set_egress(vm, policy(&["git", "10.0.0.0/8"])).await.unwrap();
    let nic = lab.sim.nic(vm).unwrap();
    assert!(nic.is_restricted());
    assert!(!nic.allowed.ports_of(&"git.example".parse().unwrap()).is_empty(), "the preset is there");
    let published = lab.engine.vm(vm).unwrap().vm.spec.egress.clone();
    assert_eq!(published, policy(&["git", "10.0.0.0/8"]), "presets stay presets");

    let unknown = lab.engine.set_egress(vm, policy(&["nope"])).await.unwrap_err();
    assert_eq!(unknown.to_string(), "there is no egress preset nope; there are git");
    assert_eq!(lab.engine.vm(vm).unwrap().vm.spec.egress, published);
    lab.engine.set_egress(vm, Egress::Nothing).await.unwrap();
    assert!(!lab.sim.nic(vm).unwrap().is_restricted());
}

#[tokio::test(start_paused = true)]
async fn the_name_server_follows_the_egress_policy_of_a_running_sandbox() {
    let lab = with_ceiling(&["all"]).await;
    let vm = lab.running().await;
    for change in [policy(&["a.example"]), policy(&["b.example"]), Egress::Everything, Egress::Nothing] {
        lab.engine.set_egress(vm, change.clone()).await.unwrap();
        let nic = lab.sim.nic(vm).unwrap();
        let follows = async {
            loop {
                let names = lab.sim.names();
                if let Some(Client::Guest(guest)) =
                    names.as_ref().and_then(|names| names.client(nic.v4.into()))
                    && (guest.nat, &guest.allowed) == (nic.nat, &nic.allowed)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(tokio::time::timeout(TIMEOUT, follows).await.is_ok(), "{change}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_beyond_the_ceiling() {
    let lab = with_ceiling(&["git", "*.example.com"]).await;
    let vm = lab.running().await;
    let check = async |words: &[&str], expect: Option<&str>| {
        let refused = lab.engine.set_egress(vm, policy(words)).await.err().map(|error| error.to_string());
        let ceiling = "/etc/banger/config.toml has egress = git *.example.com";
        let expect = expect.map(|what| format!("no sandbox of this host may reach {what}: {ceiling}"));
        assert_eq!(refused, expect, "{words:?}");
    };
    check(&["git"], None).await;
    check(&["a.example.com:443"], None).await;
    check(&["all"], Some("everything, which NAT and image builds need")).await;
    check(&["git", "other.example"], Some("other.example")).await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.spec.egress, policy(&["a.example.com:443"]));
    let request = CreateVm { egress: Egress::Everything, ..request() };
    assert!(matches!(lab.engine.create_vm(request).await, Err(Error::BeyondCeiling { .. })));
    // Clients ask before they have an image, with a size that none fits into.
    let too_small = async |words: &[&str]| {
        let wanted = CreateVm { root_size: Some(Bytes(1)), egress: policy(words), ..self::request() };
        lab.engine.create_vm(wanted).await.unwrap_err()
    };
    assert!(matches!(too_small(&["all"]).await, Error::BeyondCeiling { .. }));
    assert!(too_small(&["pakages"]).await.to_string().starts_with("there is no egress preset pakages"));
    assert!(matches!(too_small(&["git"]).await, Error::Limit(Exceeded::Smaller { .. })));
}

#[tokio::test(start_paused = true)]
async fn entries_change_one_after_the_other_in_the_service() {
    let lab = with_ceiling(&["git", "*.in.example"]).await;
    let vm = lab.running().await;
    let change = |allow: &[&str], deny: &[&str]| {
        let change = EgressChange::Entries { allow: policy(allow), deny: policy(deny) };
        lab.engine.set_egress(vm, change)
    };
    let names: Vec<String> = (0..20).map(|n| format!("host{n}.in.example")).collect();
    let mut changes = JoinSet::new();
    for name in &names {
        let (engine, allow) = (lab.engine.clone(), policy(&[name]));
        let change = EgressChange::Entries { allow, deny: Egress::Nothing };
        changes.spawn(async move { engine.set_egress(vm, change).await });
    }
    while let Some(changed) = changes.join_next().await {
        changed.unwrap().unwrap();
    }
    let now = || lab.engine.vm(vm).unwrap().vm.spec.egress.clone();
    assert_eq!(now(), policy(&names.iter().map(String::as_str).collect::<Vec<_>>()), "one was lost");

    let missing = change(&["git"], &["other.example"]).await.unwrap_err().to_string();
    assert!(missing.starts_with("other.example is not in the egress policy"), "{missing}");
    assert!(matches!(change(&["other.test"], &[]).await, Err(Error::BeyondCeiling { .. })));
    assert_eq!(now().entries().len(), 20, "a change that is refused changes nothing");
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    change(&["git"], &all).await.unwrap();
    assert_eq!(now(), policy(&["git"]));
    let nets: Vec<String> = (0..65).map(|n| format!("10.0.0.{n}")).collect();
    let nets = policy(&nets.iter().map(String::as_str).collect::<Vec<_>>());
    let many = lab.engine.set_egress(vm, nets).await.unwrap_err().to_string();
    assert_eq!(many, "an egress policy can have at most 64 networks, not 65");
}

#[tokio::test(start_paused = true)]
async fn a_lower_ceiling_applies_to_running_sandboxes_when_the_service_comes_back() {
    let lab = with_ceiling(&["all"]).await;
    let (some, all) = (lab.running().await, lab.running().await);
    lab.engine.set_egress(some, policy(&["git", "a.example", "10.0.0.0/8"])).await.unwrap();
    lab.engine.set_egress(all, Egress::Everything).await.unwrap();
    let lab = lab.restart_with(settings_with(&["git", "10.1.0.0/16"])).await;
    let has_gone = |vm| {
        let nic = lab.sim.nic(vm).unwrap();
        nic.nat == Nat::Off && nic.allowed.ports_of(&"a.example".parse().unwrap()).is_empty()
    };
    lab.wait_until("the ceiling applies", |_| has_gone(some) && has_gone(all)).await;
    for vm in [some, all] {
        let allowed = lab.sim.nic(vm).unwrap().allowed;
        assert!(!allowed.ports_of(&"git.example".parse().unwrap()).is_empty(), "the rest stays");
        assert_eq!(
            allowed.nets().iter().map(|(net, _)| net.to_string()).collect::<Vec<_>>(),
            ["10.1.0.0/16"]
        );
    }
    let cut = |vm| lab.engine.egress_cut(&lab.engine.vm(vm).unwrap().vm.spec.egress);
    assert_eq!(cut(some), ["a.example", "10.0.0.0/8"]);
    assert_eq!(cut(all), ["all"]);
    // What is beyond the ceiling can be removed, and nothing of the kind added.
    let less = EgressChange::Entries { allow: Egress::Nothing, deny: policy(&["10.0.0.0/8"]) };
    lab.engine.set_egress(some, less).await.unwrap();
    assert_eq!(lab.engine.vm(some).unwrap().vm.spec.egress, policy(&["git", "a.example"]));
}

#[tokio::test(start_paused = true)]
async fn presets_that_are_gone_are_in_doctor_for_their_owner() {
    let lab = with_ceiling(&["all"]).await;
    let vm = lab.running().await;
    let name = lab.engine.vm(vm).unwrap().vm.name.to_string();
    let messages = async |lab: &EngineLab, caller| {
        let checks = lab.engine.diagnose(caller).await;
        let checks = checks.into_iter().filter(|check| check.name == "egress presets");
        checks.map(|check| check.message).collect::<Vec<_>>()
    };
    lab.engine.set_egress(vm, policy(&["git", "a.example"])).await.unwrap();
    assert_eq!(messages(&lab, ALICE).await, Vec::<String>::new());

    let lines = Lines::default();
    let _guard = lines.follow();
    let lab = lab
        .restart_with(|settings| {
            let mut presets = Presets::default();
            presets.add_fault("cannot use /etc/banger/egress.d/git.toml: reason".to_owned());
            settings.presets = presets.into();
            settings.egress_ceiling = policy(&["work", "a.example"]);
        })
        .await;
    let fault = "cannot use /etc/banger/egress.d/git.toml: reason".to_owned();
    let of_ceiling =
        "egress in /etc/banger/config.toml needs the preset work, which does not exist".to_owned();
    let of_sandbox = format!("the egress policy of {name} needs the preset git, which does not exist");
    assert_eq!(messages(&lab, BOB).await, [fault.clone(), of_ceiling.clone()]);
    for caller in [ALICE, Uid::ROOT] {
        let expect = [fault.clone(), of_ceiling.clone(), of_sandbox.clone()];
        assert_eq!(messages(&lab, caller).await, expect);
    }
    let logged = || lines.matching("needs a preset that does not exist");
    lab.wait_until("the reattachment logs it", |_| logged() == 1).await;
    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(logged(), 2);
}

/// What the service logs on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn follow(&self) -> impl Drop + use<> {
        let lines = self.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || lines.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn matching(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).lines().filter(|line| line.contains(text)).count()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_is_announced_and_a_flood_of_them_is_bounded() {
    let mut lab = with_ceiling(&["all"]).await;
    let vm = lab.running().await;
    lab.engine.set_egress(vm, policy(&["git"])).await.unwrap();
    let network = lab.sim.ports().network;
    for n in 0..1000 {
        network.deny(vm, &format!("host{n}.example").parse().unwrap());
    }
    let mut announced = Vec::new();
    let wait = async {
        while let Some(event) = lab.events.recv().await {
            if let Event::EgressDenied { view, destination } = event {
                assert_eq!(view.vm.id, vm);
                announced.push(destination.host());
                if announced.len() == 8 {
                    break;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    assert_eq!(announced[0], "host0.example");
    tokio::time::sleep(Duration::from_millis(300)).await;
    while let Some(event) = lab.events.try_recv() {
        assert!(!matches!(event, Event::EgressDenied { .. }), "more than the bound");
    }
    assert_eq!(lab.engine.egress_log(vm).denied().len(), 128);
}
