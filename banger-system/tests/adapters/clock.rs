//! The host's clock.

use std::time::Duration;

use banger_domain::clock::Occasion;
use banger_system::{host::clock::SystemClock, ports::clock::Clock};
use rustix::time::{ClockId, clock_gettime, clock_settime};

use crate::scratch::{is_root, require};

const TIMEOUT: Duration = Duration::from_secs(120);
const A_WHILE: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_clock_that_is_set_is_noticed_each_time() {
    require!(is_root(), "root");
    let clock = SystemClock::new().unwrap();
    assert!(tokio::time::timeout(A_WHILE, clock.due()).await.is_err(), "time only passes");
    for _ in 0..2 {
        clock_settime(ClockId::Realtime, clock_gettime(ClockId::Realtime)).unwrap();
        let due = tokio::time::timeout(TIMEOUT, clock.due()).await.unwrap();
        assert_eq!(due.unwrap(), Occasion::Jump);
    }
    assert!(tokio::time::timeout(A_WHILE, clock.due()).await.is_err(), "a change is told once");
}
