//! Proves the confinement of the units: a program that tries what must fail runs in place of a VMM and of a worker, and before
//! the service. The result is a table with a line for each attempt.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{Check, run_as_root, sh};
use crate::{
    build,
    host::{self, Host},
    run::cache,
};

pub(super) const CHECKS: &[(&str, Check)] =
    &[("what units must not do fails inside them, and what they need works", confined)];

/// The program, an example of banger-jail.
const SELF_TEST: &str = "confinement";
/// The highest exposure that `systemd-analyze security` may give to a unit. It counts settings; that of VMMs is checked with what
/// the shim proves. The worker locks itself down as well, which no setting shows.
const SERVICE_EXPOSURE: f64 = 3.0;
const WORKER_EXPOSURE: f64 = 3.7;
/// What fails outside any unit as well, in a private host, and so proves nothing about units.
const FAILS_OUTSIDE: &[&str] = &[
    // /usr is no mount of its own there.
    "make a writable mount of what is read-only",
    // The kernel of the machine that runs the tests has them not, or keeps them from its containers.
    "load a kernel module",
    "load a kernel module from a file",
    "load another kernel",
    "make a socket of AF_ALG",
    "open /dev/disk-of-the-host",
    "open /dev/mem",
    "open /dev/port",
    "open /proc/sysrq-trigger for writing",
    "raise its limit of open files",
    "use I/O ports",
];
/// How attempts at what others have begin. Without one of each, something was not there to be tried.
const OF_OTHERS: &[&str] = &[
    "read /var/lib/banger/vms/",
    "connect to /run/banger/vm/",
    "connect to the abstract socket ",
    "trace another user's process",
];
/// Fewer attempts in a place than this mean that something did not run.
const FEWEST: usize = 20;

/// An attempt, as the program reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt<'a> {
    place: &'a str,
    expect: &'a str,
    outcome: &'a str,
    what: &'a str,
}

impl<'a> Attempt<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let words: Vec<&str> = line.strip_prefix("attempt\t")?.split('\t').collect();
        let [place, expect, outcome, what] = words[..] else { return None };
        Some(Self { place, expect, outcome, what })
    }

    fn worked(&self) -> bool {
        self.outcome == "worked"
    }
}

/// What the attempts show.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// A line for each attempt in a unit.
    table: Vec<String>,
    /// Those with another outcome than expected.
    wrong: Vec<String>,
}

