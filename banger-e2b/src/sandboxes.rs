//! The sandboxes that were created here, and when each of them ends.
//!
//! What E2B knows about a sandbox and banger does not is in labels of the sandbox, so that a restart of this program
//! forgets nothing: when it ends, whether it is paused then, its template and its metadata. Variables of a sandbox can be
//! secrets, and are in files that only the user can read instead.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use serde::Deserialize;
use tokio::{sync::Notify, time::sleep};

use crate::{
    banger::{Banger, LONG_REPLY, REPLY},
    http::{Code, Refusal, Result},
};

/// Limit on sandboxes at a time. The service has its own limit on what a user may have.
const MAX_SANDBOXES: usize = 100;
/// The longest time limit, in seconds: 30 days.
pub const MAX_TIMEOUT: u64 = 30 * 24 * 3600;
/// How much longer than its time limit a sandbox may exist whose creation was never reported: its boot, and the pull of its
/// image.
const CREATION: u64 = 3600;
/// How long to wait before a deletion that failed is tried again, in seconds.
const AGAIN: u64 = 60;
/// The same for a pause. Firecracker cannot pause, and its sandboxes are better kept than deleted.
const PAUSE_AGAIN: u64 = 3600;
/// How long a sandbox lives at least that another program has resumed, in seconds.
const WOKEN: u64 = 300;
/// How often the clock is looked at. The host may have slept.
const LOOK: Duration = Duration::from_secs(15);
/// How often sandboxes are listed anyway.
const LIST: Duration = Duration::from_secs(60);

/// Limit on entries of metadata: a sandbox has 32 labels, and four are of this program.
const MAX_METADATA: usize = 28;
/// The end of a sandbox that is paused: the year 9999.
const PAUSED: u64 = 253_370_764_800;

/// The label with the time at which a sandbox ends, in seconds since the Unix epoch.
const END: &str = "e2b.end";
/// The label with the sandbox's own id. Copies of a sandbox have its labels, and are not ours.
const ID: &str = "e2b.id";
/// The label of a sandbox that is paused when it ends.
const PAUSES: &str = "e2b.pauses";
/// The label with its template.
const TEMPLATE: &str = "e2b.template";
/// What labels with metadata begin with.
const METADATA: &str = "e2b.meta.";

/// What `banger list --json` says about a sandbox.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    state: String,
    #[serde(default)]
    image_name: String,
    /// Its processors.
    #[serde(default)]
    pub vcpus: u64,
    /// Its memory in bytes.
    #[serde(default)]
    pub memory: u64,
    #[serde(default)]
    disk_size: u64,
    #[serde(default)]
    root_size: u64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    created_at: i64,
}

impl Row {
    /// Returns whether it is paused. A sandbox that has stopped counts as gone.
    pub fn is_paused(&self) -> Option<bool> {
        match &*self.state {
            "suspending" | "suspended" | "paused" => Some(true),
            "starting" | "running" | "resuming" => Some(false),
            _ => None,
        }
    }

    /// Returns its template, or the name of its image.
    pub fn template(&self) -> &str {
        self.labels.get(TEMPLATE).unwrap_or(&self.image_name)
    }

    /// Returns when it ends, in seconds since the Unix epoch; 0 if no such time is in its labels.
    pub fn end(&self) -> u64 {
        self.labels.get(END).and_then(|end| end.parse().ok()).unwrap_or(0)
    }

    /// Returns whether it was created here. One whose creation was broken off has no id in its labels.
    fn is_ours(&self) -> bool {
        !self.id.is_empty() && self.end() > 0 && self.labels.get(ID).is_none_or(|id| *id == self.id)
    }

    /// Returns whether it is paused when it ends.
    pub fn pauses(&self) -> bool {
        self.labels.contains_key(PAUSES)
    }

    /// Returns its metadata.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let of = |(label, value): (&String, &String)| {
            let key = label.strip_prefix(METADATA)?;
            Some((decoded(key), value.clone()))
        };
        self.labels.iter().filter_map(of).collect()
    }

    /// Returns when it was created, in microseconds since the Unix epoch.
    pub fn created(&self) -> i64 {
        self.created_at
    }

    /// Returns the size of its disks in MiB.
    pub fn disk_mebibytes(&self) -> u64 {
        (self.disk_size + self.root_size) >> 20
    }
}

/// A sandbox to create.
#[derive(Debug, Default)]
pub struct New {
    /// Its template; `base` is the default image.
    pub template: String,
    /// Seconds until it ends.
    pub timeout: u64,
    /// Whether it is paused then.
    pub pauses: bool,
    /// Whether it reaches the internet, if the client says so.
    pub internet: Option<bool>,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
    /// Variables of all its commands.
    pub variables: BTreeMap<String, String>,
}

