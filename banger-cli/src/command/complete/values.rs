//! What a shell is offered for a value: names, filters, signals, ports, columns, and paths in a sandbox.
//!
//! Answers come within [`TIMEOUT`] or not at all. Nothing is started for them, nobody is asked for a password, and a
//! failure prints nothing.

use std::{ffi::OsStr, time::Duration};

use banger_proto::{
    bus::{option::catalog, proxy::Options},
    guest::Request,
};
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};
use serde_json::Value;
use zbus::Variant;

use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    command::{
        filter::{self, Keys},
        vm::{
            cp::side::{self, GuestPath, Side},
            kill,
        },
    },
    error::Result,
    guest::agent::Guest,
    ui::{
        column::{List, plain},
        sanitize,
        signals::Signals,
    },
};

/// How long a completion may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What is offered for a value.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// Names of objects.
    Names(Kind),
    /// Names of catalog entries of this kind.
    Entries(&'static str),
    /// The sources and destinations of copies.
    Copies,
    /// The conditions of `--filter` for a list of these objects.
    Filters(Kind),
    /// Names of signals.
    Signals,
    /// Egress presets.
    Presets,
    /// Published ports.
    Published,
    /// A column of this list to sort by.
    Sort(List),
    /// Columns of this list.
    Columns(List),
    /// The usual forms of a list.
    Formats,
}

/// A value, and what a shell shows beside it.
type Offer = (String, Option<String>);

impl Source {
    /// Returns the candidates for what was typed.
    pub fn complete(self, typed: &OsStr) -> Vec<CompletionCandidate> {
        let Some(text) = typed.to_str() else { return Vec::new() };
        let mut offers = within_time(self.offers(text)).unwrap_or_default();
        offers.retain(|(value, _)| value.starts_with(text) && is_plain(value));
        let candidate = |(value, about): Offer| {
            CompletionCandidate::new(value).help(about.map(|about| sanitize::line(&about).into()))
        };
        let mut candidates: Vec<_> = offers.into_iter().map(candidate).collect();
        if matches!(self, Source::Copies) && !matches!(Side::parse(text), Side::Sandbox(_)) {
            let paths = PathCompleter::any().complete(typed);
            candidates
                .extend(paths.into_iter().filter(|path| path.get_value().to_str().is_some_and(is_plain)));
        }
        candidates
    }

    async fn offers(self, typed: &str) -> Result<Vec<Offer>> {
        let bare = |values: Vec<String>| values.into_iter().map(|value| (value, None)).collect();
        match self {
            Source::Names(kind) => names(kind).await,
            Source::Entries(kind) => entries(kind).await,
            Source::Copies => copies(typed).await,
            Source::Filters(kind) => filters(kind, typed).await,
            Source::Signals => Ok(bare(kill::SIGNALS.map(|(name, _)| name.to_owned()).into())),
            Source::Presets => match service().await? {
                Some(bus) => Ok(bare(bus.manager().await?.strings("EgressPresets"))),
                None => Ok(Vec::new()),
            },
            Source::Published => published().await,
            Source::Sort(list) => {
                let hyphen = if typed.starts_with('-') { "-" } else { "" };
                Ok(bare(list.words().iter().map(|word| format!("{hyphen}{word}")).collect()))
            }
            Source::Columns(list) => {
                let before =
                    typed.rsplit_once(',').map(|(before, _)| format!("{before},")).unwrap_or_default();
                Ok(bare(list.words().iter().map(|word| format!("{before}{word}")).collect()))
            }
            Source::Formats => Ok(bare(["json", "table"].map(str::to_owned).into())),
        }
    }
}

/// Returns whether a value can be put into a command line as it is. Bash does not quote it, and a guest chooses the
/// names of its files.
fn is_plain(value: &str) -> bool {
    value.chars().all(|letter| letter.is_alphanumeric() || "._-+,@%/=:~".contains(letter))
}

/// Runs a query for a limited time. What it leaves behind ends with the process.
fn within_time<T>(query: impl Future<Output = Result<T>>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(async { tokio::time::timeout(TIMEOUT, query).await });
    runtime.shutdown_background();
    answer.ok()?.ok()
}

/// Connects to the service, if it is running.
async fn service() -> Result<Option<Bus>> {
    let bus = Bus::connect_briefly().await?;
    Ok(bus.service_runs().await.then_some(bus))
}

async fn objects(kind: Kind) -> Result<Vec<Object>> {
    let mut objects = match service().await? {
        Some(bus) => bus.objects(kind.interface()).await?,
        None => Vec::new(),
    };
    objects.sort_by(|one, other| one.name().cmp(other.name()));
    Ok(objects)
}

async fn names(kind: Kind) -> Result<Vec<Offer>> {
    let offer = |object: &Object| (object.name().to_owned(), Some(description(kind, object)));
    Ok(objects(kind).await?.iter().map(offer).collect())
}

/// Returns the description that a shell shows next to a name.
fn description(kind: Kind, object: &Object) -> String {
    match kind {
        Kind::Vm => format!("{}, {}", object.text("State"), object.text("ImageName")),
        Kind::Image => object.text("Source").to_owned(),
        Kind::Kernel => object.text("Version").to_owned(),
    }
}

