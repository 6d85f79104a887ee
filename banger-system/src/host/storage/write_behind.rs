//! Flushes a large file to disk while another process writes it. So little is left to flush at the end, and the page
//! cache keeps what other programs have there.

use std::{
    fs::File,
    io,
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use rustix::fs::{Advice, fadvise};

use crate::ports::FromHost;

/// How often to flush.
const PAUSE: Duration = Duration::from_millis(50);

/// Awaits `work`, which writes to `file`. The kernel reports a disk error once to every descriptor, and may report it
/// here, so it is returned as the error of a last `fsync` would be.
pub(super) async fn write_behind<T, E: FromHost>(
    file: File,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let (done, ends) = channel::<()>();
    let behind = tokio::task::spawn_blocking(move || -> io::Result<()> {
        while ends.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
            file.sync_data()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    });
    let worked = work.await;
    drop(done);
    let on_disk = behind.await.unwrap_or_else(|ended| Err(io::Error::other(ended)));
    let worked = worked?;
    on_disk.map_err(|error| E::os("write a file to disk", error))?;
    Ok(worked)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, io::Write};

    use rustix::pipe::pipe;
    use tokio::time::sleep;

    use super::*;
    use crate::ports::HostError;

    #[tokio::test]
    async fn the_written_data_and_the_result_of_the_work_are_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = file.reopen().unwrap();
        let work = async move {
            for part in [b"one", b"two"] {
                writer.write_all(part).unwrap();
                sleep(PAUSE * 2).await;
            }
            Ok::<_, HostError>(7)
        };
        assert_eq!(write_behind(file.reopen().unwrap(), work).await.unwrap(), 7);
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "onetwo");
    }

    #[tokio::test]
    async fn an_error_of_the_disk_is_not_lost() {
        // A pipe cannot be flushed to a disk. On a busy machine, the attempt may come later.
        for tries in 1..100 {
            let (_reader, writer) = pipe().unwrap();
            let work = async {
                sleep(PAUSE * 2 * tries).await;
                Ok(())
            };
            match write_behind(File::from(writer), work).await {
                Ok(()) => {}
                Err(HostError::Os { .. }) => return,
                Err(other) => panic!("{other}"),
            }
        }
        panic!("no error was told");
    }

    #[tokio::test]
    async fn an_error_of_the_work_counts_more() {
        let (_reader, writer) = pipe().unwrap();
        let work = async {
            sleep(PAUSE * 4).await;
            Err::<(), _>(HostError::not_ready("on purpose"))
        };
        assert!(matches!(write_behind(File::from(writer), work).await, Err(HostError::NotReady { .. })));
    }
}
