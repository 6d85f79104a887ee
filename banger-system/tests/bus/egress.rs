//! Egress policies over a real bus.

use banger_proto::bus::ErrorName;
use banger_system::ports::network::Network;

use crate::private_bus::{ALICE, BOB, Service, SignalRecorder, is_possible, options, refused, require};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_chooses_what_a_sandbox_reaches_and_hears_of_denials() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([("egress", vec!["B.example", "a.example:443"].into())])).await;
    let egress = async || Vec::<String>::try_from(alice.property(&vm, "Egress").await.unwrap()).unwrap();
    let nat = async || bool::try_from(alice.property(&vm, "Nat").await.unwrap()).unwrap();
    assert_eq!(
        (egress().await, nat().await),
        (vec!["a.example:443".to_owned(), "b.example".to_owned()], false)
    );

    alice.call::<()>(&vm, "SetEgress", &(vec!["10.0.0.0/8", "c.example"],)).await.unwrap();
    assert_eq!(egress().await, ["c.example", "10.0.0.0/8"]);
    for wrong in [vec!["*"], vec!["all", "c.example"], vec!["nope"], vec!["127.0.0.1"]] {
        refused(alice.call::<()>(&vm, "SetEgress", &(wrong,)).await, ErrorName::InvalidOption);
    }
    refused(
        bob.call::<()>(&vm, "SetEgress", &(vec!["all"],)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    assert_eq!(egress().await, ["c.example", "10.0.0.0/8"]);

    alice.call::<()>(&vm, "ChangeEgress", &(vec!["D.example"], vec!["10.0.0.0/8"])).await.unwrap();
    assert_eq!(egress().await, ["c.example", "d.example"]);
    for (allow, deny) in
        [(vec!["*"], vec![]), (vec![], vec!["nope"]), (vec!["e.example"], vec!["c.example:1"])]
    {
        refused(alice.call::<()>(&vm, "ChangeEgress", &(allow, deny)).await, ErrorName::InvalidOption);
    }
    refused(
        bob.call::<()>(&vm, "ChangeEgress", &(Vec::<String>::new(), vec!["c.example"])).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    assert_eq!(egress().await, ["c.example", "d.example"]);
    let cut = alice.property(&vm, "EgressCut").await.unwrap();
    assert_eq!(Vec::<String>::try_from(cut).unwrap(), Vec::<String>::new(), "there is no ceiling");
    let both = options([("egress", vec!["c.example"].into()), ("nat", true.into())]);
    refused(alice.begin_create("other", both).await, ErrorName::InvalidOption);

    let (mut hers, mut his) = (SignalRecorder::of(&alice).await, SignalRecorder::of(&bob).await);
    for client in [&alice, &bob] {
        client.call::<()>("/dev/banger/Manager1", "Subscribe", &(options([]),)).await.unwrap();
    }
    let id = alice.text(&vm, "Id").await.parse().unwrap();
    service.sim.deny(id, &"evil.example".parse().unwrap());
    let signals = hers.until(&vm, "EgressDenied").await;
    let body = signals.last().unwrap().message.body();
    assert_eq!(
        body.deserialize::<(String, u16, String)>().unwrap(),
        ("evil.example".to_owned(), 0, "dns".to_owned())
    );
    let rows = alice.property(&vm, "EgressDenials").await.unwrap();
    let rows = Vec::<(String, u16, String, u64, u64)>::try_from(rows).unwrap();
    assert_eq!((rows[0].0.as_str(), rows[0].3), ("evil.example", 1));

    let theirs = bob.create("theirs", options([("nat", true.into())])).await;
    let seen = his.until(&theirs, "VMNew").await;
    assert!(seen.iter().all(|signal| signal.signal != "EgressDenied"), "another user heard of it");
    alice.call::<()>(&vm, "SetEgress", &(vec!["all"],)).await.unwrap();
    assert!(nat().await);
    alice.call::<()>(&vm, "SetEgress", &(Vec::<String>::new(),)).await.unwrap();
    assert!(egress().await.is_empty() && !nat().await);
}
