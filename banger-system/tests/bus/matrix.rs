//! Who may call what: every method and every property, as each kind of caller, on each kind of object. The result is the
//! table in docs/authorisation.md. Set `BANGER_BLESS` to write it again, and then read the difference.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use banger_proto::bus::{
    ErrorName,
    names::{
        IMAGE_INTERFACE as IMAGE, INTERFACES, JOB_INTERFACE as JOB, KERNEL_INTERFACE as KERNEL,
        MANAGER_INTERFACE as MANAGER, MANAGER_PATH, SERVICE, VM_INTERFACE as VM, action,
    },
};
use futures_util::{StreamExt, future::join_all};
use zbus::{
    Fd, Message, MessageStream, OwnedObjectPath, OwnedVariant, Structure, Variant,
    message::{Flags, Type},
};

use crate::private_bus::{
    Answer, BOB, CAROL, Client, Group, Service, Session, decide, is_possible, null, options, require,
    within_timeout,
};

/// What a row calls a member on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Whose {
    Nothing,
    Own,
    Others,
    Shared,
}

use Whose::{Nothing, Others, Own, Shared};

/// The object of a call.
struct Object {
    path: String,
    is_shared: bool,
}

impl Object {
    fn id(&self) -> Variant<'static> {
        self.path.rsplit('/').next().unwrap().to_owned().into()
    }
}

type Arguments = fn(&Object) -> Vec<Variant<'static>>;

/// A call of a method. Its arguments are wrong where they can be, so that an authorised call fails without an effect.
struct Row {
    interface: &'static str,
    member: &'static str,
    /// What the call asks for, where this changes who may.
    asks: &'static str,
    whose: &'static [Whose],
    arguments: Arguments,
}

const fn row(
    interface: &'static str,
    member: &'static str,
    asks: &'static str,
    whose: &'static [Whose],
    arguments: Arguments,
) -> Row {
    Row { interface, member, asks, whose, arguments }
}

const ALONE: &[Whose] = &[Nothing];
const OWNED: &[Whose] = &[Own, Others];
const SHAREABLE: &[Whose] = &[Own, Others, Shared];

