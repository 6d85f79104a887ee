//! The tools, by topic.

mod command;
mod copy;
mod file;
mod log;
mod port;
mod sandbox;
mod workspace;

use std::{pin::Pin, sync::Arc, time::Duration};

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use rmcp::{
    handler::server::tool::{schema_for_output, schema_for_type},
    model::{JsonObject, Tool as Description, ToolAnnotations},
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use zbus::OwnedObjectPath;

use super::{failure, policy::Policy, server::Server};
use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    error::{Error, Result},
    guest::agent::{Guest, run_blocking},
    ui::{progress::Progress, signals::Listener},
};

/// Time limit of calls that transfer files or wait for a job.
const LONG: Duration = Duration::from_secs(3600);

/// What a tool does to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It changes nothing.
    Reads,
    /// It adds something.
    Adds,
    /// It can change or remove what is there.
    Changes,
}

/// A tool: its arguments, and what it does with them.
trait Tool: DeserializeOwned + JsonSchema + Send + 'static {
    /// Its name.
    const NAME: &'static str;
    /// What a model reads about it.
    const ABOUT: &'static str;
    /// What it does to what is there.
    const EFFECT: Effect;
    /// How long a call may take.
    const TIME_LIMIT: Duration = Duration::from_secs(120);
    /// Whether it reads or writes files of the host.
    const USES_HOST_FILES: bool = false;
    /// The result, an object.
    type Output: Serialize + JsonSchema + 'static;

    /// Runs it.
    fn run(self, call: Call) -> impl Future<Output = Result<Self::Output>> + Send;
}

type Running = Pin<Box<dyn Future<Output = Result<Value>> + Send>>;

/// A tool in the table.
pub struct Entry {
    /// As the client sees it.
    pub tool: Description,
    /// Runs it.
    pub run: fn(Call, JsonObject) -> Running,
    /// How long a call may take.
    pub time_limit: Duration,
    uses_host_files: bool,
}

/// Returns the tools that this policy allows.
pub fn all(policy: &Policy) -> Vec<Entry> {
    let mut tools = vec![
        entry::<sandbox::Create>(),
        entry::<command::Run>(),
        entry::<command::Exec>(),
        entry::<file::ReadFile>(),
        entry::<file::WriteFile>(),
        entry::<file::ListFiles>(),
        entry::<copy::Upload>(),
        entry::<copy::Download>(),
        entry::<workspace::Prepare>(),
        entry::<workspace::Diff>(),
        entry::<workspace::Apply>(),
        entry::<workspace::FetchCommits>(),
        entry::<port::Ports>(),
        entry::<port::Publish>(),
        entry::<port::Unpublish>(),
        entry::<sandbox::List>(),
        entry::<sandbox::Show>(),
        entry::<log::Logs>(),
        entry::<sandbox::Start>(),
        entry::<sandbox::Stop>(),
        entry::<sandbox::Delete>(),
    ];
    tools.retain(|entry| policy.host_dir.is_some() || !entry.uses_host_files);
    tools
}

fn entry<T: Tool>() -> Entry {
    let annotations = ToolAnnotations::new()
        .read_only(T::EFFECT == Effect::Reads)
        .destructive(T::EFFECT == Effect::Changes)
        .open_world(false);
    let tool = Description::new(T::NAME, T::ABOUT, portable(&schema_for_type::<T>()))
        .with_raw_output_schema(portable(&schema_for_output::<T::Output>()).into())
        .with_annotations(annotations);
    Entry { tool, run: run::<T>, time_limit: T::TIME_LIMIT, uses_host_files: T::USES_HOST_FILES }
}

/// Returns a schema that every client reads: without the name of our type, and without the formats of numbers that only some know,
/// such as `uint64`.
fn portable(schema: &JsonObject) -> JsonObject {
    fn without_formats(value: &mut Value) {
        match value {
            Value::Object(members) => {
                // A property of this name is an object.
                members.retain(|key, value| key != "format" || !value.is_string());
                members.values_mut().for_each(without_formats);
            }
            Value::Array(items) => items.iter_mut().for_each(without_formats),
            _ => {}
        }
    }
    let mut schema = schema.clone();
    schema.remove("title");
    schema.remove("description");
    schema.values_mut().for_each(without_formats);
    schema
}

fn run<T: Tool>(call: Call, arguments: JsonObject) -> Running {
    Box::pin(async move {
        let parsed = serde_json::from_value(Value::Object(arguments));
        let tool: T = parsed.map_err(|error| {
            failure::invalid(format!("cannot read the arguments of {}: {error}", T::NAME))
        })?;
        let output = tool.run(call).await?;
        serde_json::to_value(output).map_err(|source| Error::io("write the result", source.into()))
    })
}

/// A call of a tool.
pub struct Call {
    pub server: Arc<Server>,
    /// Gets the signals that cancel the call.
    pub listener: Listener,
    /// Gets messages about progress, if the client wants them.
    pub messages: Option<mpsc::Sender<String>>,
    /// The share of the limit on calls, which threads keep until they end.
    pub permit: Arc<OwnedSemaphorePermit>,
}

/// A sandbox that the agent may use.
struct Found {
    path: OwnedObjectPath,
    object: Object,
    /// What the client calls it.
    reference: String,
}

impl Found {
    /// Puts its name into the hint of an error.
    fn about(&self, error: Error) -> Error {
        error.about(&self.reference)
    }
}

