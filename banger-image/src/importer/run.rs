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

use banger_jail::{jail, message};

use super::{
    Files, Meter, lockdown,
    message::{Answer, Failure, Import, Order, Task},
};

/// How often the worker reports its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Executes the order from this socket, and sends the result there.
pub fn run(socket: OwnedFd) -> ExitCode {
    let answer = match message::receive::<Order>(&socket) {
        // The service has cancelled the job.
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some((order, files))) => execute(order, files, &socket),
        Err(error) => Answer::Failed(Failure::os("receive an order", error)),
    };
    match message::send(&socket, &answer, &[]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banger-import: cannot send the result: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(order: Order, files: Vec<OwnedFd>, socket: &OwnedFd) -> Answer {
    let jailed = match &order.jail {
        Some(jail) => jail::enter(jail).map_err(|error| Failure::os("build the jail", error)),
        None => Ok(()),
    };
    if let Err(failure) = jailed.and_then(|()| lockdown::enter()) {
        return Answer::Failed(failure);
    }
    match order.task {
        Task::Probe => Answer::Probed(lockdown::probe()),
        Task::Import(order) => {
            let made = sort_files(&order, files)
                .and_then(|files| with_progress(socket, |meter| super::import(&order, files, meter)));
            made.map_or_else(Answer::Failed, Answer::Made)
        }
        Task::Export(order) => {
            let exported = pair(files).and_then(|(image, archive)| {
                super::copy_file::check_writable(&archive, "the file for the archive")?;
                with_progress(socket, |meter| super::export::export(&order, image, &archive, meter))
            });
            exported.map_or_else(Answer::Failed, Answer::Exported)
        }
        Task::Flatten(order) => {
            let flattened = sort_disks(files).and_then(|(copy, overlays, base)| {
                with_progress(socket, |meter| super::flatten::flatten(&order, &copy, &overlays, &base, meter))
            });
            flattened.map_or_else(Answer::Failed, Answer::Copied)
        }
        Task::ModuleTree(order) => {
            let made = pair(files).and_then(|(archive, image)| {
                with_progress(socket, |meter| super::module_tree::make(&order, archive, &image, meter))
            });
            made.map_or_else(Answer::Failed, Answer::MadeTree)
        }
        Task::CopyFile(order) => {
            let copied = pair(files).and_then(|(original, copy)| {
                with_progress(socket, |meter| super::copy_file::copy_file(&order, &original, &copy, meter))
            });
            copied.map_or_else(Answer::Failed, Answer::Copied)
        }
    }
}

/// Executes one order about a user's file in a process that is not locked down, for tests.
#[cfg(feature = "fixtures")]
pub fn execute_one(socket: &OwnedFd) {
    let meter = Meter::default();
    let answer = match message::receive::<Order>(socket) {
        Ok(Some((Order { task: Task::CopyFile(order), .. }, files))) => pair(files)
            .and_then(|(original, copy)| super::copy_file::copy_file(&order, &original, &copy, &meter))
            .map_or_else(Answer::Failed, Answer::Copied),
        Ok(Some((Order { task: Task::Flatten(order), .. }, files))) => sort_disks(files)
            .and_then(|(copy, overlays, base)| {
                super::flatten::flatten(&order, &copy, &overlays, &base, &meter)
            })
            .map_or_else(Answer::Failed, Answer::Copied),
        Ok(Some((Order { task: Task::ModuleTree(order), .. }, files))) => pair(files)
            .and_then(|(archive, image)| super::module_tree::make(&order, archive, &image, &meter))
            .map_or_else(Answer::Failed, Answer::MadeTree),
        _ => return,
    };
    // The test may have ended.
    let _ = message::send(socket, &answer, &[]);
}

/// Returns the two files of an export or a copy.
fn pair(files: Vec<OwnedFd>) -> Result<(File, File), Failure> {
    match <[OwnedFd; 2]>::try_from(files) {
        Ok([image, archive]) => Ok((image.into(), archive.into())),
        Err(_) => Err(Failure::os("execute the order", io::Error::from(io::ErrorKind::InvalidData))),
    }
}

/// Returns the files of a [`Task::Flatten`]: the copy, the overlays, and the base.
fn sort_disks(files: Vec<OwnedFd>) -> Result<(File, Vec<File>, File), Failure> {
    let mut files: Vec<File> = files.into_iter().map(File::from).collect();
    match (files.pop(), files.is_empty()) {
        (Some(base), false) => Ok((files.remove(0), files, base)),
        _ => Err(Failure::os("execute the order", io::Error::from(io::ErrorKind::InvalidData))),
    }
}

fn sort_files(order: &Import, files: Vec<OwnedFd>) -> Result<Files, Failure> {
    let mut files = files.into_iter().map(File::from);
    let (image, spool) = (files.next(), files.next());
    let archives: Vec<File> = files.collect();
    match (image, spool) {
        (Some(image), Some(spool)) if archives.len() == order.archives.len() => {
            Ok(Files { image, spool, archives })
        }
        _ => Err(Failure::os("execute the order", io::Error::from(io::ErrorKind::InvalidData))),
    }
}

/// Runs `work` and reports its progress meanwhile.
fn with_progress<T>(socket: &OwnedFd, work: impl FnOnce(&Meter) -> Result<T, Failure>) -> Result<T, Failure> {
    let meter = Meter::default();
    thread::scope(|scope| {
        let (done, ends) = channel::<()>();
        let meter = &meter;
        let report = move || {
            let mut ended = false;
            // The last report has the final counts.
            while !ended {
                ended = ends.recv_timeout(PROGRESS_INTERVAL) != Err(RecvTimeoutError::Timeout);
                let (read, written) = meter.read_and_written();
                if message::send(socket, &Answer::Works { read, written }, &[]).is_err() {
                    // The service no longer waits.
                    std::process::exit(1);
                }
            }
        };
        let report = thread::Builder::new().name("report".to_owned()).spawn_scoped(scope, report);
        report.map_err(|error| Failure::os("start a thread", error))?;
        let made = work(meter);
        drop(done);
        made
    })
}
