//! `dev.banger.Manager1.Job`: work that takes longer than a call.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::id::JobId;
use banger_proto::bus::{ErrorName, names::JOB_INTERFACE};
use zbus::{OwnedObjectPath, OwnedVariant, Variant, interface};

use super::{
    api::{Api, Target},
    error::{Error, Result},
    export::{
        Change::{Never, Signaled},
        Kind, Property, api, export, property,
    },
    image::ImageKind,
    kernel::KernelKind,
    options::Dict,
    path,
};
use crate::engine::{
    Engine,
    view::{Fact, JobView, Object, Outcome},
};

/// The kind of job objects.
#[derive(Clone)]
pub struct JobKind(pub JobId);

impl Kind for JobKind {
    type View = JobView;
    type Methods = Methods;
    const INTERFACE: &'static str = JOB_INTERFACE;
    const SIGNALS: &'static str = r#"
<signal name="Stage"><arg name="stage" type="s"/><arg name="index" type="u"/><arg name="count" type="u"/><arg name="message" type="s"/></signal>
<signal name="Completed"><arg name="result" type="s"/><arg name="error_name" type="s"/><arg name="error_message" type="s"/><arg name="data" type="a{sv}"/></signal>"#;

    fn path(&self) -> OwnedObjectPath {
        path::job(self.0)
    }

    fn properties() -> &'static [Property<JobView>] {
        PROPERTIES
    }

    fn methods(&self, api: Weak<Api>) -> Methods {
        Methods { api, id: self.0 }
    }

    fn view(&self, engine: &Engine) -> Option<Arc<JobView>> {
        engine.job(self.0)
    }

    fn target(view: &JobView, api: &Api) -> Option<Target> {
        let creator = api.subscribers.creator(view.id);
        let object = format!("job {}", view.id);
        Some(Target { owner: view.owner, is_shared: false, creator, object, details: Vec::new() })
    }

    fn gone() -> Error {
        Error::new(ErrorName::NoSuchJob, "the job is no longer known")
    }

    fn describe(&self, span: &tracing::Span) {
        span.record("job", tracing::field::display(self.0));
    }
}

const PROPERTIES: &[Property<JobView>] = &[
    property("Id", "s", Never, |job, _| job.id.to_string().into()),
    property("Kind", "s", Never, |job, _| job.kind.as_str().into()),
    property("OwnerUid", "u", Never, |job, _| job.owner.0.into()),
    property("Objects", "ao", Signaled, |job, _| {
        let objects: Vec<OwnedObjectPath> = job.objects.iter().map(path::object).collect();
        objects.into()
    }),
    property("State", "s", Signaled, |job, _| state(job).into()),
    property("Stage", "s", Signaled, |job, _| job.stage.into()),
    property("StageIndex", "u", Signaled, |job, _| job.stage_index.into()),
    property("StageCount", "u", Signaled, |job, _| job.stage_count.into()),
    property("Message", "s", Signaled, |job, _| job.message.clone().into()),
    property("Progress", "d", Signaled, |job, _| progress(job).into()),
    property("BytesDone", "t", Signaled, |job, _| job.bytes_done.0.into()),
    property("BytesTotal", "t", Signaled, |job, _| job.bytes_total.0.into()),
    property("Cancelable", "b", Signaled, |job, _| job.outcome.is_none().into()),
    property("StartedAt", "t", Never, |job, _| job.started_at.0.into()),
    property("FinishedAt", "t", Signaled, |job, _| job.finished_at.0.into()),
    property("Result", "s", Signaled, |job, _| result(job).result.into()),
    property("ErrorName", "s", Signaled, |job, _| result(job).error_name.into()),
    property("ErrorMessage", "s", Signaled, |job, _| result(job).error_message.into()),
    property("Data", "a{sv}", Signaled, |job, _| data(job).into()),
];

/// Returns the word for the state of a job.
pub fn state(job: &JobView) -> &'static str {
    match &job.outcome {
        None if job.stage_index == 0 => "queued",
        None => "running",
        Some(_) => result(job).result,
    }
}

/// Returns the progress of a job from its stages and the bytes of the current one: 0 to 1, or -1 before the first
/// stage.
pub fn progress(job: &JobView) -> f64 {
    match (&job.outcome, job.stage_index) {
        (Some(Outcome::Done), _) => 1.0,
        (_, 0) => -1.0,
        (_, index) => {
            let part = match job.bytes_total.0 {
                0 => 0.0,
                total => (job.bytes_done.0 as f64 / total as f64).min(1.0),
            };
            (f64::from(index - 1) + part) / f64::from(job.stage_count.max(1))
        }
    }
}

/// The result of a job, as in `Wait` and `Completed`.
pub struct JobResult {
    /// `done`, `failed` or `canceled`; empty while the job runs.
    pub result: &'static str,
    pub error_name: String,
    pub error_message: String,
}

pub fn result(job: &JobView) -> JobResult {
    let of = |result, error: Option<Error>| match error {
        None => JobResult { result, error_name: String::new(), error_message: String::new() },
        Some(error) => JobResult { result, error_name: error.name.to_string(), error_message: error.message },
    };
    match &job.outcome {
        None => of("", None),
        Some(Outcome::Done) => of("done", None),
        Some(Outcome::Canceled) => {
            of("canceled", Some(Error::new(ErrorName::Canceled, "the operation was canceled")))
        }
        Some(Outcome::Failed(error)) => of("failed", Some((&**error).into())),
    }
}

/// Returns the objects of a job, by kind, and the details of its result.
pub fn data(job: &JobView) -> HashMap<&'static str, Variant<'static>> {
    let named = |object: &Object| match object {
        Object::Vm(_) => "vm",
        Object::Image(_) => "image",
        Object::Kernel(_) => "kernel",
    };
    let facts = job.facts.iter().map(|(key, fact)| match fact {
        Fact::Number(number) => (*key, (*number).into()),
        Fact::Text(text) => (*key, text.clone().into()),
    });
    job.objects.iter().map(|object| (named(object), path::object(object).into())).chain(facts).collect()
}

/// The methods of a job.
pub struct Methods {
    api: Weak<Api>,
    id: JobId,
}

/// A job.
#[interface(name = "dev.banger.Manager1.Job", introspection_docs = false)]
impl Methods {
    async fn cancel(&self) -> Result<()> {
        Ok(api(&self.api)?.engine.cancel_job(self.id)?)
    }

    #[zbus(out_args("result", "error_name", "error_message", "data"))]
    async fn wait(&self, timeout_usec: u64) -> Result<(String, String, String, Dict)> {
        let timeout = (timeout_usec != 0).then(|| Duration::from_micros(timeout_usec));
        let api = api(&self.api)?;
        let job = api.engine.wait_job(self.id, timeout).await?;
        // A client may use the result at once, before the publisher has exported it.
        for object in &job.objects {
            match *object {
                Object::Image(id) if api.engine.image(id).is_some() => export(&api, ImageKind(id)).await?,
                Object::Kernel(id) if api.engine.kernel(id).is_some() => {
                    export(&api, KernelKind(id)).await?;
                }
                Object::Vm(_) | Object::Image(_) | Object::Kernel(_) => {}
            }
        }
        let JobResult { result, error_name, error_message } = result(&job);
        let mut made = HashMap::new();
        for (name, value) in data(&job) {
            made.insert(name.to_owned(), OwnedVariant::try_from(value)?);
        }
        Ok((result.to_owned(), error_name, error_message, made))
    }
}