/// Compares the attempts with what was expected of them. An attempt that fails in a unit proves something only if it works
/// outside: all but [`FAILS_OUTSIDE`] must.
fn judge(attempts: &[Attempt<'_>]) -> Verdict {
    let works_outside =
        |what: &str| attempts.iter().any(|a| a.place == "outside" && a.what == what && a.worked());
    let mut verdict = Verdict::default();
    for attempt in attempts.iter().filter(|attempt| attempt.place != "outside") {
        let is_proven = attempt.expect != "fails" || works_outside(attempt.what);
        let as_expected = attempt.worked() == (attempt.expect == "works")
            && (is_proven || FAILS_OUTSIDE.contains(&attempt.what))
            && !attempt.outcome.starts_with("cannot try")
            && !attempt.outcome.starts_with("ended by");
        let note = match (as_expected, is_proven) {
            (false, true) => " (UNEXPECTED)",
            (false, false) => " (UNEXPECTED: fails outside, too)",
            (true, false) => " (fails outside, too)",
            _ => "",
        };
        let line =
            format!("{:8} {:6} {:40} {}{note}", attempt.place, attempt.expect, attempt.outcome, attempt.what);
        if !as_expected {
            verdict.wrong.push(line.clone());
        }
        verdict.table.push(line);
    }
    verdict
}

/// Returns which of [`OF_OTHERS`] were not tried in a unit of a program without rights.
fn not_tried(attempts: &[Attempt<'_>]) -> Vec<String> {
    let mut missing = Vec::new();
    for place in ["vmm", "worker"] {
        let was_tried = |start: &str| attempts.iter().any(|a| a.place == place && a.what.starts_with(start));
        let untried = OF_OTHERS.iter().filter(|start| !was_tried(start));
        missing.extend(untried.map(|start| format!("{place}: {start}")));
    }
    missing
}

fn confined(host: &Host) -> Result<()> {
    let program = build::examples(&build::TEST, &[SELF_TEST])?.join(SELF_TEST);
    let copy = cache().join(SELF_TEST);
    fs::copy(&program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
    sh(host, "bob", "banger vm create --quiet --name neighbour")?;
    let said = try_everywhere(host, &host::inside(&copy)?.display().to_string());
    let ended = run_as_root(host, &script!("level4/confinement/end.sh"));
    let deleted = sh(host, "bob", "banger vm delete --force neighbour");
    // The first error is the one that counts.
    let said = said?;
    ended?;
    deleted?;

    let mut attempts: Vec<Attempt<'_>> = said.lines().filter_map(Attempt::parse).collect();
    // A worker that looks at the kind of a file comes before the one that imports it.
    let mut seen = Vec::new();
    attempts.retain(|attempt| {
        let is_new = !seen.contains(attempt);
        seen.push(attempt.clone());
        is_new
    });
    let verdict = judge(&attempts);
    println!("{}", verdict.table.join("\n"));
    for place in ["outside", "vmm", "worker", "service"] {
        let count = attempts.iter().filter(|attempt| attempt.place == place).count();
        let is_over = said.lines().any(|line| line == format!("attempts of {place} are over"));
        ensure!(is_over && count >= FEWEST, "{count} attempts were made in the place {place}: {said}");
    }
    let missing = not_tried(&attempts);
    ensure!(missing.is_empty(), "this was not tried: {missing:?}");
    ensure!(verdict.wrong.is_empty(), "unexpected outcomes:\n{}", verdict.wrong.join("\n"));
    for unit in ["service", "worker"] {
        let rated = exposure(&said, unit).with_context(|| format!("the unit of the {unit} was not rated"))?;
        println!("exposure of the {unit}: {rated}");
    }
    for (unit, most) in [("service", SERVICE_EXPOSURE), ("worker", WORKER_EXPOSURE)] {
        let rated = exposure(&said, unit).with_context(|| format!("the unit of the {unit} was not rated"))?;
        ensure!(rated <= most, "systemd rates the exposure of the {unit} at {rated}, above {most}");
    }
    Ok(())
}

/// Runs the self-test in each place, and returns what it wrote.
fn try_everywhere(host: &Host, program: &str) -> Result<String> {
    let prepare = script!("level4/confinement/targets.sh" uses "wait.sh", program = program);
    run_as_root(host, &prepare)?;
    let outside = run_as_root(host, &script!("level4/confinement/outside.sh"))?;
    let vmm = run_as_root(host, &script!("level4/confinement/vmm.sh"))?;
    let worker = run_as_root(host, &script!("level4/confinement/worker.sh" uses "wait.sh"))?;
    let service = run_as_root(host, &script!("level4/confinement/service.sh"))?;
    Ok([outside, vmm, worker, service].join("\n"))
}

/// Returns the figure in the last line of `systemd-analyze security`.
fn exposure(said: &str, unit: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix(&format!("exposure {unit} ")))?;
    line.split_whitespace().find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_must_have_been_tried() {
        let lines: Vec<String> = ["vmm", "worker"]
            .iter()
            .flat_map(|place| {
                OF_OTHERS.iter().map(move |what| format!("attempt\t{place}\tfails\tno\t{what}1"))
            })
            .collect();
        let attempts: Vec<Attempt<'_>> = lines.iter().filter_map(|line| Attempt::parse(line)).collect();
        assert_eq!(not_tried(&attempts), Vec::<String>::new());
        assert_eq!(not_tried(&attempts[1..]), ["vmm: read /var/lib/banger/vms/"]);
        assert_eq!(not_tried(&[]).len(), 2 * OF_OTHERS.len());
    }

    #[test]
    fn an_unexpected_outcome_is_found_and_so_is_a_proof_without_a_control() {
        let lines = [
            "attempt\toutside\tworks\tworked\tmount",
            "attempt\toutside\tworks\tNo such device\topen /dev/mem",
            "attempt\tvmm\tfails\tOperation not permitted\tmount",
            "attempt\tvmm\tfails\tNo such file or directory\topen /dev/mem",
            "attempt\tservice\tfails\tworked\tmount",
            "attempt\tvmm\tworks\tNo such file or directory\tread its disk",
            "attempt\tworker\tfails\tended by signal: 9\tmount",
            "attempt\tvmm\tfails\tNo such file or directory\tread /etc/machine-id",
            "attempt\toutside\tworks\tcannot try: no unshare\tread /etc/machine-id",
            "attempts of vmm are over",
        ];
        let attempts: Vec<Attempt<'_>> = lines.iter().filter_map(|line| Attempt::parse(line)).collect();
        assert_eq!(attempts.len(), 9);
        let verdict = judge(&attempts);
        assert_eq!(verdict.table.len(), 6);
        assert!(!verdict.table[0].ends_with(')'), "{verdict:?}");
        assert!(verdict.table[1].ends_with("open /dev/mem (fails outside, too)"), "{verdict:?}");
        assert_eq!(verdict.wrong, verdict.table[2..]);
    }

    #[test]
    fn the_exposure_is_read() {
        let said = "exposure worker → Overall exposure level for banger-import-proof.service: 1.9 OK :-)";
        assert_eq!(exposure(said, "worker"), Some(1.9));
        assert_eq!(exposure(said, "service"), None);
    }
}
