//! Makes a frozen guest that continues from a capture different from it, before anything in it runs on: random numbers,
//! time and token, and for a copy its whole identity ([`identity`], [`ssh`], [`network`]).
//!
//! The token changes last, so that the host can repeat everything with the old one, or with the new one if only the
//! answer was lost. If a step fails, the guest stays frozen, and the host destroys it.

use std::{fs, io};

use banger_proto::{
    causes::without_codes,
    guest::{
        FailureKind, Frame, Rejuvenation,
        config::GuestFile,
        rejuvenation::{GENERATION_PATH, Identity, is_id},
    },
};
use rustix::mount::{UnmountFlags, unmount};

use crate::{
    apply, boot, connections,
    conversation::{Guest, refuse},
    entropy, freezer, identity, log, network,
    port::Port,
    ssh, unmanaged_interface,
};

const MACHINE_ID: &str = "/etc/machine-id";
/// A second place of the machine id in images without systemd, or with an old D-Bus; often a link to the first.
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";

/// Serves the request.
pub fn serve(port: &mut Port, guest: &Guest, rejuvenation: Rejuvenation) -> io::Result<()> {
    if !freezer::is_frozen() {
        return refuse(port, FailureKind::BadRequest, "the guest is not frozen");
    }
    serve_frozen(port, guest, rejuvenation, apply)
}

fn serve_frozen(
    port: &mut Port,
    guest: &Guest,
    rejuvenation: Rejuvenation,
    apply: impl FnOnce(&Rejuvenation) -> Result<(), String>,
) -> io::Result<()> {
    if let Err(message) = check(&rejuvenation) {
        return refuse(port, FailureKind::BadRequest, message);
    }
    match apply(&rejuvenation) {
        Ok(()) => {
            guest.token.replace(rejuvenation.token);
            port.send(&Frame::Done).map(drop)
        }
        Err(problem) => refuse(port, FailureKind::Other, &problem),
    }
}

fn check(rejuvenation: &Rejuvenation) -> Result<(), &'static str> {
    if !is_id(&rejuvenation.token) {
        return Err("the token is not valid");
    }
    match &rejuvenation.identity {
        Some(identity) if !is_id(&identity.machine_id) => Err("the machine id is not valid"),
        Some(identity) if !is_id(&identity.generation) => Err("the generation is not valid"),
        _ => Ok(()),
    }
}

fn apply(rejuvenation: &Rejuvenation) -> Result<(), String> {
    entropy::reseed(&rejuvenation.entropy).map_err(failed("seed the random number generator"))?;
    boot::set_time(rejuvenation.unix_usec).map_err(failed("set the clock"))?;
    let Some(identity) = &rejuvenation.identity else { return Ok(()) };
    rustix::system::sethostname(identity.hostname.as_bytes())
        .map_err(|error| failed("set the host name")(error.into()))?;
    write_files("/", identity)?;
    let Some(new) = &identity.network else { return Ok(()) };
    let name = network::renew(new).map_err(failed("set up the network"))?;
    let interface = unmanaged_interface::Interface { name: &name, mac: new.network.mac };
    none(unmanaged_interface::apply("/", "/", &interface))?;
    // Connections of the old address are dropped by the host in any case.
    if let Err(error) = connections::end_orphaned() {
        log::error(&format!("inherited connections end only by a timeout: {error}"));
    }
    Ok(())
}

/// Writes what is in files of the guest, and has its ssh server read them.
fn write_files(root: &str, identity: &Identity) -> Result<(), String> {
    let network = identity.network.as_ref().map(|new| &new.network);
    none(apply::files(root, &identity::files(&identity.hostname, &identity.names, network)))?;
    for path in [MACHINE_ID, DBUS_MACHINE_ID] {
        set_machine_id(root, path, &identity.machine_id).map_err(failed("set the machine id"))?;
    }
    if let Some(settings) = &identity.ssh {
        none(ssh::apply(root, root, settings))?;
        ssh::reload(root);
    }
    let generation = format!("{}\n", identity.generation);
    let file = GuestFile { path: GENERATION_PATH.to_owned(), mode: 0o644, content: generation };
    apply::write(root, &file).map_err(failed("write the generation"))
}

/// Sets a machine id that exists. Programs that run keep the one that they have read.
fn set_machine_id(root: &str, path: &str, id: &str) -> io::Result<()> {
    let host_path = format!("{}{path}", root.trim_end_matches('/'));
    // A link leads to the other path.
    if !fs::symlink_metadata(&host_path).is_ok_and(|found| found.is_file()) {
        return Ok(());
    }
    let file = GuestFile { path: path.to_owned(), mode: 0o444, content: format!("{id}\n") };
    match apply::write(root, &file) {
        // systemd mounts a file over it if /etc could not be written.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            unmount(&*host_path, UnmountFlags::DETACH)?;
            apply::write(root, &file)
        }
        written => written,
    }
}

fn none(problems: Vec<String>) -> Result<(), String> {
    problems.into_iter().next().map_or(Ok(()), |problem| Err(without_codes(&problem)))
}