impl Call {
    fn bus(&self) -> &Bus {
        &self.server.bus
    }

    fn policy(&self) -> &Policy {
        &self.server.policy
    }

    fn listener(&self) -> Listener {
        self.listener.resubscribe()
    }

    /// Returns where the progress of jobs goes.
    fn progress(&self) -> Progress {
        self.messages.clone().map_or(Progress::Quiet, Progress::Messages)
    }

    /// Looks up a sandbox that the agent may see.
    async fn find(&self, reference: &str) -> Result<Found> {
        let hidden = || self.policy().hidden(reference);
        let path = match self.bus().find(Kind::Vm, reference).await {
            // Suggestions may name what is hidden.
            Err(error) if self.policy().label.is_some() && error.name() == Some(ErrorName::NoSuchVm) => {
                return Err(hidden());
            }
            found => found?,
        };
        let object = self.bus().properties(&path, VM_INTERFACE).await?;
        match self.policy().shows(&object) {
            true => Ok(Found { path, object, reference: reference.to_owned() }),
            false => Err(hidden()),
        }
    }

    /// Looks up a sandbox in which the agent may run something.
    async fn find_for_use(&self, reference: &str) -> Result<Found> {
        let found = self.find(reference).await?;
        self.policy().check_reach(&found.object)?;
        Ok(found)
    }

    /// Returns the agent in a sandbox.
    fn guest(&self, sandbox: &Found) -> Guest {
        Guest::new(self.bus().clone(), sandbox.path.clone(), self.listener())
    }
}

/// Runs blocking work, such as git, which is killed if the call is cancelled. It counts as a call until it ends.
async fn blocking<T: Send + 'static>(
    call: &Call,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let permit = Arc::clone(&call.permit);
    let counted = move || {
        let done = work();
        drop(permit);
        done
    };
    run_blocking(&mut call.listener(), counted, || ()).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::{super::policy::tests::open, *};
    use crate::mcp::HostDir;

    /// Returns all tools.
    fn with_files() -> Vec<Entry> {
        all(&Policy { host_dir: Some(HostDir::open("/tmp".as_ref()).unwrap()), ..open() })
    }

    #[test]
    fn every_tool_describes_each_of_its_arguments() {
        let tools = with_files();
        let names: BTreeSet<_> = tools.iter().map(|entry| entry.tool.name.clone()).collect();
        assert_eq!(names.len(), tools.len());
        for Entry { tool, .. } in &tools {
            let schema = &tool.input_schema;
            assert_eq!(schema["type"], "object", "{}", tool.name);
            assert_eq!(schema["additionalProperties"], false, "{}", tool.name);
            let properties = schema.get("properties").and_then(Value::as_object);
            for (name, property) in properties.into_iter().flatten() {
                assert!(property["description"].is_string(), "{}.{name}", tool.name);
            }
            assert!(tool.output_schema.as_ref().unwrap().contains_key("type"), "{}", tool.name);
            let text = serde_json::to_string(schema).unwrap();
            assert!(!text.contains("$ref") && !text.contains("uint"), "{text}");
            assert!(tool.description.as_ref().unwrap().ends_with('.'), "{}", tool.name);
        }
    }

    #[test]
    fn tools_say_what_they_do_to_what_is_there() {
        for Entry { tool, .. } in &with_files() {
            let hints = tool.annotations.as_ref().unwrap();
            let reads = ["read_file", "list_files", "diff", "ports", "list", "show", "logs"];
            assert_eq!(hints.read_only_hint, Some(reads.contains(&&*tool.name)), "{}", tool.name);
            let adds = ["create", "run", "prepare", "fetch_commits", "publish", "start"];
            let is_safe = reads.contains(&&*tool.name) || adds.contains(&&*tool.name);
            assert_eq!(hints.destructive_hint, Some(!is_safe), "{}", tool.name);
        }
    }

    #[test]
    fn without_a_directory_no_tool_touches_files_of_the_host() {
        let names: Vec<_> = all(&open()).iter().map(|entry| entry.tool.name.clone()).collect();
        for tool in ["upload", "download", "prepare", "apply", "fetch_commits"] {
            assert!(!names.contains(&tool.into()), "{tool}");
        }
        assert!(names.contains(&"exec".into()) && names.contains(&"diff".into()));
    }

    /// `INSTA_UPDATE=always` rewrites the snapshot. Clients rely on what is in it.
    #[test]
    fn tools_keep_their_arguments_and_results() {
        let keys = |schema: &JsonObject| {
            let required = schema.get("required").and_then(Value::as_array);
            let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|one| one == name));
            let properties = schema.get("properties").and_then(Value::as_object);
            let keys = properties.into_iter().flatten().map(|(name, _)| match is_required(name) {
                true => name.clone(),
                false => format!("{name}?"),
            });
            keys.collect::<Vec<_>>().join(", ")
        };
        let line = |Entry { tool, .. }: &Entry| {
            let output = tool.output_schema.as_ref().unwrap();
            format!("{}({}) -> {}\n", tool.name, keys(&tool.input_schema), keys(output))
        };
        crate::ui::wording::check("tools_of_mcp", &with_files().iter().map(line).collect::<String>());
    }

    #[test]
    fn every_tool_is_documented() {
        let page = include_str!("../../../../docs/agents.md");
        for Entry { tool, .. } in &with_files() {
            assert!(page.contains(&format!("| `{}` |", tool.name)), "{}", tool.name);
        }
    }
}