const ROWS: &[Row] = &[
    row(MANAGER, "CreateVM", "", ALONE, |_| vec![new_name(), wrong()]),
    row(MANAGER, "CreateVM", "port 80", ALONE, |_| vec![new_name(), port_80()]),
    row(MANAGER, "GetVM", "", OWNED, |object| vec![object.id()]),
    row(MANAGER, "ListVMs", "", ALONE, |_| vec![none()]),
    row(MANAGER, "ListVMs", "all", ALONE, |_| vec![on("all")]),
    row(MANAGER, "ImportImage", "", ALONE, |_| vec![new_name(), files("rootfs"), wrong()]),
    row(MANAGER, "ImportImage", "shared", ALONE, |_| vec![new_name(), files("rootfs"), on("shared")]),
    row(MANAGER, "PullImage", "", ALONE, |_| vec![new_name(), wrong()]),
    row(MANAGER, "PullImage", "shared", ALONE, |_| vec![new_name(), on("shared")]),
    row(MANAGER, "PruneCache", "", ALONE, |_| vec![wrong()]),
    row(MANAGER, "GetImage", "", SHAREABLE, |object| vec![object.id()]),
    row(MANAGER, "ListImages", "", ALONE, |_| vec![none()]),
    row(MANAGER, "ListImages", "all", ALONE, |_| vec![on("all")]),
    row(MANAGER, "ImportKernel", "", ALONE, |_| vec![new_name(), files("kernel"), wrong()]),
    row(MANAGER, "ImportKernel", "shared", ALONE, |_| vec![new_name(), files("kernel"), on("shared")]),
    row(MANAGER, "PullKernel", "", ALONE, |_| vec![new_name(), wrong()]),
    row(MANAGER, "PullKernel", "shared", ALONE, |_| vec![new_name(), on("shared")]),
    row(MANAGER, "ListCatalog", "", ALONE, |_| vec![none()]),
    row(MANAGER, "RefreshCatalog", "", ALONE, |_| vec![wrong()]),
    row(MANAGER, "GetKernel", "", SHAREABLE, |object| vec![object.id()]),
    row(MANAGER, "ListKernels", "", ALONE, |_| vec![none()]),
    row(MANAGER, "ListKernels", "all", ALONE, |_| vec![on("all")]),
    row(MANAGER, "GetJob", "", OWNED, |object| vec![object.id()]),
    row(MANAGER, "ListJobs", "", ALONE, |_| vec![none()]),
    row(MANAGER, "ListJobs", "all", ALONE, |_| vec![on("all")]),
    row(MANAGER, "Subscribe", "", ALONE, |_| vec![none()]),
    row(MANAGER, "Subscribe", "all owners", ALONE, |_| vec![on("all-owners")]),
    row(MANAGER, "Unsubscribe", "", ALONE, |_| vec![]),
    row(MANAGER, "GetPermissions", "", ALONE, |_| vec![]),
    row(MANAGER, "GetLimits", "", ALONE, |_| vec![]),
    row(MANAGER, "Diagnose", "", ALONE, |_| vec![none()]),
    row(MANAGER, "Repair", "", ALONE, |_| vec![wrong()]),
    row(MANAGER, "OpenMetrics", "", ALONE, |_| vec![none()]),
    row(MANAGER, "OpenMetrics", "all", ALONE, |_| vec![on("all")]),
    row(VM, "Start", "", OWNED, |_| vec![wrong()]),
    row(VM, "Stop", "", OWNED, |_| vec![wrong()]),
    row(VM, "Restart", "", OWNED, |_| vec![wrong()]),
    row(VM, "Kill", "", OWNED, |_| vec![99i32.into()]),
    row(VM, "Pause", "", OWNED, |_| vec![]),
    row(VM, "Unpause", "", OWNED, |_| vec![]),
    row(VM, "Suspend", "", OWNED, |_| vec![wrong()]),
    row(VM, "Resume", "", OWNED, |_| vec![wrong()]),
    row(VM, "Delete", "", OWNED, |_| vec![wrong()]),
    row(VM, "Rename", "", OWNED, |_| vec![no_name()]),
    row(VM, "SetLifetime", "", OWNED, |_| vec!["for a while".into()]),
    row(VM, "Configure", "less", OWNED, |_| vec![options([("nat", false.into())]).into()]),
    row(VM, "Configure", "more", OWNED, |_| vec![options([("vcpus", 2u32.into())]).into()]),
    row(VM, "SetEgress", "less", OWNED, |_| vec![words(&[])]),
    row(VM, "SetEgress", "more", OWNED, |_| vec![words(&["no-such-preset"])]),
    row(VM, "ChangeEgress", "less", OWNED, |_| vec![words(&[]), words(&["not.there"])]),
    row(VM, "ChangeEgress", "more", OWNED, |_| vec![words(&["a.example"]), words(&["not.there"])]),
    row(VM, "Commit", "", OWNED, |_| vec![new_name(), wrong()]),
    row(VM, "Fork", "", OWNED, |_| vec![1u32.into(), wrong()]),
    row(VM, "CreateSnapshot", "", OWNED, |_| vec![new_name(), wrong()]),
    row(VM, "ListSnapshots", "", OWNED, |_| vec![]),
    row(VM, "RestoreSnapshot", "", OWNED, |_| vec![no_name(), none()]),
    row(VM, "DeleteSnapshot", "", OWNED, |_| vec![no_name()]),
    row(VM, "PublishPort", "", OWNED, |_| vec!["tcp".into(), 80u16.into(), 8080u16.into(), wrong()]),
    row(VM, "PublishPort", "port 80", OWNED, |_| vec!["tcp".into(), 80u16.into(), 80u16.into(), none()]),
    row(VM, "UnpublishPort", "", OWNED, |_| vec!["tcp".into(), 9u16.into()]),
    row(VM, "OpenAgent", "", OWNED, |_| vec![wrong()]),
    row(VM, "OpenStream", "", OWNED, |_| vec!["telnet".into(), none()]),
    row(VM, "OpenLog", "", OWNED, |_| vec!["diary".into(), none()]),
    row(VM, "GetHistory", "", OWNED, |_| vec![none()]),
    row(IMAGE, "Delete", "", SHAREABLE, |_| vec![wrong()]),
    row(IMAGE, "Rename", "", SHAREABLE, |_| vec![no_name()]),
    row(IMAGE, "SetShared", "", SHAREABLE, |object| vec![object.is_shared.into()]),
    row(IMAGE, "Tag", "", SHAREABLE, |_| vec![no_name(), none()]),
    row(IMAGE, "Export", "", SHAREABLE, |_| vec![Fd::from(null()).into(), wrong()]),
    row(KERNEL, "Delete", "", SHAREABLE, |_| vec![wrong()]),
    row(KERNEL, "Rename", "", SHAREABLE, |_| vec![no_name()]),
    row(JOB, "Cancel", "", OWNED, |_| vec![]),
    row(JOB, "Wait", "", OWNED, |_| vec![0u64.into()]),
];

