//! What is worth a notification, and in which words.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::service::{Change, Properties, What, first_path, text};

/// The user who began a shorter job still looks at it.
const LONG_JOB: Duration = Duration::from_secs(10);
/// The most characters of a message from the service: it may have words of registries.
const LONGEST: usize = 300;
/// The most objects of each kind that are remembered.
const MAX_OBJECTS: usize = 4096;
/// How a state's reason begins if the job that started the sandbox reports it as well.
const REPORTED_BY_JOB: &str = "start-failed";

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is about. A later note about the same thing replaces it.
    pub about: String,
    pub summary: String,
    /// Plain text.
    pub body: String,
    pub is_failure: bool,
}

/// What is known of the user's sandboxes and jobs.
#[derive(Debug, Default)]
pub struct News {
    /// The names of sandboxes, by path.
    names: HashMap<String, String>,
    /// The jobs that have not ended, by path.
    jobs: HashMap<String, Job>,
}

#[derive(Debug)]
struct Job {
    kind: String,
    /// The path of the sandbox or image that it works on.
    object: Option<String>,
    began: Instant,
    error: String,
}

impl News {
    /// Forgets everything, and begins with these objects. Nothing that was there before is news.
    pub fn reset(&mut self, objects: Vec<Change>) {
        *self = Self::default();
        for object in objects {
            self.hear(object, Instant::now());
        }
    }

    /// Takes a change into account, and returns the note that it is worth.
    pub fn hear(&mut self, change: Change, now: Instant) -> Option<Note> {
        let Change { path, what } = change;
        match what {
            What::Vm(properties) => {
                if let Some(name) = text(&properties, "Name") {
                    put(&mut self.names, path, shortened(name));
                }
                None
            }
            What::State { now, reason } => self.state(path, &now, &reason),
            What::Job(properties) => self.job(path, &properties, now),
            What::Gone => {
                self.names.remove(&path);
                self.jobs.remove(&path);
                None
            }
        }
    }

    fn state(&self, path: String, now: &str, reason: &str) -> Option<Note> {
        if now != "failed" || reason.starts_with(REPORTED_BY_JOB) {
            return None;
        }
        let name = self.names.get(&path)?;
        let body = format!("{}. See: banger vm logs {name}", words_of(reason));
        Some(Note { about: path, summary: format!("{name} failed"), body, is_failure: true })
    }

    fn job(&mut self, path: String, properties: &Properties, now: Instant) -> Option<Note> {
        if let Some(kind) = text(properties, "Kind") {
            // One that ended before it was seen is no news.
            if text(properties, "Result").is_some_and(|result| !result.is_empty()) {
                return None;
            }
            let object = first_path(properties, "Objects");
            let job = Job { kind: kind.to_owned(), object, began: now, error: String::new() };
            put(&mut self.jobs, path, job);
            return None;
        }
        let job = self.jobs.get_mut(&path)?;
        if let Some(object) = first_path(properties, "Objects") {
            job.object = Some(object);
        }
        if let Some(error) = text(properties, "ErrorMessage") {
            job.error = shortened(error);
        }
        let result = text(properties, "Result").filter(|result| !result.is_empty())?.to_owned();
        let job = self.jobs.remove(&path)?;
        self.ended(path, &job, &result, now)
    }

    fn ended(&self, path: String, job: &Job, result: &str, now: Instant) -> Option<Note> {
        let name = job.object.as_ref().and_then(|object| self.names.get(object));
        let (done, verb) = words_of_kind(&job.kind);
        let about = job.object.clone().unwrap_or(path);
        match result {
            "failed" => {
                let what = name.map_or(verb.to_owned(), |name| format!("{verb} {name}"));
                let body = shortened(&job.error);
                Some(Note { about, summary: format!("cannot {what}"), body, is_failure: true })
            }
            "done" if now.duration_since(job.began) >= LONG_JOB => {
                let summary =
                    name.map_or_else(|| format!("Image {done}"), |name| format!("{name} is {done}"));
                let summary = if job.kind.starts_with("kernel") { format!("Kernel {done}") } else { summary };
                Some(Note { about, summary, body: String::new(), is_failure: false })
            }
            _ => None,
        }
    }
}

/// Remembers an object, unless there are too many.
fn put<T>(objects: &mut HashMap<String, T>, path: String, object: T) {
    if objects.len() < MAX_OBJECTS || objects.contains_key(&path) {
        objects.insert(path, object);
    }
}

/// Returns how a kind of job is called when it is done, and when it failed.
fn words_of_kind(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "vm-create" => ("ready", "create"),
        "vm-start" | "vm-restart" => ("ready", "start"),
        "vm-stop" => ("stopped", "stop"),
        "vm-delete" => ("deleted", "delete"),
        "image-commit" => ("committed", "make an image of"),
        "image-import" => ("imported", "import an image"),
        "image-pull" => ("pulled", "pull an image"),
        "image-export" => ("exported", "export an image"),
        "kernel-import" => ("imported", "import a kernel"),
        "kernel-pull" => ("pulled", "pull a kernel"),
        _ => ("done", "finish a job"),
    }
}