async fn entries(kind: &str) -> Result<Vec<Offer>> {
    let Some(bus) = service().await? else { return Ok(Vec::new()) };
    let options = Options::from([(catalog::KIND, Variant::from(kind))]);
    let entries = bus.list_catalog(&options).await?.into_iter().map(Object::new);
    let offer = |entry: Object| {
        (entry.text(catalog::NAME).to_owned(), Some(entry.text(catalog::DESCRIPTION).to_owned()))
    };
    Ok(entries.map(offer).collect())
}

/// Returns the sandboxes with a colon, or the paths in one of them.
async fn copies(typed: &str) -> Result<Vec<Offer>> {
    let Side::Sandbox(GuestPath { sandbox, path }) = Side::parse(typed) else {
        let names = names(Kind::Vm).await?.into_iter();
        return Ok(names.map(|(name, about)| (format!("{name}:"), about)).collect());
    };
    let Some(bus) = service().await? else { return Ok(Vec::new()) };
    let vm = bus.find(Kind::Vm, &sandbox).await?;
    let properties = bus.properties(&vm, Kind::Vm.interface()).await?;
    if properties.text("State") != "running" {
        return Ok(Vec::new());
    }
    let mut guest = Guest::new(bus, vm, Signals::catch()?.listen());
    let login = side::login(&guest)?;
    let there = GuestPath { sandbox, path };
    let names: Vec<String> =
        guest.query(Request::Complete { path: there.path_for(login.as_deref()) }).await?;
    let directory =
        there.path.rsplit_once('/').map(|(directory, _)| format!("{directory}/")).unwrap_or_default();
    Ok(names.into_iter().map(|name| (format!("{}:{directory}{name}", there.sandbox), None)).collect())
}

async fn filters(kind: Kind, typed: &str) -> Result<Vec<Offer>> {
    let Some((key, _)) = typed.split_once('=') else {
        let keys: Keys = match kind {
            Kind::Vm => filter::SANDBOXES,
            Kind::Image => filter::IMAGES,
            Kind::Kernel => filter::KERNELS,
        };
        return Ok(keys.words().iter().map(|key| (format!("{key}="), None)).collect());
    };
    let values: Vec<String> = match (kind, key) {
        (Kind::Vm, "state" | "status") => filter::STATES.map(str::to_owned).into(),
        (Kind::Image | Kind::Kernel, "shared") => filter::FLAGS.map(str::to_owned).into(),
        (_, "name") => names_of(kind).await?,
        (_, "image" | "reference") => names_of(Kind::Image).await?,
        (_, "kernel") => names_of(Kind::Kernel).await?,
        (Kind::Vm, "label") => labels().await?,
        _ => Vec::new(),
    };
    Ok(values.into_iter().map(|value| (format!("{key}={value}"), None)).collect())
}

async fn names_of(kind: Kind) -> Result<Vec<String>> {
    Ok(objects(kind).await?.iter().map(|object| object.name().to_owned()).collect())
}

/// Returns the labels of all sandboxes, each once.
async fn labels() -> Result<Vec<String>> {
    let mut labels: Vec<String> = Vec::new();
    for sandbox in objects(Kind::Vm).await? {
        if let Value::Object(pairs) = &sandbox.json()["labels"] {
            labels.extend(pairs.iter().map(|(key, value)| format!("{key}={}", plain(value))));
        }
    }
    labels.sort_unstable();
    labels.dedup();
    Ok(labels)
}

/// Returns the published ports of all sandboxes, as `vm unpublish` takes them.
async fn published() -> Result<Vec<Offer>> {
    let mut offers = Vec::new();
    for sandbox in objects(Kind::Vm).await? {
        for port in sandbox.json()["published_ports"].as_array().into_iter().flatten() {
            let suffix = if port["protocol"] == "udp" { "/udp" } else { "" };
            let about = format!("{} of {}", plain(&port["guest_port"]), sandbox.name());
            offers.push((format!("{}{suffix}", plain(&port["host_port"])), Some(about)));
        }
    }
    Ok(offers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::vm::list::LIST;

    fn values(source: Source, typed: &str) -> Vec<String> {
        let found = source.complete(OsStr::new(typed));
        found.iter().map(|candidate| candidate.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn words_that_need_no_service_are_completed() {
        assert_eq!(values(Source::Filters(Kind::Vm), "st"), ["state="]);
        assert_eq!(values(Source::Filters(Kind::Image), "ref"), ["reference="]);
        assert_eq!(values(Source::Filters(Kind::Kernel), "shared=t"), ["shared=true"]);
        assert_eq!(
            values(Source::Filters(Kind::Vm), "state=st"),
            ["state=starting", "state=stopping", "state=stopped"]
        );
        assert_eq!(values(Source::Signals, "K"), ["KILL"]);
        assert_eq!(values(Source::Sort(LIST), "-me"), ["-mem", "-memory"]);
        assert_eq!(
            values(Source::Columns(LIST), "name,sta"),
            ["name,state", "name,started_at", "name,state_reason"]
        );
        assert_eq!(values(Source::Formats, "j"), ["json"]);
    }

    #[test]
    fn what_a_shell_would_read_as_more_than_a_word_is_not_offered() {
        for (value, expect) in [
            ("web:/etc/hosts", true),
            ("name,größe", true),
            ("web:/tmp/$(reboot)", false),
            ("a b", false),
            ("a;b", false),
            ("a`b`", false),
            ("a\nb", false),
            ("a'b", false),
            ("a*", false),
        ] {
            assert_eq!(is_plain(value), expect, "{value:?}");
        }
    }
}
