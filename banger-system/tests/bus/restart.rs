//! Restart policies over a real bus: from the option of a creation to a sandbox that comes back.

use banger_domain::lifecycle::Reason;
use banger_proto::bus::{ErrorName, names::action};
use banger_system::ports::supervisor::Ended;

use crate::private_bus::{ALICE, Answer, Service, is_possible, options, refused, require, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_set_shown_changed_and_followed() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let vm = alice.create("box", options([("restart", "on-failure".into())])).await;
    let autostart = async || bool::try_from(alice.property(&vm, "Autostart").await.unwrap()).unwrap();
    assert_eq!((alice.text(&vm, "Restart").await.as_str(), autostart().await), ("on-failure", false));
    assert!(!service.sim.wants_service_at_boot());

    let boot = alice.text(&vm, "BootId").await;
    let id = service.engine.vms()[0].vm.id;
    service.sim.end_process(id, Ended::Failed("killed:9".to_owned()));
    until(|| async {
        let view = service.engine.vm(id).unwrap();
        view.is_ready() && view.vm.boot_id != boot
    })
    .await;
    let reason = alice.text(&vm, "StateReason").await;
    assert_eq!(reason, "restarted:vmm-exit:killed:9");
    assert_eq!(Reason::parse(&reason).to_string(), reason);

    let change = options([("restart", "always".into()), ("autostart", true.into())]);
    alice.call::<()>(&vm, "Configure", &(change,)).await.unwrap();
    assert_eq!((alice.text(&vm, "Restart").await.as_str(), autostart().await), ("always", true));
    assert!(service.sim.wants_service_at_boot());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_starts_sandboxes_needs_the_right_to_start_them() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let vm = alice.create("box", options([])).await;
    for wrong in [
        options([("restart", "sometimes".into())]),
        options([("restart", true.into())]),
        options([("autostart", "yes".into())]),
        options([("restart", "always".into()), ("lifetime", "caller".into())]),
        options([("autostart", true.into()), ("lifetime", "until-stopped".into())]),
    ] {
        refused(alice.begin_create("other", wrong).await, ErrorName::InvalidOption);
    }
    assert_eq!(service.engine.vms().len(), 1);
    service.polkit.answer(ALICE, action::VM_RUN, Answer::No);
    let configure =
        async |option, value| alice.call::<()>(&vm, "Configure", &(options([(option, value)]),)).await;
    for (option, value) in
        [("restart", "always".into()), ("restart", "on-failure".into()), ("autostart", true.into())]
    {
        refused(configure(option, value).await, ErrorName::AccessDenied);
    }
    configure("restart", "no".into()).await.unwrap();
    configure("autostart", false.into()).await.unwrap();
    refused(configure("restart", "unless-stopped".into()).await, ErrorName::InvalidOption);
}