fn none() -> Variant<'static> {
    options([]).into()
}

/// An option that no method has.
fn wrong() -> Variant<'static> {
    on("nonsense")
}

fn on(option: &'static str) -> Variant<'static> {
    options([(option, true.into())]).into()
}

fn new_name() -> Variant<'static> {
    "new".into()
}

/// Entries of an egress policy.
fn words(entries: &[&str]) -> Variant<'static> {
    entries.iter().map(ToString::to_string).collect::<Vec<String>>().into()
}

fn no_name() -> Variant<'static> {
    "No Name".into()
}

fn port_80() -> Variant<'static> {
    options([("ports", vec![("tcp", 80u16, 80u16, "loopback")].into())]).into()
}

fn files(role: &'static str) -> Variant<'static> {
    HashMap::from([(role, Fd::from(null()))]).into()
}

/// How long a polkit that hangs is waited for.
const SHORT: Duration = Duration::from_millis(200);

/// What polkit does for the caller of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Authority {
    /// It decides by the packaged policy, without an agent that could ask a person.
    Decides,
    /// The same, and an administrator closes each dialog.
    Cancelled,
    /// It does not answer.
    Hangs,
    /// It is not on the bus.
    Absent,
}

/// A kind of caller.
struct Column {
    title: &'static str,
    uid: u32,
    session: Session,
    group: Group,
    authority: Authority,
}

const fn column(title: &'static str, session: Session, group: Group, authority: Authority) -> Column {
    Column { title, uid: CAROL, session, group, authority }
}

const COLUMNS: &[Column] = &[
    column("member", Session::Elsewhere, Group::Member, Authority::Decides),
    column("active", Session::Active, Group::Other, Authority::Decides),
    column("inactive", Session::Inactive, Group::Other, Authority::Decides),
    column("ssh", Session::Elsewhere, Group::Other, Authority::Decides),
    Column { uid: 0, ..column("root", Session::Elsewhere, Group::Other, Authority::Decides) },
    column("dialog cancelled", Session::Elsewhere, Group::Other, Authority::Cancelled),
    column("polkit hangs", Session::Elsewhere, Group::Member, Authority::Hangs),
    column("no polkit", Session::Elsewhere, Group::Member, Authority::Absent),
];

/// A service with objects of the caller, of another user and of everybody.
struct Lab {
    _service: Service,
    caller: Client,
    objects: HashMap<(&'static str, Whose), String>,
    /// A client for each user, to see all objects.
    eyes: Vec<Client>,
    flags: Flags,
    /// How many properties of an object are read. Where polkit hangs, each one takes as long as its timeout.
    properties: usize,
}

impl Lab {
    async fn new(column: &Column) -> Self {
        let mut service = Service::start().await;
        let caller = service.client(column.uid).await;
        let other = service.client(BOB).await;
        for action in action::ALL {
            service.polkit.answer(column.uid, action, Answer::Yes);
        }
        let mut objects = HashMap::new();
        for (client, whose) in [(&caller, Own), (&other, Others)] {
            let (vm, job) = client.create_with("box", "start", false).await.unwrap();
            client.done(&job).await;
            objects.insert((VM, whose), vm);
            objects.insert((IMAGE, whose), client.import_image("mine", options([])).await);
            objects.insert((KERNEL, whose), import_kernel(client).await);
        }
        for (interface, member, name) in
            [(IMAGE, "GetImage", "debian-bookworm"), (KERNEL, "GetKernel", "debian")]
        {
            let found: OwnedObjectPath = caller.call(MANAGER_PATH, member, &(name,)).await.unwrap();
            objects.insert((interface, Shared), found.to_string());
        }
        objects.insert((MANAGER, Nothing), MANAGER_PATH.to_owned());
        if column.authority == Authority::Hangs {
            service.polkit_timeout = SHORT;
            service.crash().await;
            service.restart().await;
        }
        for (client, whose) in [(&caller, Own), (&other, Others)] {
            let job = stop(client, &objects[&(VM, whose)]).await;
            objects.insert((JOB, whose), job.to_string());
        }
        let eyes = vec![caller.clone(), other, service.client(0).await];
        let mut flags = Flags::empty();
        for action in action::ALL {
            let decided: Answer = decide(action, column.session, column.group).into();
            let answer = match (column.authority, decided) {
                (Authority::Hangs, _) => Answer::Silence,
                (Authority::Cancelled, Answer::NoAgent) => Answer::Dismissed,
                _ => decided,
            };
            service.polkit.answer(column.uid, action, answer);
        }
        match column.authority {
            Authority::Absent => service.polkit.clone().stop().await,
            Authority::Cancelled => flags = Flags::ALLOW_INTERACTIVE_AUTH,
            Authority::Decides | Authority::Hangs => {}
        }
        let properties = if column.authority == Authority::Hangs { 1 } else { usize::MAX };
        Self { _service: service, caller, objects, eyes, flags, properties }
    }

