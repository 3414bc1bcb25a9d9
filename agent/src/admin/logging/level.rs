//! The log's level: parsing, merging and changing it.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::{Registry, reload};

/// The text is no list of levels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLevel {
    /// One directive is neither a level nor `target=level`.
    #[error(
        "`{directive}` is no log level: write off, error, warn, info, debug or trace, or TARGET=LEVEL"
    )]
    Directive {
        /// The directive.
        directive: String,
    },
    /// The subscriber is gone.
    #[error("the log cannot be changed any more: the agent is stopping")]
    Gone,
}

/// What `POST /logging` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LevelRequest {
    reset: bool,
    directives: String,
}

impl LevelRequest {
    /// Reads `level=…&reset[=true]`; other parameters mean nothing.
    pub(crate) fn from_query(query: &str) -> Self {
        let mut request = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "level" => request.directives = value.into_owned(),
                "reset" => request.reset = value.is_empty() || value == "true",
                _ => {}
            }
        }
        request
    }
}

/// Changes the level of a running log. Clones share it.
#[derive(Clone, Debug)]
pub struct LogControl(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    initial: Targets,
    current: Mutex<Targets>,
    filter: reload::Handle<Targets, Registry>,
}

impl LogControl {
    pub(super) fn new(initial: Targets, filter: reload::Handle<Targets, Registry>) -> Self {
        let current = Mutex::new(initial.clone());
        Self(Arc::new(Shared {
            initial,
            current,
            filter,
        }))
    }

    /// Of a log that nobody writes to.
    #[cfg(test)]
    pub(crate) fn for_test(directives: &str) -> Self {
        let initial = parse(directives).unwrap();
        let (layer, handle) = reload::Layer::new(initial.clone());
        // The handle works as long as its layer lives.
        Box::leak(Box::new(layer));
        Self::new(initial, handle)
    }

    /// Does what is asked and returns the level then in force. Directives are merged into the current
    /// ones, or, with a reset, into those of the start; a request for nothing only reads.
    ///
    /// # Errors
    /// [`InvalidLevel`]; the level is then as it was.
    pub fn apply(&self, request: &LevelRequest) -> Result<String, InvalidLevel> {
        // Held throughout, so that two administrators cannot merge into the same old level.
        let mut current = self
            .0
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !request.reset && request.directives.is_empty() {
            return Ok(current.to_string());
        }
        let base = if request.reset {
            &self.0.initial
        } else {
            &*current
        };
        let wanted = merge(base, &parse(&request.directives)?);
        self.0
            .filter
            .reload(wanted.clone())
            .map_err(|_gone| InvalidLevel::Gone)?;
        *current = wanted;
        Ok(current.to_string())
    }
}

/// Reads `LEVEL` and `TARGET=LEVEL`, separated by commas. Stricter than the library, which takes a
/// misspelt level for a target at TRACE.
pub(super) fn parse(directives: &str) -> Result<Targets, InvalidLevel> {
    let mut targets = Targets::new();
    for directive in directives
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        let invalid = || InvalidLevel::Directive {
            directive: directive.to_owned(),
        };
        let (target, level) = match directive.split_once('=') {
            Some((target, level)) => (Some(target), level),
            None => (None, directive),
        };
        // The library also takes an empty text for a level.
        let level = Some(level)
            .filter(|text| !text.is_empty())
            .ok_or_else(invalid)?;
        let level = level.parse::<LevelFilter>().map_err(|_unknown| invalid())?;
        targets = match target {
            Some(target) if is_target(target) => targets.with_target(target, level),
            Some(_malformed) => return Err(invalid()),
            None => targets.with_default(level),
        };
    }
    Ok(targets)
}

/// A module path.
fn is_target(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_:-.".contains(c);
    !text.is_empty() && text.chars().all(allowed)
}

fn merge(base: &Targets, changes: &Targets) -> Targets {
    let mut merged = base.clone();
    if let Some(level) = changes.default_level() {
        merged = merged.with_default(level);
    }
    for (target, level) in changes {
        merged = merged.with_target(target, level);
    }
    merged
}
