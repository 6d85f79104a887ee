//! `cargo xtask bench bus`: calls of the service, compared with the same calls of a service that does nothing, which is written
//! with the same crate and is on the same bus.

use anyhow::Result;

use super::{
    Effort, Goal, Report, Side,
    service::{Service, samples},
};
use crate::run::say;

/// How many sandboxes are listed.
const COUNT: u32 = 1000;
const FEW: u32 = 20;
/// The longest that a list may take, and how many times as long as that of the empty service another call may take.
const LIST: Goal = Goal::Millis(10.0);
const CALL: Goal = Goal::Ratio(1.5);

/// Runs the benchmark, and returns a report for each call.
pub fn run(effort: Effort) -> Result<Vec<Report>> {
    let count = if effort.smoke { FEW } else { COUNT };
    let service = Service::start(effort)?;
    say("calling the service and its peer");
    let figures = service.measure(["bus", &count.to_string(), &effort.runs.to_string()])?;
    let side = |what, name: &str| Ok::<_, anyhow::Error>(Side { what, samples_ms: samples(&figures, name)? });
    Ok(vec![
        Report::new(
            format!("bus: ListVMs of {count} sandboxes"),
            effort.runs,
            side("ListVMs", "list")?,
            side("the same reply of an empty service", "peer_list")?,
        )?
        .with_goal(LIST),
        Report::new(
            "bus: an authorised call",
            effort.runs,
            side("ListSnapshots of a sandbox, by its owner", "call")?,
            side("the same reply of an empty service", "peer_call")?,
        )?
        .with_goal(CALL),
    ])
}
