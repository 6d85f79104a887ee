//! A D-Bus client, like any program of a user.

use std::{collections::HashMap, os::fd::OwnedFd};

use banger_proto::bus::{
    ErrorName,
    names::{
        IMAGE_INTERFACE, JOB_INTERFACE, KERNEL_INTERFACE, MANAGER_INTERFACE, MANAGER_PATH, SERVICE,
        VM_INTERFACE,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use zbus::{
    Connection, DBusError, DynamicType, Message, OwnedObjectPath, OwnedVariant, Proxy, Type, Variant,
    proxy::MethodFlags,
};

use super::within_timeout;

#[derive(Clone)]
pub struct Client {
    pub connection: Connection,
}

/// An error reply: the last part of its name, and its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub name: String,
    pub message: String,
}

pub const GET: &str = "org.freedesktop.DBus.Properties.Get";
pub const GET_ALL: &str = "org.freedesktop.DBus.Properties.GetAll";
pub const SET: &str = "org.freedesktop.DBus.Properties.Set";

pub type Result<T> = std::result::Result<T, Failure>;
pub type Options = HashMap<&'static str, Variant<'static>>;

/// Options of a call.
pub fn options<const N: usize>(pairs: [(&'static str, Variant<'static>); N]) -> Options {
    HashMap::from(pairs)
}

impl Client {
    /// The unique name on the bus.
    pub fn name(&self) -> String {
        self.connection.unique_name().unwrap().to_string()
    }

    /// Calls a member and reads its reply. A member of another interface than the object's own is given with its
    /// interface.
    pub async fn call<R>(&self, path: &str, member: &str, body: &(impl Serialize + DynamicType)) -> Result<R>
    where
        R: DeserializeOwned + Type,
    {
        self.call_with(MethodFlags::empty(), path, member, body).await
    }

    /// Does the same, and allows a password dialog.
    pub async fn call_interactively<R>(
        &self,
        path: &str,
        member: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<R>
    where
        R: DeserializeOwned + Type,
    {
        self.call_with(MethodFlags::ALLOW_INTERACTIVE_AUTH, path, member, body).await
    }

    async fn call_with<R>(
        &self,
        flags: MethodFlags,
        path: &str,
        member: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<R>
    where
        R: DeserializeOwned + Type,
    {
        let (interface, member) = interface_and_member(path, member);
        let proxy = Proxy::new(&self.connection, SERVICE, path, interface).await.unwrap();
        match within_timeout(proxy.call_with_flags(member, flags, body)).await {
            Ok(reply) => Ok(reply.expect("a reply was asked for")),
            Err(zbus::Error::MethodError(name, message, _)) => Err(failure(&name, message.as_deref())),
            Err(zbus::Error::FDO(error)) => Err(failure(&error.name(), error.description())),
            Err(error) => panic!("{interface}.{member}: {error}"),
        }
    }

    /// Sends a call and does not wait for the reply.
    pub async fn send(&self, path: &str, member: &str, body: &(impl Serialize + DynamicType)) {
        let (interface, member) = interface_and_member(path, member);
        let call = Message::method_call(path, member).destination(SERVICE).interface(interface);
        self.connection.send(&call.build(body).unwrap()).await.unwrap();
    }

    /// Reads a property of an object.
    pub async fn property(&self, path: &str, name: &str) -> Result<OwnedVariant> {
        self.call(path, GET, &(interface_of(path), name)).await
    }

    /// Reads a property that is a string.
    pub async fn text(&self, path: &str, name: &str) -> String {
        String::try_from(self.property(path, name).await.unwrap()).unwrap()
    }

    /// Creates a sandbox, and waits for its job.
    pub async fn create(&self, name: &str, options: Options) -> String {
        let (vm, job) = self.begin_create(name, options).await.unwrap();
        self.done(&job).await;
        vm
    }

    /// Creates a sandbox with one option.
    pub async fn create_with(
        &self,
        name: &str,
        key: &'static str,
        value: impl Into<Variant<'static>>,
    ) -> Result<(String, String)> {
        self.begin_create(name, options([(key, value.into())])).await
    }

    pub async fn begin_create(&self, name: &str, options: Options) -> Result<(String, String)> {
        let (vm, job): (OwnedObjectPath, OwnedObjectPath) =
            self.call(MANAGER_PATH, "CreateVM", &(name, options)).await?;
        Ok((vm.to_string(), job.to_string()))
    }

    /// Waits for a job, which must succeed. Returns its data.
    pub async fn done(&self, job: &str) -> HashMap<String, OwnedVariant> {
        let (result, error, message, data) = self.wait(job).await;
        assert_eq!((result.as_str(), error.as_str(), message.as_str()), ("done", "", ""));
        data
    }

    /// Waits for a job.
    pub async fn wait(&self, job: &str) -> (String, String, String, HashMap<String, OwnedVariant>) {
        self.call(job, "Wait", &(0u64,)).await.unwrap()
    }

    /// Imports an image, waits for its job, and returns its path.
    pub async fn import_image(&self, name: &str, options: Options) -> String {
        let files = HashMap::from([("rootfs", zbus::Fd::from(null()))]);
        let job: OwnedObjectPath =
            self.call(MANAGER_PATH, "ImportImage", &(name, files, options)).await.unwrap();
        let made = self.done(&job).await;
        OwnedObjectPath::try_from(made["image"].clone()).unwrap().to_string()
    }
}

/// Returns a file that is open for reading.
pub fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn failure(name: &str, message: Option<&str>) -> Failure {
    Failure { name: last_part(name).to_owned(), message: message.unwrap_or_default().to_owned() }
}

/// Returns the interface of an object.
fn interface_of(path: &str) -> &'static str {
    match path.strip_prefix(MANAGER_PATH).and_then(|rest| rest.split('/').nth(1)) {
        Some("vm") => VM_INTERFACE,
        Some("image") => IMAGE_INTERFACE,
        Some("kernel") => KERNEL_INTERFACE,
        Some("job") => JOB_INTERFACE,
        _ => MANAGER_INTERFACE,
    }
}

fn interface_and_member<'m>(path: &str, member: &'m str) -> (&'m str, &'m str) {
    member.rsplit_once('.').unwrap_or((interface_of(path), member))
}

/// Returns the message of a call that must have failed with this error. Every message is one short line.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T>, name: ErrorName) -> String {
    let failure = result.unwrap_err();
    assert_eq!(failure.name, last_part(name.as_str()), "{}", failure.message);
    assert!(!failure.message.is_empty() && failure.message.len() <= 512, "{:?}", failure.message);
    assert!(!failure.message.contains(char::is_control), "{:?}", failure.message);
    failure.message
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap()
}
