//! Runs one verb on many objects at once, and prints the results in the order of the references.

use std::collections::HashSet;

use clap::Args;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use zbus::OwnedObjectPath;

use crate::{
    client::{
        bus::Bus,
        service::{Kind, id_of},
    },
    error::{Error, FAILURE, Result},
    ui::{output, progress::Progress},
};

/// Limit on concurrent calls. The service serves 32 calls of a user at once; this leaves some for others.
const MAX_CONCURRENT: usize = 16;

/// A reference and the object that it names, if any.
pub type Found = (String, Result<OwnedObjectPath>);

/// The output option of a command that acts on many objects.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct ResultArgs {
    /// Print a JSON array with the result for each object
    #[arg(long)]
    pub json: bool,
}

/// What a verb did to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It did what was asked.
    Changed,
    /// It did what was asked, said in these words.
    ChangedTo(&'static str),
    /// Nothing, because the object already was as asked; said in these words.
    Unchanged(&'static str),
}

/// Returns the row for an object to which nothing was done.
pub fn untouched(reference: &str, id: &str) -> Value {
    json!({"reference": reference, "id": id, "done": null, "changed": false, "error": null})
}

/// Returns the row for an object, or for a reference that names none.
fn row(reference: &str, id: Option<&str>, done: &str, result: &Result<Effect>) -> Value {
    json!({
        "reference": reference,
        "id": id,
        "done": result.is_ok().then_some(done),
        "changed": matches!(result, Ok(Effect::Changed | Effect::ChangedTo(_))),
        "error": result.as_ref().err().map(Error::to_string),
    })
}

/// Looks up each reference. An object that several of them name is returned once.
pub async fn find(bus: &Bus, kind: Kind, references: &[String]) -> Vec<Found> {
    let found: Vec<Found> = stream::iter(distinct(references))
        .map(|reference| async { (reference.clone(), bus.find(kind, reference).await) })
        .buffered(MAX_CONCURRENT)
        .collect()
        .await;
    let mut seen = HashSet::new();
    let is_new = |(_, found): &Found| match found {
        Ok(path) => seen.insert(path.clone()),
        Err(_) => true,
    };
    found.into_iter().filter(is_new).collect()
}

/// Calls `act` for each object, and prints `done` for each one that it has changed. A failure does not stop the
/// others. Returns the exit status.
pub async fn each<F>(
    found: Vec<Found>,
    progress: &Progress,
    done: &str,
    output: ResultArgs,
    act: impl Fn(String, OwnedObjectPath) -> F,
) -> Result<u8>
where
    F: Future<Output = Result<Effect>>,
{
    let several = found.len() > 1;
    let act = &act;
    let mut results = stream::iter(found)
        .map(async |(reference, found)| {
            let id = found.as_ref().ok().map(|path| id_of(path));
            let result = match found {
                Ok(path) => act(reference.clone(), path).await,
                Err(error) => Err(error),
            };
            let result = result.map_err(|error| error.about(&reference));
            (reference, id, result)
        })
        .buffered(MAX_CONCURRENT)
        .boxed_local();
    let (mut status, mut rows) = (0, Vec::new());
    while let Some((reference, id, result)) = results.next().await {
        rows.push(row(&reference, id.as_deref(), done, &result));
        match result {
            Ok(_) if output.json => {}
            Ok(effect) => {
                let what = match effect {
                    Effect::Changed => done,
                    Effect::ChangedTo(done) => done,
                    Effect::Unchanged(already) => already,
                };
                progress.suspend(|| output::text(&format!("{reference}: {what}\n")))?;
            }
            Err(error) => {
                status = error.status(FAILURE);
                progress.suspend(|| error.print(several.then_some(reference.as_str())));
            }
        }
    }
    if output.json {
        progress.suspend(|| output::json(&Value::Array(rows)))?;
    }
    Ok(status)
}

/// Returns each text once, at its first position.
fn distinct(references: &[String]) -> Vec<&String> {
    let mut seen = HashSet::new();
    references.iter().filter(|reference| seen.insert(reference.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_reference_counts_once() {
        let references = ["b", "a", "b", "c", "a"].map(str::to_owned);
        assert_eq!(distinct(&references), ["b", "a", "c"]);
    }
}
