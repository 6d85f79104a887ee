//! The log of the service: where it goes, and how much is in it. Every layer may write to it; the D-Bus API changes its
//! level.

use std::sync::{Mutex, PoisonError};

use tracing_subscriber::{
    EnvFilter, Registry, filter::LevelFilter, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// What guests send to the name server could fill the journal, whatever the level is.
const QUIET: &str = "hickory_proto=off,hickory_server=off";
/// The environment variable with the filter at the start.
const VARIABLE: &str = "BANGER_LOG";

/// How much is logged: the levels of syslog(3), which systemd uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The system is unusable.
    Emerg,
    /// Action must be taken at once.
    Alert,
    /// A critical condition.
    Crit,
    /// An error.
    Err,
    /// A warning.
    Warning,
    /// Normal, and worth knowing.
    Notice,
    /// What the service does.
    Info,
    /// How it does that.
    Debug,
}

impl Level {
    /// Every level, the most urgent first.
    pub const ALL: [Level; 8] = [
        Level::Emerg,
        Level::Alert,
        Level::Crit,
        Level::Err,
        Level::Warning,
        Level::Notice,
        Level::Info,
        Level::Debug,
    ];

    /// Returns the word of syslog(3), without its prefix.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Emerg => "emerg",
            Level::Alert => "alert",
            Level::Crit => "crit",
            Level::Err => "err",
            Level::Warning => "warning",
            Level::Notice => "notice",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }

    /// Parses a word of [`Level::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == word)
    }

    /// Returns what is logged. Of other crates, never their details: those of the D-Bus connection would describe its own
    /// messages.
    fn filter(self) -> EnvFilter {
        let what = match self {
            Level::Emerg | Level::Alert | Level::Crit | Level::Err => "error",
            Level::Warning => "warn",
            Level::Notice | Level::Info => "info",
            // The names of our crates begin with this.
            Level::Debug => "info,banger=debug",
        };
        EnvFilter::new(format!("{what},{QUIET}"))
    }

    /// Returns the level of a filter that was written by hand.
    fn of(filter: &EnvFilter) -> Self {
        match filter.max_level_hint() {
            Some(LevelFilter::OFF) => Level::Emerg,
            Some(LevelFilter::ERROR) => Level::Err,
            Some(LevelFilter::WARN) => Level::Warning,
            Some(LevelFilter::INFO) => Level::Info,
            _ => Level::Debug,
        }
    }
}

/// Returns what a text asks for: a level, or a filter of the crate tracing-subscriber.
fn filter_of(text: Option<&str>) -> EnvFilter {
    let Some(text) = text else { return Level::Info.filter() };
    match Level::parse(text) {
        // A filter would take some of these words for the names of crates.
        Some(level) => level.filter(),
        // What comes later counts more.
        None => EnvFilter::try_new(format!("{QUIET},{text}")).unwrap_or_else(|_| Level::Info.filter()),
    }
}

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The journal.
    Journal,
    /// Standard error.
    Console,
}

impl Target {
    /// Returns the word of `org.freedesktop.LogControl1`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Target::Journal => "journal",
            Target::Console => "console",
        }
    }
}

/// The log.
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    level: Mutex<Level>,
    target: Target,
}

impl Log {
    /// Begins to log: to the journal if systemd has connected it, else to standard error. Must be called once.
    pub fn start() -> Self {
        let filter = filter_of(std::env::var(VARIABLE).ok().as_deref());
        let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
        let target = if journal.is_some() { Target::Journal } else { Target::Console };
        let (layer, log) = Self::new(filter, target);
        let registry = tracing_subscriber::registry().with(layer);
        match journal {
            Some(journal) => registry.with(journal.with_field_prefix(Some("BANGER".to_owned()))).init(),
            None => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init(),
        }
        log
    }

    /// Returns a log that nothing is written to, for tests.
    pub fn unused() -> Self {
        Self::new(Level::Info.filter(), Target::Console).1
    }

    fn new(filter: EnvFilter, target: Target) -> (reload::Layer<EnvFilter, Registry>, Self) {
        let level = Mutex::new(Level::of(&filter));
        let (layer, filter) = reload::Layer::new(filter);
        (layer, Self { filter, level, target })
    }

    /// Returns the level that was set last.
    pub fn level(&self) -> Level {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the level. A filter of the environment no longer applies then.
    pub fn set_level(&self, level: Level) {
        let mut current = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only if nothing is logged any more.
        let _ = self.filter.reload(level.filter());
        *current = level;
    }

    /// Returns where the log goes.
    pub fn target(&self) -> Target {
        self.target
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    use tracing_subscriber::layer::{Context, Layer};

    use super::*;

    /// Counts what is logged.
    struct Counter(Arc<AtomicU32>);

    impl<S: tracing::Subscriber> Layer<S> for Counter {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn the_level_decides_what_is_logged_at_once() {
        let count = Arc::<AtomicU32>::default();
        let (layer, log) = Log::new(Level::Info.filter(), Target::Console);
        let registry = tracing_subscriber::registry().with(layer).with(Counter(Arc::clone(&count)));
        let logged = |level| {
            log.set_level(level);
            count.store(0, Relaxed);
            tracing::error!("an error");
            tracing::warn!("a warning");
            tracing::info!("what is done");
            tracing::debug!("how it is done");
            tracing::debug!(target: "zbus::connection", "what others do");
            tracing::error!(target: "hickory_server::server", "what guests cause");
            count.load(Relaxed)
        };
        tracing::subscriber::with_default(registry, || {
            for (level, expect) in [
                (Level::Debug, 4),
                (Level::Info, 3),
                (Level::Notice, 3),
                (Level::Warning, 2),
                (Level::Err, 1),
                (Level::Emerg, 1),
                (Level::Debug, 4),
            ] {
                assert_eq!(logged(level), expect, "{level:?}");
                assert_eq!(log.level(), level);
            }
        });
    }

    #[test]
    fn words_are_those_of_syslog_and_filters_have_a_level() {
        for level in Level::ALL {
            assert_eq!(Level::parse(level.as_str()), Some(level));
        }
        assert_eq!((Level::parse("verbose"), Level::parse("")), (None, None));
        for (text, expect) in [
            ("err", Level::Err),
            ("warning", Level::Warning),
            ("debug", Level::Debug),
            ("off", Level::Emerg),
            ("warn", Level::Warning),
            ("info,zbus=trace", Level::Debug),
        ] {
            let filter = filter_of(Some(text));
            assert_eq!(Level::of(&filter), expect, "{text}");
            // What guests cause is never logged.
            assert!(filter.to_string().contains("hickory_server=off"), "{text}: {filter}");
        }
        assert_eq!(filter_of(None).to_string(), Level::Info.filter().to_string());
    }
}
