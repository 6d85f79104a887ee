//! Level 4: the installed product in private hosts, with guests that boot. After each check its host must have nothing
//! left of any sandbox.

mod attach;
mod boot_config;
mod clients;
mod cockpit;
mod coding_agent;
mod commits;
mod confinement;
mod copies;
mod devcontainer;
mod e2b;
mod egress;
mod examples;
mod fork;
mod guests;
mod habits;
mod host_kernel;
mod idle;
mod images;
mod killpoints;
mod limits;
mod lists;
mod mcp;
mod modules;
mod mount;
mod names;
mod network;
mod observability;
mod people;
mod ready;
mod recipe;
mod refusals;
mod registry;
mod remote;
mod restart;
mod sdk;
mod sessions;
mod settings;
mod ssh;
mod suspend;
mod template;
mod terminal;
mod workspace;

pub use killpoints::random as random_kills;

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek},
    process::{Output, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{
    host::{self, Host},
    image::{self, kernel},
    packages,
    run::say,
    test::{Tally, is_wanted},
    try_it::{self, QUICK},
};

type Check = fn(&Host) -> Result<()>;

/// Checks that need no init in the sandbox, or that name an image with one.
const QUICK_CHECKS: &[&[(&str, Check)]] = &[
    attach::CHECKS,
    boot_config::CHECKS,
    clients::CHECKS,
    coding_agent::CHECKS,
    commits::CHECKS,
    confinement::CHECKS,
    copies::CHECKS,
    devcontainer::CHECKS,
    egress::CHECKS,
    fork::CHECKS,
    guests::CHECKS,
    habits::CHECKS,
    host_kernel::CHECKS,
    images::CHECKS,
    killpoints::CHECKS,
    limits::CHECKS,
    lists::CHECKS,
    mcp::CHECKS,
    modules::CHECKS,
    mount::CHECKS,
    names::CHECKS,
    network::CHECKS,
    observability::CHECKS,
    people::CHECKS,
    ready::CHECKS,
    recipe::CHECKS,
    refusals::CHECKS,
    registry::CHECKS,
    remote::CHECKS,
    restart::CHECKS,
    sessions::CHECKS,
    settings::CHECKS,
    ssh::CHECKS,
    suspend::CHECKS,
    idle::CHECKS,
    terminal::CHECKS,
    workspace::CHECKS,
];
/// Checks that need systemd in the guest, or a service that it starts.
const SYSTEMD_CHECKS: &[&[(&str, Check)]] = &[
    fork::WITH_SYSTEMD,
    guests::WITH_SYSTEMD,
    modules::WITH_SYSTEMD,
    network::WITH_SYSTEMD,
    ready::WITH_SYSTEMD,
    sessions::WITH_SYSTEMD,
    ssh::WITH_SYSTEMD,
    template::WITH_SYSTEMD,
];

/// Checks that need the programs of a desktop.
const DESKTOP_CHECKS: &[&[(&str, Check)]] = &[cockpit::CHECKS, examples::CHECKS];

/// Runs the checks whose names contain `only` in fresh private hosts. Each host takes the next check when it has
/// finished one.
pub fn run(only: &str) -> Result<Tally> {
    let wanted = |checks: &[&[(&'static str, Check)]], image| {
        let checks = checks.concat().into_iter().filter(|(name, _)| is_wanted(name, only));
        checks.map(|(name, check)| Job { name, check, image }).collect::<VecDeque<_>>()
    };
    // The longest checks come first, so that both hosts finish at about the same time.
    let mut queue = wanted(SYSTEMD_CHECKS, try_it::IMAGE);
    queue.append(&mut wanted(QUICK_CHECKS, QUICK));
    let (mut desktop, mut tally) = (wanted(DESKTOP_CHECKS, QUICK), Tally::default());
    if !desktop.is_empty() {
        match packages::ensure_desktop() {
            Ok(()) => queue.append(&mut desktop),
            Err(error) => tally.skipped.extend(desktop.iter().map(|job| format!("{}: {error:#}", job.name))),
        }
    }
    let mut sdks = wanted(&[sdk::CHECKS], QUICK);
    if !sdks.is_empty() {
        match packages::sdk_tools().and_then(|tools| crate::sdk::check_tools(&tools)) {
            Ok(()) => queue.append(&mut sdks),
            Err(error) => tally.skipped.extend(sdks.iter().map(|job| format!("{}: {error:#}", job.name))),
        }
    }
    let mut e2b = wanted(&[e2b::CHECKS], QUICK);
    if !e2b.is_empty() {
        match packages::e2b_sdk()? {
            Some(_) => queue.append(&mut e2b),
            None => tally.skipped.extend(e2b.iter().map(|job| format!("{}: E2B's SDK", job.name))),
        }
    }
    // Prepare these once, not in each host.
    kernel::ensure()?;
    packages::docker_registry()?;
    packages::sshd()?;
    image::without_init(try_it::IMAGE)?;
    let hosts = (0..host::HOSTS.min(queue.len()))
        .map(|number| host::up(&host::Up { fresh: true, number, ..host::Up::default() }))
        .collect::<Result<Vec<_>>>()?;
    let (queue, tally) = (Mutex::new(queue), Mutex::new(tally));
    let done = thread::scope(|scope| {
        let (queue, tally) = (&queue, &tally);
        let threads: Vec<_> = hosts.iter().map(|host| scope.spawn(|| work(host, queue, tally))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(_) => bail!("a check panicked"),
        })
    });
    host::down()?;
    done?;
    tally.into_inner().map_err(|_| anyhow!("a check panicked"))
}

/// A check, and the default image of its sandboxes.
struct Job {
    name: &'static str,
    check: Check,
    image: &'static str,
}

/// Runs checks from the queue in a host until the queue is empty.
fn work(host: &Host, queue: &Mutex<VecDeque<Job>>, tally: &Mutex<Tally>) -> Result<()> {
    prepare(host)?;
    let mut image = "";
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(job) = job else { return Ok(()) };
        if job.image != image {
            image = job.image;
            try_it::set_default_image(host, image)?;
        }
        let failure = run_one(host, &job)?;
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            None => tally.passed += 1,
            Some(error) => tally.failed.push(format!("{}: {error:#}", job.name)),
        }
    }
}