    fn object(&self, interface: &'static str, member: &str, whose: Whose) -> Object {
        let interface = match (interface, member) {
            (MANAGER, "GetVM") => VM,
            (MANAGER, "GetImage") => IMAGE,
            (MANAGER, "GetKernel") => KERNEL,
            (MANAGER, "GetJob") => JOB,
            _ => interface,
        };
        Object { path: self.objects[&(interface, whose)].clone(), is_shared: whose == Shared }
    }

    /// Calls the method of a row, and returns the word for what came of it.
    async fn try_row(&self, row: &Row, whose: Whose) -> &'static str {
        let object = self.object(row.interface, row.member, whose);
        let path = if row.interface == MANAGER { MANAGER_PATH } else { &object.path };
        let before = self.everything().await;
        let word = self.send(path, row.interface, row.member, (row.arguments)(&object)).await;
        if word != "yes" {
            assert_eq!(before, self.everything().await, "{} changed something: {word}", row.member);
        }
        word
    }

    /// Reads every property of an object, and returns the word for what came of it: one for all of them.
    async fn try_properties(&self, interface: &'static str, whose: Whose) -> &'static str {
        let path = &self.objects[&(interface, whose)];
        let mut words = BTreeSet::new();
        for name in named(&introspection(interface), "property").into_iter().take(self.properties) {
            let arguments = vec![interface.into(), name.into()];
            words.insert(self.send(path, "org.freedesktop.DBus.Properties", "Get", arguments).await);
        }
        assert_eq!(words.len(), 1, "{interface} of {whose:?}: {words:?}");
        words.pop_first().unwrap()
    }

    async fn send(
        &self,
        path: &str,
        interface: &str,
        member: &str,
        arguments: Vec<Variant<'static>>,
    ) -> &'static str {
        let call = Message::method_call(path, member)
            .destination(SERVICE)
            .interface(interface)
            .with_flags(self.flags);
        let call = match arguments.is_empty() {
            true => call.build(&()),
            false => {
                let body =
                    arguments.into_iter().fold(Structure::builder(), |body, value| body.append_field(value));
                call.build(&body.build().unwrap())
            }
        };
        let call = call.unwrap();
        let serial = call.primary_header().serial_num();
        let mut replies = MessageStream::from(&self.caller.connection);
        self.caller.connection.send(&call).await.unwrap();
        within_timeout(async {
            loop {
                let reply = replies.next().await.unwrap().unwrap();
                if reply.header().reply_serial() == Some(serial) {
                    return word_for(&reply, member);
                }
            }
        })
        .await
    }

    /// Returns all objects of all users as text.
    async fn everything(&self) -> String {
        type Objects = HashMap<OwnedObjectPath, BTreeMap<String, BTreeMap<String, OwnedVariant>>>;
        let mut text = String::new();
        for eye in &self.eyes {
            let member = "org.freedesktop.DBus.ObjectManager.GetManagedObjects";
            let objects: Objects = eye.call(MANAGER_PATH, member, &()).await.unwrap();
            let sorted: BTreeMap<String, _> =
                objects.into_iter().map(|(path, object)| (path.to_string(), object)).collect();
            let _ = writeln!(text, "{sorted:?}");
        }
        text
    }
}

/// Stops a sandbox. A polkit that answers may need longer than the short time that one has that hangs.
async fn stop(client: &Client, vm: &str) -> OwnedObjectPath {
    loop {
        match client.call(vm, "Stop", &(options([]),)).await {
            Err(failure) if failure.name == "HostNotReady" => {}
            stopped => return stopped.unwrap(),
        }
    }
}

async fn import_kernel(client: &Client) -> String {
    let files = HashMap::from([("kernel", Fd::from(null()))]);
    let job: OwnedObjectPath =
        client.call(MANAGER_PATH, "ImportKernel", &("mine", files, options([]))).await.unwrap();
    OwnedObjectPath::try_from(client.done(&job).await["kernel"].clone()).unwrap().to_string()
}

