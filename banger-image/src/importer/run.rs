//! The worker's conversation with the service.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    process::ExitCode,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use banger_jail::{message, walls};

use super::{
    Files, Meter,
    message::{Answer, Failure, Import, Order, Task},
    wall,
};

/// How often the worker says how far it is.
const PULSE: Duration = Duration::from_millis(100);

/// Does what the service orders on this socket. Whatever comes of it was said there.
pub fn run(socket: OwnedFd) -> ExitCode {
    let answer = match message::receive::<Order>(&socket) {
        // The service has changed its mind.
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some((order, files))) => obey(order, files, &socket),
        Err(error) => Answer::Failed(Failure::os("receive an order", error)),
    };
    match message::send(&socket, &answer, &[]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banger-import: cannot tell what came of it: {error}");
            ExitCode::FAILURE
        }
    }
}

fn obey(order: Order, files: Vec<OwnedFd>, socket: &OwnedFd) -> Answer {
    let walled = match &order.walls {
        Some(walls) => walls::enter(walls).map_err(|error| Failure::os("build the walls", error)),
        None => Ok(()),
    };
    if let Err(failure) = walled.and_then(|()| wall::close()) {
        return Answer::Failed(failure);
    }
    match order.task {
        Task::Probe => Answer::Probed(wall::probe()),
        Task::Import(order) => {
            let made = sort(&order, files)
                .and_then(|files| watched(socket, |meter| super::import(&order, files, meter)));
            made.map_or_else(Answer::Failed, Answer::Made)
        }
        Task::Export(order) => {
            let exported = pair(files).and_then(|(image, archive)| {
                super::take::writable(&archive, "the file for the archive")?;
                watched(socket, |meter| super::export::export(&order, image, &archive, meter))
            });
            exported.map_or_else(Answer::Failed, Answer::Exported)
        }
        Task::ModuleTree(order) => {
            let made = pair(files).and_then(|(archive, image)| {
                watched(socket, |meter| super::module_tree::make(&order, archive, &image, meter))
            });
            made.map_or_else(Answer::Failed, Answer::MadeTree)
        }
        Task::Take(order) => {
            let taken = pair(files).and_then(|(original, copy)| {
                watched(socket, |meter| super::take::take(&order, &original, &copy, meter))
            });
            taken.map_or_else(Answer::Failed, Answer::Taken)
        }
    }
}

/// Obeys an order about a file of a user's, in a process that goes on to be itself.
#[cfg(feature = "fixtures")]
pub fn obey_one(socket: &OwnedFd) {
    let meter = Meter::default();
    let answer = match message::receive::<Order>(socket) {
        Ok(Some((Order { task: Task::Take(order), .. }, files))) => pair(files)
            .and_then(|(original, copy)| super::take::take(&order, &original, &copy, &meter))
            .map_or_else(Answer::Failed, Answer::Taken),
        Ok(Some((Order { task: Task::ModuleTree(order), .. }, files))) => pair(files)
            .and_then(|(archive, image)| super::module_tree::make(&order, archive, &image, &meter))
            .map_or_else(Answer::Failed, Answer::MadeTree),
        _ => return,
    };
    // A test that has ended hears nothing.
    let _ = message::send(socket, &answer, &[]);
}

/// The files of an export, or of a copy.
fn pair(files: Vec<OwnedFd>) -> Result<(File, File), Failure> {
    match <[OwnedFd; 2]>::try_from(files) {
        Ok([image, archive]) => Ok((image.into(), archive.into())),
        Err(_) => Err(Failure::os("obey", io::Error::from(io::ErrorKind::InvalidData))),
    }
}

fn sort(order: &Import, files: Vec<OwnedFd>) -> Result<Files, Failure> {
    let mut files = files.into_iter().map(File::from);
    let (image, spool) = (files.next(), files.next());
    let archives: Vec<File> = files.collect();
    match (image, spool) {
        (Some(image), Some(spool)) if archives.len() == order.archives.len() => {
            Ok(Files { image, spool, archives })
        }
        _ => Err(Failure::os("obey", io::Error::from(io::ErrorKind::InvalidData))),
    }
}

/// Works, and says meanwhile how far that is.
fn watched<T>(socket: &OwnedFd, work: impl FnOnce(&Meter) -> Result<T, Failure>) -> Result<T, Failure> {
    let meter = Meter::default();
    thread::scope(|scope| {
        let (done, ends) = channel::<()>();
        let meter = &meter;
        let pulse = move || {
            let mut ended = false;
            // The last one counts everything.
            while !ended {
                ended = ends.recv_timeout(PULSE) != Err(RecvTimeoutError::Timeout);
                let (read, written) = meter.read_and_written();
                if message::send(socket, &Answer::Works { read, written }, &[]).is_err() {
                    // Nobody waits for it any more.
                    std::process::exit(1);
                }
            }
        };
        let pulse = thread::Builder::new().name("pulse".to_owned()).spawn_scoped(scope, pulse);
        pulse.map_err(|error| Failure::os("start a thread", error))?;
        let made = work(meter);
        drop(done);
        made
    })
}
