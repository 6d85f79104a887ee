//! The host's clock.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use banger_domain::clock::Occasion;
use rustix::{
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::ports::{
    FromHost as _,
    clock::{Clock, Error, Result},
};

/// How often the clocks of guests are compared with the host's, by one timer for all. A clock that drifts by 500 ppm,
/// which is rare for quartz, is then off by 30 ms, and a slew corrects that within the same time.
const INTERVAL: Duration = Duration::from_secs(60);

/// The host's clock.
#[derive(Debug)]
pub struct SystemClock {
    /// A timer that never expires, and that the kernel cancels when the clock jumps (`TFD_TIMER_CANCEL_ON_SET` of
    /// timerfd_create(2)), also after a suspend.
    timer: AsyncFd<OwnedFd>,
}

impl SystemClock {
    /// Returns the clock, and notices its jumps from now on. Must be called in a runtime.
    pub fn new() -> Result<Self> {
        let timer = || -> rustix::io::Result<OwnedFd> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
            let never = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
            timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &once)?;
            Ok(timer)
        };
        let timer = timer().map_err(failed)?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same for as long as it lives.
        #[expect(unsafe_code, reason = "tokio cannot see that a descriptor stays open")]
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Ok(Self { timer: timer.map_err(|error| failed(error.into_parts().1))? })
    }
}

impl SystemClock {
    /// Waits until the clock was set. Cancel-safe.
    async fn changed(&self) -> Result<()> {
        loop {
            let mut ready = self.timer.readable().await.map_err(failed)?;
            match rustix::io::read(self.timer.get_ref(), &mut [0; 8]) {
                Err(Errno::CANCELED) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
                // The timer has expired, at the end of time.
                Ok(_) => std::future::pending::<()>().await,
            }
        }
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    async fn due(&self) -> Result<Occasion> {
        match tokio::time::timeout(INTERVAL, self.changed()).await {
            Ok(changed) => changed.map(|()| Occasion::Jump),
            Err(_) => Ok(Occasion::Regular),
        }
    }
}

fn failed(error: impl Into<io::Error>) -> Error {
    Error::os("watch the clock", error)
}