/// Returns the word of the table for a reply. An error that says nothing about the caller's rights is a yes.
fn word_for(reply: &Message, member: &str) -> &'static str {
    if reply.message_type() == Type::MethodReturn {
        return "yes";
    }
    let name = reply.header().error_name().unwrap().to_string();
    let is = |expected: ErrorName| name == expected.as_str();
    let hides = [ErrorName::NoSuchVm, ErrorName::NoSuchImage, ErrorName::NoSuchKernel, ErrorName::NoSuchJob];
    match () {
        () if is(ErrorName::AccessDenied) => "no",
        () if is(ErrorName::InteractiveAuthorizationRequired) => "password",
        () if is(ErrorName::HostNotReady) => "later",
        () if member.starts_with("Get") && hides.into_iter().any(is) => "hidden",
        () if name.starts_with("dev.banger.") || is(ErrorName::InvalidArgs) => "yes",
        () => panic!("{member}: {name}"),
    }
}

#[test]
fn the_matrix_has_every_method() {
    let mut methods = BTreeSet::new();
    for interface in INTERFACES {
        methods.extend(named(&introspection(interface), "method").into_iter().map(|name| (interface, name)));
    }
    let rows: BTreeSet<_> = ROWS.iter().map(|row| (row.interface, row.member.to_owned())).collect();
    assert_eq!(rows, methods);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_answers_each_caller_as_documented() {
    require!(is_possible(), "root and dbus-daemon");
    let mut lines: BTreeMap<usize, (String, Vec<&str>)> = BTreeMap::new();
    // Each has a bus of its own.
    let columns = join_all(COLUMNS.iter().map(async |column| {
        let lab = Lab::new(column).await;
        let mut cells = Vec::new();
        for row in ROWS {
            for whose in row.whose {
                cells.push((
                    title(row.interface, row.member, row.asks, *whose),
                    lab.try_row(row, *whose).await,
                ));
            }
        }
        for interface in INTERFACES {
            let whose = match interface {
                MANAGER => ALONE,
                IMAGE | KERNEL => SHAREABLE,
                _ => OWNED,
            };
            for whose in whose {
                let word = lab.try_properties(interface, *whose).await;
                cells.push((title(interface, "properties", "", *whose), word));
            }
        }
        cells
    }))
    .await;
    for (number, (title, word)) in columns.into_iter().flat_map(|cells| cells.into_iter().enumerate()) {
        lines.entry(number).or_insert_with(|| (title, Vec::new())).1.push(word);
    }
    check_page(&table(lines.into_values()));
}

fn title(interface: &str, member: &str, asks: &str, whose: Whose) -> String {
    let interface = interface.rsplit('.').next().unwrap().replace("Manager1", "Manager");
    let object = match whose {
        Nothing => "",
        Own => "own",
        Others => "another user's",
        Shared => "shared",
    };
    let member = if member == "properties" { "properties".to_owned() } else { format!("`{member}`") };
    format!("| {interface} | {member} | {object} | {asks} |")
}

fn table(lines: impl Iterator<Item = (String, Vec<&'static str>)>) -> String {
    let titles: Vec<&str> = COLUMNS.iter().map(|column| column.title).collect();
    let mut text = format!("| interface | member | object | asks for | {} |\n", titles.join(" | "));
    let _ = writeln!(text, "|---|---|---|---|{}", "---|".repeat(COLUMNS.len()));
    for (title, words) in lines {
        let _ = writeln!(text, "{title} {} |", words.join(" | "));
    }
    text
}

/// Compares the table with the one at the end of the page.
fn check_page(table: &str) {
    let path = directory().join("docs/authorisation.md");
    let page = fs::read_to_string(&path).unwrap();
    let start = page.find("| interface |").unwrap_or(page.len());
    if std::env::var_os("BANGER_BLESS").is_some() {
        fs::write(&path, page[..start].to_owned() + table).unwrap();
        return;
    }
    assert_eq!(&page[start..], table, "docs/authorisation.md is not what the service does");
}

/// Returns the names of all elements of this kind.
fn named(xml: &str, element: &str) -> Vec<String> {
    let start = format!("<{element} name=\"");
    xml.split(&start).skip(1).map(|part| part.split('"').next().unwrap().to_owned()).collect()
}

fn introspection(interface: &str) -> String {
    fs::read_to_string(directory().join("dbus/interfaces").join(format!("{interface}.xml"))).unwrap()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