/// Returns what the reason of a failed state means (docs/lifecycle.md).
fn words_of(reason: &str) -> String {
    let text = match reason {
        "guest-panic" => "The kernel of the guest panicked",
        "reboot-loop" => "The guest rebooted again and again",
        "vmm-out-of-memory" => "The host ran out of memory",
        "" => "The VMM ended",
        other => return shortened(other),
    };
    text.to_owned()
}

/// Returns the first characters of a text, without those that control terminals.
fn shortened(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use zbus::{ObjectPath, OwnedVariant, Variant};

    use super::*;

    const VM: &str = "/dev/banger/Manager1/vm/1";
    const JOB: &str = "/dev/banger/Manager1/job/1";

    fn properties(pairs: &[(&str, &str)]) -> Properties {
        let value = |text: &str| OwnedVariant::try_from(Variant::from(text.to_owned())).unwrap();
        pairs.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect()
    }

    fn begun(kind: &str) -> What {
        let mut properties = properties(&[("Kind", kind), ("Result", "")]);
        let paths = vec![ObjectPath::try_from(VM).unwrap()];
        properties.insert("Objects".to_owned(), OwnedVariant::try_from(Variant::from(paths)).unwrap());
        What::Job(properties)
    }

    /// Returns the notes on these changes; a job that ends does so after this time.
    fn notes(seconds: u64, changes: Vec<(&str, What)>) -> Vec<(String, String, bool)> {
        let (mut news, begin) = (News::default(), Instant::now());
        let vm = Change { path: VM.to_owned(), what: What::Vm(properties(&[("Name", "web")])) };
        assert_eq!(news.hear(vm, begin), None);
        let count = changes.len();
        let at = |place: usize| if place + 1 == count { begin + Duration::from_secs(seconds) } else { begin };
        let heard = changes
            .into_iter()
            .enumerate()
            .filter_map(|(place, (path, what))| news.hear(Change { path: path.to_owned(), what }, at(place)));
        heard.map(|note| (note.summary, note.body, note.is_failure)).collect()
    }

    fn ended(result: &str, error: &str) -> What {
        What::Job(properties(&[("Result", result), ("ErrorMessage", error)]))
    }

    #[test]
    fn long_jobs_and_failures_are_news() {
        let check = |seconds, kind: &str, result: &str, expect: Option<(&str, &str, bool)>| {
            let notes = notes(seconds, vec![(JOB, begun(kind)), (JOB, ended(result, "no\nspace"))]);
            let expect = expect.map(|(summary, body, failed)| (summary.to_owned(), body.to_owned(), failed));
            assert_eq!(notes, Vec::from_iter(expect), "{kind} {result} after {seconds} s");
        };
        check(60, "vm-create", "done", Some(("web is ready", "", false)));
        check(60, "vm-stop", "done", Some(("web is stopped", "", false)));
        check(9, "vm-create", "done", None);
        check(0, "vm-start", "failed", Some(("cannot start web", "nospace", true)));
        check(0, "image-commit", "failed", Some(("cannot make an image of web", "nospace", true)));
        check(60, "vm-start", "canceled", None);
    }

    #[test]
    fn a_guest_that_fails_is_news_once() {
        let state = |now: &str, reason: &str| What::State { now: now.to_owned(), reason: reason.to_owned() };
        let check = |now, reason, expect: &[&str]| {
            let notes = notes(0, vec![(VM, state(now, reason))]);
            assert_eq!(
                notes.iter().map(|note| note.1.as_str()).collect::<Vec<_>>(),
                expect,
                "{now} {reason}"
            );
        };
        check("failed", "guest-panic", &["The kernel of the guest panicked. See: banger vm logs web"]);
        check("failed", "vmm-exit:killed:9", &["vmm-exit:killed:9. See: banger vm logs web"]);
        check("failed", "start-failed: no memory", &[]);
        check("stopped", "guest-shutdown", &[]);
    }

    #[test]
    fn names_and_numbers_of_objects_are_bounded() {
        let mut news = News::default();
        for number in 0..MAX_OBJECTS + 9 {
            let name = format!("a\u{1b}[2J{}", "x".repeat(LONGEST));
            let vm = What::Vm(properties(&[("Name", &name)]));
            news.hear(Change { path: format!("{VM}{number}"), what: vm }, Instant::now());
            news.hear(Change { path: format!("{JOB}{number}"), what: begun("vm-start") }, Instant::now());
        }
        assert_eq!((news.names.len(), news.jobs.len()), (MAX_OBJECTS, MAX_OBJECTS));
        let is_safe = |name: &String| name.len() <= LONGEST && !name.contains('\u{1b}');
        assert!(news.names.values().all(is_safe));
    }

    #[test]
    fn what_ended_before_is_no_news() {
        let mut job = properties(&[("Kind", "vm-start"), ("Result", "failed")]);
        job.insert("ErrorMessage".to_owned(), OwnedVariant::try_from(Variant::from("old")).unwrap());
        assert_eq!(notes(0, vec![(JOB, What::Job(job))]), []);
        assert_eq!(notes(0, vec![("/unknown", ended("failed", "of another"))]), []);
    }
}