fn failed(what: &str) -> impl Fn(io::Error) -> String {
    move |error| without_codes(&format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{os::unix::net::UnixStream, path::Path};

    use banger_proto::guest::{
        Decoder,
        config::{Entropy, GuestSsh},
    };

    use super::*;
    use crate::test_host::{Host, TOKEN, guest};

    const ID: &str = "fedcba9876543210fedcba9876543210";

    fn new_identity() -> Identity {
        Identity {
            hostname: "copy".into(),
            names: vec!["copy.vm".into(), "copy".into()],
            machine_id: ID.into(),
            generation: ID.into(),
            network: None,
            ssh: Some(GuestSsh {
                host_key: "secret\n".into(),
                host_key_public: "public".into(),
                authorized_keys: vec!["key".into()],
            }),
        }
    }

    fn rejuvenation(identity: Option<Identity>) -> Rejuvenation {
        Rejuvenation { entropy: Entropy([[1; 32], [2; 32]]), unix_usec: 7, token: ID.into(), identity }
    }

    /// Returns the answer to a request in a frozen guest, and whether the guest knows the new token then.
    fn served(
        rejuvenation: Rejuvenation,
        apply: impl FnOnce(&Rejuvenation) -> Result<(), String>,
    ) -> (Frame, bool) {
        let (mut host, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let guest = guest();
        serve_frozen(&mut Port::new(theirs.into()), &guest, rejuvenation, apply).unwrap();
        let mut decoder = Decoder::default();
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut host, &mut bytes).unwrap();
        decoder.push(&bytes);
        let hello = |token| banger_proto::guest::hello::HostHello::new([1; 16], token).unwrap();
        let verdicts = [ID, TOKEN].map(|token| guest.token.judge(&hello(token)));
        assert_ne!(verdicts[0], verdicts[1], "exactly one token is right");
        (decoder.next_frame().unwrap().unwrap(), verdicts[0] == banger_proto::guest::hello::Verdict::Welcome)
    }

    #[test]
    fn the_token_changes_once_everything_else_has() {
        let (answer, is_new) = served(rejuvenation(Some(new_identity())), |_| Ok(()));
        assert_eq!((answer, is_new), (Frame::Done, true));
        let (answer, is_new) = served(rejuvenation(None), |_| Err("cannot set the clock".into()));
        let Frame::Failed(failure) = answer else { panic!("{answer:?}") };
        assert_eq!((failure.message.as_str(), is_new), ("cannot set the clock", false));
    }

    #[test]
    fn invalid_values_are_refused_before_anything_changes() {
        let with = |change: fn(&mut Identity)| {
            let mut identity = new_identity();
            change(&mut identity);
            rejuvenation(Some(identity))
        };
        for (invalid, expect) in [
            (Rejuvenation { token: "short".into(), ..rejuvenation(None) }, "the token is not valid"),
            (with(|identity| identity.machine_id = "x\n".into()), "the machine id is not valid"),
            (with(|identity| identity.generation.clear()), "the generation is not valid"),
        ] {
            let (answer, is_new) = served(invalid, |_| panic!("it was applied"));
            let Frame::Failed(failure) = answer else { panic!("{answer:?}") };
            assert_eq!((failure.message.as_str(), failure.kind), (expect, FailureKind::BadRequest));
            assert!(!is_new);
        }
    }

    #[test]
    fn a_guest_that_runs_is_left_alone() {
        let mut host = Host::new();
        assert_eq!(host.greet(TOKEN), Ok(true));
        host.send(&Frame::Rejuvenate(Box::new(rejuvenation(None))));
        let Frame::Failed(failure) = host.next() else { panic!() };
        assert_eq!(failure.message, "the guest is not frozen");
    }

    fn read(root: &Path, path: &str) -> String {
        fs::read_to_string(root.join(path.trim_start_matches('/'))).unwrap()
    }

    #[test]
    fn the_files_of_a_copy_have_its_identity() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for directory in ["etc/ssh", "var/lib/dbus", "run"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("etc/machine-id"), "old\n").unwrap();
        std::os::unix::fs::symlink("/etc/machine-id", root.join("var/lib/dbus/machine-id")).unwrap();
        for _ in 0..2 {
            write_files(root.to_str().unwrap(), &new_identity()).unwrap();
        }
        assert_eq!(read(root, "/etc/hostname"), "copy\n");
        assert!(read(root, "/etc/hosts").contains("\tcopy.vm copy\n"));
        assert_eq!(read(root, MACHINE_ID), format!("{ID}\n"));
        assert!(fs::symlink_metadata(root.join("var/lib/dbus/machine-id")).unwrap().is_symlink());
        assert_eq!(read(root, GENERATION_PATH), format!("{ID}\n"));
        assert_eq!(read(root, "/etc/ssh/ssh_host_ed25519_key"), "secret\n");
    }

    #[test]
    fn an_image_without_a_machine_id_gets_none() {
        let root = tempfile::tempdir().unwrap();
        let identity = Identity { ssh: None, ..new_identity() };
        write_files(root.path().to_str().unwrap(), &identity).unwrap();
        assert!(!root.path().join("etc/machine-id").exists());
    }
}