/// What is known of a sandbox between two requests.
#[derive(Debug, Clone, Copy)]
struct Known {
    end: u64,
    /// When it is tried again to end it.
    again: u64,
    pauses: bool,
    is_paused: bool,
}

#[derive(Default)]
struct State {
    known: HashMap<String, Known>,
    /// How many are being created.
    creating: usize,
}

/// All sandboxes.
pub struct Sandboxes {
    banger: Arc<Banger>,
    directory: PathBuf,
    state: Mutex<State>,
    changed: Notify,
}

impl Sandboxes {
    /// Returns the sandboxes of this command, with their variables in a directory.
    pub fn new(banger: Arc<Banger>, directory: PathBuf) -> Self {
        Self { banger, directory, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns those that run or are paused, the newest first.
    pub async fn list(&self) -> Result<Vec<Row>> {
        // What comes into the table meanwhile may not be in the reply.
        let before: HashSet<String> = self.state().known.keys().cloned().collect();
        let filter = format!("--filter=label={END}");
        let mut rows: Vec<Row> = self.banger.json(REPLY, &["vm", "list", "--json", &filter]).await?;
        rows.retain(Row::is_ours);
        let woken = self.update(&rows, &before);
        self.changed.notify_one();
        for id in woken {
            // Only a restart would look at the label.
            let _ = self.set_timeout(&id, WOKEN).await;
        }
        rows.retain(|row| row.is_paused().is_some());
        rows.sort_by_key(|row| (std::cmp::Reverse(row.created_at), row.id.clone()));
        Ok(rows)
    }

    /// Takes over what a list says. Returns those that another program has resumed.
    fn update(&self, rows: &[Row], before: &HashSet<String>) -> Vec<String> {
        let mut woken = Vec::new();
        let mut state = self.state();
        for row in rows {
            // One that has stopped cannot be paused, and needs nothing.
            let is_paused = row.is_paused().unwrap_or(row.pauses());
            let new = Known { end: row.end(), again: 0, pauses: row.pauses(), is_paused };
            let known = state.known.entry(row.id.clone()).or_insert(new);
            let is_resumed = known.is_paused && known.end < now() + WOKEN || known.end == PAUSED;
            if is_resumed && !is_paused {
                // Its end may have passed meanwhile.
                known.end = now() + WOKEN;
                woken.push(row.id.clone());
            }
            known.is_paused = is_paused;
        }
        state.known.retain(|id, _| !before.contains(id) || rows.iter().any(|row| row.id == *id));
        woken
    }

    /// Returns one of them, by its whole id.
    pub async fn find(&self, id: &str) -> Result<Row> {
        let rows = self.list().await?;
        rows.into_iter().find(|row| row.id == id).ok_or_else(|| not_found(id))
    }

    /// Creates one, and returns it when its guest answers.
    pub async fn create(self: &Arc<Self>, new: New) -> Result<Row> {
        check_timeout(new.timeout)?;
        if new.metadata.len() > MAX_METADATA {
            let message = format!("There are more than {MAX_METADATA} entries of metadata.");
            return Err(Refusal::new(Code::InvalidArgument, message));
        }
        {
            let mut state = self.state();
            if state.known.len() + state.creating >= MAX_SANDBOXES {
                let message =
                    format!("There are {MAX_SANDBOXES} sandboxes, which is the limit of banger-e2b.");
                return Err(Refusal::new(Code::ResourceExhausted, message));
            }
            state.creating += 1;
        }
        // It goes on without the client, so that what is created is known.
        let sandboxes = Arc::clone(self);
        let task = tokio::spawn(async move {
            let created = sandboxes.created(&new).await;
            sandboxes.state().creating -= 1;
            created
        });
        task.await.unwrap_or_else(|_| Err(Refusal::new(Code::Internal, "The creation was broken off.")))
    }

    async fn created(&self, new: &New) -> Result<Row> {
        let mut words = vec!["vm".to_owned(), "create".into(), "-q".into(), "--json".into()];
        words.extend(new.labels(now()).into_iter().map(|label| format!("--label={label}")));
        if !matches!(&*new.template, "" | "base") {
            words.push(format!("--image={}", new.template));
        }
        match new.internet {
            Some(true) => words.push("--nat".into()),
            Some(false) => words.push("--no-nat".into()),
            None => {}
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let row: Row = self.banger.json(LONG_REPLY, &words).await?;
        if row.id.is_empty() {
            return Err(Refusal::new(Code::Internal, "banger printed no id of the new sandbox."));
        }
        // Its time begins below, when its client is about to hear of it.
        let end = now() + new.timeout + CREATION;
        let known = Known { end, again: 0, pauses: new.pauses, is_paused: false };
        self.state().known.insert(row.id.clone(), known);
        let kept = self.keep_variables(&row.id, &new.variables);
        match kept.and(self.set_timeout(&row.id, new.timeout).await) {
            Ok(()) => Ok(row),
            Err(error) => {
                // Nobody knows of it yet. If this fails too, its end comes in time.
                let _ = self.kill(&row.id).await;
                Err(error)
            }
        }
    }

    /// Sets how long one lives from now on.
    pub async fn set_timeout(&self, id: &str, timeout: u64) -> Result<()> {
        check_timeout(timeout)?;
        self.set_end(id, now() + timeout).await
    }

    async fn set_end(&self, id: &str, end: u64) -> Result<()> {
        // It must not end while its end is moved.
        if let Some(known) = self.state().known.get_mut(id) {
            known.end = known.end.max(end);
        }
        let (label, own) = (format!("--label={END}={end}"), format!("--label={ID}={id}"));
        self.banger.run(REPLY, &["vm", "set", "--json", &label, &own, "--", id]).await?;
        if let Some(known) = self.state().known.get_mut(id) {
            (known.end, known.again) = (end, 0);
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Lets one live at least this long from now on.
    pub async fn extend(&self, id: &str, timeout: u64) -> Result<()> {
        check_timeout(timeout)?;
        let end = self.state().known.get(id).map_or(0, |known| known.end);
        if now() + timeout > end { self.set_timeout(id, timeout).await } else { Ok(()) }
    }

    /// Deletes one.
    pub async fn kill(&self, id: &str) -> Result<()> {
        match self.banger.run(REPLY, &["vm", "delete", "-q", "--force", "--", id]).await {
            Err(refusal) if refusal.code != Code::NotFound => return Err(refusal),
            _ => {}
        }
        self.state().known.remove(id);
        match fs::remove_file(self.directory.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes the memory of one to disk, and ends its processes on the host. Its time limit does not count meanwhile.
    pub async fn pause(&self, id: &str) -> Result<()> {
        // Before it is, because its end may come meanwhile.
        self.set_paused(id, true);
        let paused = self.banger.run(LONG_REPLY, &["vm", "suspend", "-q", "--json", "--", id]).await;
        if paused.is_err() {
            self.set_paused(id, false);
        }
        paused?;
        // A list meanwhile may have said otherwise.
        self.set_paused(id, true);
        // If another program resumes the sandbox, its old end must not count. If this fails, that is seen while this runs.
        let _ = self.set_end(id, PAUSED).await;
        Ok(())
    }

    /// Continues one that is paused.
    pub async fn resume(&self, row: &Row, timeout: u64) -> Result<()> {
        // Before it runs, because its old end may have passed.
        self.set_timeout(&row.id, timeout).await?;
        // `banger pause` leaves the memory where it is.
        let verb: &[&str] = if row.state == "paused" { &["unpause"] } else { &["resume", "-q"] };
        let words = [&["vm"], verb, &["--json", "--", &row.id]].concat();
        self.set_paused(&row.id, false);
        let resumed = self.banger.run(LONG_REPLY, &words).await;
        if resumed.is_err() {
            self.set_paused(&row.id, true);
        }
        resumed.map(|_| ())
    }

    fn set_paused(&self, id: &str, is_paused: bool) {
        if let Some(known) = self.state().known.get_mut(id) {
            known.is_paused = is_paused;
        }
        self.changed.notify_one();
    }

    /// Checks that one is there and not paused, before something runs in it: `banger exec` would resume it.
    pub async fn check_running(&self, id: &str) -> Result<()> {
        let known = self.state().known.get(id).map(|known| known.is_paused);
        let runs = match known {
            Some(false) => true,
            // It may have been created before a restart, or resumed by another program.
            _ => self.list().await?.iter().any(|row| row.id == id && row.is_paused() == Some(false)),
        };
        if runs { Ok(()) } else { Err(gone(id)) }
    }

    /// Returns whether one runs now.
    pub async fn is_running(&self, id: &str) -> Result<bool> {
        Ok(self.list().await?.iter().any(|row| row.id == id && row.is_paused() == Some(false)))
    }

    fn keep_variables(&self, id: &str, variables: &BTreeMap<String, String>) -> Result<()> {
        if variables.is_empty() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.directory.join(id);
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(file.write_all(&serde_json::to_vec(variables).unwrap_or_default())?)
    }

    /// Returns the variables of all commands of one.
    pub fn variables(&self, id: &str) -> Result<BTreeMap<String, String>> {
        match fs::read(self.directory.join(id)) {
            Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills or pauses sandboxes when their time is over. Never returns.
    pub async fn end_in_time(self: Arc<Self>) {
        while let Err(refusal) = self.list().await {
            eprintln!("banger-e2b: cannot list the sandboxes: {}", refusal.message);
            sleep(LOOK).await;
        }
        self.remove_old_variables();
        let mut listed = Instant::now();
        loop {
            // Other programs pause, resume and delete sandboxes too.
            if listed.elapsed() > LIST && !self.state().known.is_empty() {
                listed = Instant::now();
                if let Err(refusal) = self.list().await {
                    eprintln!("banger-e2b: cannot list the sandboxes: {}", refusal.message);
                }
            }
            let now = now();
            let mut next = None;
            for (id, known) in &mut self.state().known {
                if known.is_paused {
                    continue;
                }
                if known.end.max(known.again) <= now {
                    // Unless this succeeds.
                    known.again = now + if known.pauses { PAUSE_AGAIN } else { AGAIN };
                    tokio::spawn(Arc::clone(&self).end(id.clone(), known.pauses));
                }
                next = Some(next.unwrap_or(u64::MAX).min(known.end.max(known.again)));
            }
            let wait = next.map_or(LOOK, |next| Duration::from_secs(next - now).min(LOOK));
            tokio::select! {
                () = sleep(wait) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    async fn end(self: Arc<Self>, id: String, pauses: bool) {
        let is_due = |known: &Known| known.end <= now() && !known.is_paused;
        if !self.state().known.get(&id).is_some_and(is_due) {
            // A client has paused it or moved its end meanwhile.
            return;
        }
        let ended = if pauses { self.pause(&id).await } else { self.kill(&id).await };
        if let Err(refusal) = ended {
            eprintln!("banger-e2b: cannot end the sandbox {id} in time: {}", refusal.message);
        }
    }

    /// Removes the variables of sandboxes that were deleted by other programs.
    fn remove_old_variables(&self) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let is_known = entry.file_name().to_str().is_some_and(|id| self.state().known.contains_key(id));
            if !is_known {
                // It is tried again at the next start.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl New {
    fn labels(&self, now: u64) -> Vec<String> {
        let mut labels = vec![format!("{END}={}", now + self.timeout + CREATION)];
        labels.extend(self.pauses.then(|| format!("{PAUSES}=true")));
        let template = if self.template.is_empty() { "base" } else { &self.template };
        labels.push(format!("{TEMPLATE}={template}"));
        labels.extend(self.metadata.iter().map(|(key, value)| format!("{METADATA}{}={value}", encoded(key))));
        labels
    }
}

/// Returns the directory of variables, below the user's directory of state.
pub fn state_directory() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Ok(state.context("neither XDG_STATE_HOME nor HOME is set")?.join("banger/e2b"))
}

/// Returns that a sandbox does not exist.
pub fn not_found(id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("The sandbox {id:?} was not found."))
}

/// Returns that a sandbox does not run. SDKs look for these words.
fn gone(id: &str) -> Refusal {
    Refusal::new(Code::Unavailable, format!("The sandbox {id:?} was not found: it is paused or was deleted."))
}

fn check_timeout(timeout: u64) -> Result<()> {
    match timeout <= MAX_TIMEOUT {
        true => Ok(()),
        false => {
            Err(Refusal::new(Code::InvalidArgument, format!("A timeout is at most {MAX_TIMEOUT} seconds.")))
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Returns a key of metadata as a part of a label's key, which has no `=`.
fn encoded(key: &str) -> String {
    key.replace('%', "%25").replace('=', "%3D")
}

fn decoded(key: &str) -> String {
    key.replace("%3D", "=").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn row(labels: &[String]) -> Row {
        let labels: BTreeMap<&str, &str> =
            labels.iter().map(|label| label.split_once('=').unwrap()).collect();
        serde_json::from_value(json!({
            "id": "a", "state": "running", "image_name": "debian", "vcpus": 2, "memory": 1 << 30,
            "disk_size": 3 << 20, "root_size": 4 << 20, "labels": labels, "created_at": 5,
        }))
        .unwrap()
    }

    #[test]
    fn what_only_e2b_knows_comes_back_from_labels() {
        let metadata: BTreeMap<String, String> =
            [("a=b%3D".into(), "c=d".into()), ("é".into(), String::new())].into();
        let new = New { template: "node".into(), timeout: 60, pauses: true, metadata, ..New::default() };
        let row = row(&new.labels(1000));
        assert_eq!((row.end(), row.pauses(), row.template()), (1000 + 60 + CREATION, true, "node"));
        assert_eq!(row.metadata(), new.metadata);
        assert_eq!(row.disk_mebibytes(), 7);
    }

    #[test]
    fn a_sandbox_without_labels_of_ours_has_no_end_and_has_its_image() {
        let row = row(&[]);
        assert_eq!((row.end(), row.pauses(), row.template()), (0, false, "debian"));
        assert!(!row.is_ours());
        assert!(row.metadata().is_empty());
    }

    #[test]
    fn a_copy_of_a_sandbox_is_not_ours_although_it_has_the_labels() {
        let end = format!("{END}=5");
        assert!(row(std::slice::from_ref(&end)).is_ours(), "its creation was broken off");
        assert!(row(&[end.clone(), format!("{ID}=a")]).is_ours());
        assert!(!row(&[end, format!("{ID}=b")]).is_ours());
    }

    #[test]
    fn a_sandbox_that_another_program_resumes_does_not_end_at_once() {
        let sandboxes = Sandboxes::new(Arc::new(Banger::new("/nothing".into())), "/nothing".into());
        let mut row = row(&[format!("{END}=5")]);
        row.state = "suspended".into();
        assert!(sandboxes.update(&[row.clone()], &HashSet::new()).is_empty());
        row.state = "running".into();
        assert_eq!(sandboxes.update(&[row.clone()], &HashSet::new()), ["a"]);
        assert!(sandboxes.state().known["a"].end > 5);
        let mut paused = row.clone();
        paused.id = "p".into();
        paused.labels.insert(END.into(), PAUSED.to_string());
        assert_eq!(sandboxes.update(&[paused.clone()], &HashSet::new()), ["p"], "after a restart");
        assert!(sandboxes.state().known["p"].end < PAUSED);
        sandboxes.state().known.remove("p");
        // What was there before the list and is not in it is gone; what came meanwhile stays.
        assert!(sandboxes.update(&[], &HashSet::new()).is_empty());
        assert!(sandboxes.state().known.contains_key("a"));
        sandboxes.update(&[], &HashSet::from(["a".to_owned()]));
        assert!(sandboxes.state().known.is_empty());
    }

    #[tokio::test]
    async fn what_is_paused_or_has_more_time_again_is_not_ended() {
        // Nothing can be deleted: a sandbox that is left alone stays known, and one that ends is asked for.
        let sandboxes =
            Arc::new(Sandboxes::new(Arc::new(Banger::new("/bin/true".into())), "/nothing".into()));
        let known = |end: u64, is_paused: bool| Known { end, again: 0, pauses: false, is_paused };
        for (known, stays) in
            [(known(0, true), true), (known(u64::MAX, false), true), (known(0, false), false)]
        {
            sandboxes.state().known.insert("a".into(), known);
            Arc::clone(&sandboxes).end("a".into(), false).await;
            assert_eq!(sandboxes.state().known.remove("a").is_some(), stays, "{known:?}");
        }
    }

    #[tokio::test]
    async fn a_time_limit_beyond_the_bound_starts_nothing() {
        let banger = Arc::new(Banger::new("/nothing".into()));
        let sandboxes = Sandboxes::new(banger, "/nothing".into());
        assert_eq!(
            sandboxes.set_timeout("a", MAX_TIMEOUT + 1).await.unwrap_err().code,
            Code::InvalidArgument
        );
        let sandboxes = Arc::new(sandboxes);
        let new = New { timeout: u64::MAX, ..New::default() };
        assert_eq!(sandboxes.create(new).await.unwrap_err().code, Code::InvalidArgument);
        let metadata = (0..=MAX_METADATA).map(|key| (key.to_string(), String::new())).collect();
        let new = New { metadata, ..New::default() };
        assert_eq!(sandboxes.create(new).await.unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn variables_are_kept_for_their_user_alone() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let sandboxes =
            Sandboxes::new(Arc::new(Banger::new("/nothing".into())), directory.path().join("e2b"));
        let variables = BTreeMap::from([("A".to_owned(), "b\nc".to_owned())]);
        sandboxes.keep_variables("a", &variables).unwrap();
        assert_eq!(sandboxes.variables("a").unwrap(), variables);
        assert!(sandboxes.variables("b").unwrap().is_empty());
        let path = directory.path().join("e2b/a");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        sandboxes.remove_old_variables();
        assert!(!path.exists());
    }
}
