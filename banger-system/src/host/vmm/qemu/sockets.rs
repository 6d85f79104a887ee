//! QEMU's sockets: one for control, and one for each channel to the agent. The service makes them, they belong to
//! root, and QEMU inherits them listening.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt, net::UnixListener},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use banger_domain::{id::VmId, resource::Paths, stream};
use tokio::net::UnixStream;

use super::{
    args::{self, CHANNELS},
    channel_path,
    qmp::Qmp,
};
use crate::{
    host::vmm::files,
    ports::{
        FromHost as _,
        guest_link::{Channel, Error, Result},
        vmm,
    },
};

const QMP_SOCKET: &str = "qmp.sock";
/// How long the VMM may take to accept a connection.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Sockets {
    paths: Paths,
    /// The stream that was given out last, by sandbox.
    turns: Mutex<HashMap<VmId, Arc<tokio::sync::Mutex<usize>>>>,
}

impl Sockets {
    pub fn new(paths: Paths) -> Self {
        Self { paths, turns: Mutex::default() }
    }

    /// Makes the directory of a sandbox's sockets. Leftovers of an earlier boot are removed.
    pub fn make_directory(&self, vm: VmId) -> vmm::Result<()> {
        let directory = self.paths.socket_dir(vm);
        self.remove(vm)?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|error| vmm::Error::os(format!("make {}", directory.display()), error))
    }

    /// Makes the listening sockets of a sandbox in its directory.
    pub fn bind(&self, vm: VmId) -> vmm::Result<Vec<(String, OwnedFd)>> {
        let directory = self.paths.socket_dir(vm);
        let os = |error| vmm::Error::os(format!("create the sockets in {}", directory.display()), error);
        let listen = |path: &Path| UnixListener::bind(path).map(OwnedFd::from).map_err(os);
        let mut sockets = vec![(args::QMP.to_owned(), listen(&directory.join(QMP_SOCKET))?)];
        for index in 0..CHANNELS {
            sockets.push((args::channel_name(index), listen(&channel_path(&directory, index))?));
        }
        Ok(sockets)
    }

    /// Connects to the agent over a channel that the VMM has accepted.
    pub async fn connect(&self, vm: VmId, channel: Channel) -> Result<UnixStream> {
        let directory = self.paths.socket_dir(vm);
        let purpose = match channel {
            Channel::Control => return connect(&channel_path(&directory, 0)).await,
            Channel::Stream(purpose) => purpose,
        };
        let turn = self.turn(vm);
        let mut turn = turn.lock().await;
        let mut qmp = self.control(vm).await?;
        let busy = qmp.connected_chardevs().await?;
        // The first channel is not a stream.
        let is_held = |stream| busy.contains(&args::channel_name(1 + stream));
        let stream = stream::choose(purpose, CHANNELS - 1, *turn, is_held).ok_or(Error::NoFreeStream)?;
        *turn = stream;
        let index = 1 + stream;
        let stream = connect(&channel_path(&directory, index)).await?;
        // The kernel accepts a connection before the VMM does, even one that the VMM will never accept: only the
        // VMM's own list counts.
        let taken = async {
            while !qmp.connected_chardevs().await?.contains(&args::channel_name(index)) {
                tokio::task::yield_now().await;
            }
            Ok(stream)
        };
        tokio::time::timeout(ACCEPT_TIMEOUT, taken).await.map_err(|_| Error::Timeout {
            what: "opening a channel to the guest".to_owned(),
            after: ACCEPT_TIMEOUT,
        })?
    }

    /// Connects to the control socket.
    pub async fn control(&self, vm: VmId) -> vmm::Result<Qmp> {
        Qmp::connect(&self.paths.socket_dir(vm).join(QMP_SOCKET)).await
    }

    pub fn remove(&self, vm: VmId) -> vmm::Result<()> {
        let directory = self.paths.socket_dir(vm);
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(&vm);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(vmm::Error::os(format!("remove {}", directory.display()), error))
            }
            _ => Ok(()),
        }
    }

    pub fn found(&self) -> vmm::Result<Vec<VmId>> {
        files::socket_dirs(&self.paths)
    }

    fn turn(&self, vm: VmId) -> Arc<tokio::sync::Mutex<usize>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(vm).or_default())
    }
}

async fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path)
        .await
        .map_err(|error| Error::Unavailable { message: format!("cannot reach the guest's agent: {error}") })
}
