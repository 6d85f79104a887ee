//! Collects what is logged, with the fields of the spans around it, as the journal gets it.

#![allow(clippy::unwrap_used, dead_code, reason = "each test binary uses a part of this")]

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    layer::Context,
    registry::{LookupSpan, Registry},
};

/// The fields of an entry, with its text as `message`.
pub type Entry = BTreeMap<String, String>;

/// The collected entries. Clones share them.
#[derive(Clone, Default)]
pub struct Entries(Arc<Mutex<Vec<Entry>>>);

impl Entries {
    /// Returns what was collected since the last call.
    pub fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Returns a subscriber that collects.
    pub fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        use tracing_subscriber::layer::SubscriberExt;
        Registry::default().with(self.clone())
    }
}

struct Fields<'a>(&'a mut Entry);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Entries {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Entry::new();
        attributes.record(&mut Fields(&mut fields));
        context.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        values.record(&mut Fields(span.extensions_mut().get_mut::<Entry>().unwrap()));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut entry = Entry::new();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            entry.extend(span.extensions().get::<Entry>().unwrap().clone());
        }
        event.record(&mut Fields(&mut entry));
        self.0.lock().unwrap().push(entry);
    }
}