/// Configures a host for the checks, and gives it a kernel and images.
fn prepare(host: &Host) -> Result<()> {
    // Under emulation, the kernel of a guest with two processors sometimes locks up.
    run_as(host, "root", &script!("level4/prepare.sh"))?;
    try_it::provide(host)?;
    try_it::make_quick(host)
}

/// Runs a check, prints the result, and returns why it failed, if it did.
fn run_one(host: &Host, job: &Job) -> Result<Option<anyhow::Error>> {
    let name = job.name;
    let begin = Instant::now();
    let attempt = || (job.check)(host).and_then(|()| nothing_left(host));
    let outcome = attempt().or_else(|error| match stands_still(host)? {
        true => {
            say(&format!("AGAIN {name}: the kernel of an emulated guest locked up ({error:#})"));
            clear(host)?;
            attempt()
        }
        false => Err(error),
    });
    let seconds = begin.elapsed().as_secs();
    match outcome {
        Ok(()) => say(&format!("PASS {name} ({seconds} s)")),
        Err(error) => {
            say(&format!("FAIL {name} ({seconds} s): {error:#}"));
            // The next check must not see what this one left.
            clear(host)?;
            return Ok(Some(error));
        }
    }
    Ok(None)
}

/// Checks that the host has nothing left of any sandbox once all are deleted.
fn nothing_left(host: &Host) -> Result<()> {
    let left = text(&host.enter(&script!("level4/nothing_left.sh" uses "wait.sh")).output()?.stdout);
    let is_something = |line: &&str| !line.is_empty() && !line.ends_with(':') && *line != "[]";
    let left: Vec<&str> = left.lines().filter(is_something).collect();
    ensure!(left.is_empty(), "it left {left:?}");
    Ok(())
}

/// Returns whether the kernel of a guest reports a lockup. QEMU's emulation sometimes causes one in guests with several
/// processors, and a check that runs into it says nothing about banger.
fn stands_still(host: &Host) -> Result<bool> {
    let look = script!("level4/stands_still.sh");
    let looked = host.enter(&look).output().context("cannot look at the guests")?;
    Ok(looked.status.success())
}

/// Ends the sessions, and deletes the sandboxes and images, that a failed check has left.
fn clear(host: &Host) -> Result<()> {
    let delete = script!("level4/clear.sh", image = try_it::IMAGE, quick = QUICK);
    host.enter(&delete).output().context("cannot clear the private host")?;
    Ok(())
}

/// Runs a command as a user, without input, and returns its status, output and errors.
fn as_user<S: AsRef<str>>(host: &Host, user: &str, words: &[S]) -> Result<Output> {
    // Into files: a pipe has its end only once the last command in the background has ended, and a script that has
    // failed leaves such commands.
    let files = || tempfile::tempfile().context("cannot create a temporary file");
    let (mut stdout, mut stderr) = (files()?, files()?);
    let status = host
        .session(user, false, words)?
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .status()
        .context("cannot run in the private host")?;
    Ok(Output { status, stdout: all_of(&mut stdout)?, stderr: all_of(&mut stderr)? })
}

/// Returns the content of a file that others have written.
fn all_of(file: &mut File) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut content)).context("cannot read the output")?;
    Ok(content)
}

/// Runs a command as a user, which must succeed, and returns its output.
fn run_as<S: AsRef<str>>(host: &Host, user: &str, words: &[S]) -> Result<String> {
    expect(&as_user(host, user, words)?, 0)
}

/// Runs a command as root, outside any session, which must succeed, and returns its output.
fn run_as_root<S: AsRef<str>>(host: &Host, words: &[S]) -> Result<String> {
    expect(&host.enter(words).output().context("cannot run in the private host")?, 0)
}

/// Runs a few commands of a shell as a user and returns their output. It ends at the first one that fails.
fn sh(host: &Host, user: &str, commands: &str) -> Result<String> {
    run_as(host, user, &["sh", "-euc", commands])
}

/// The same as root, outside any session.
fn sh_as_root(host: &Host, commands: &str) -> Result<String> {
    run_as_root(host, &["sh", "-euc", commands])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Returns the output of a command that must have exited with this status.
fn expect(output: &Output, status: i32) -> Result<String> {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(
        output.status.code() == Some(status),
        "{} instead of {status}, with output {out:?} and errors {err:?}",
        output.status
    );
    Ok(out)
}
