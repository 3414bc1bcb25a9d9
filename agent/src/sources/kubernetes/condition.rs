//! How a source fares, and what is worth saying when that changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::api::{Cause, Trouble};

/// How a cluster that is followed fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterCondition {
    /// URL of its API server.
    pub server: Arc<str>,
    /// Each kind that the mesh depends on.
    pub kinds: Vec<KindCondition>,
    /// Lists and watches that failed since the start.
    pub refusals: u64,
}

/// How one kind fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindCondition {
    /// `HTTPRoute`.
    pub kind: Arc<str>,
    /// `httproutes.gateway.networking.k8s.io`.
    pub resource: Arc<str>,
    /// How many objects of it are in use.
    pub objects: usize,
    /// How far it has come.
    pub phase: Phase,
    /// What is in the way now.
    pub trouble: Option<Since>,
}

/// How far a kind has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// It has not been listed yet.
    #[default]
    Waiting,
    /// It was listed, and is watched.
    Following,
    /// The cluster does not have the kind; it will be followed once it has.
    NotInstalled,
}

/// A trouble and its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// When it began.
    pub since: Timestamp,
    /// What it is.
    pub trouble: Trouble,
}

/// One sentence for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) is_bad: bool,
    pub(super) sentence: String,
}

impl ClusterCondition {
    /// Kinds that nothing is known of yet.
    pub fn waiting(&self) -> impl Iterator<Item = &KindCondition> {
        self.kinds
            .iter()
            .filter(|kind| kind.phase == Phase::Waiting)
    }

    /// Kinds that the cluster does not have.
    pub fn not_installed(&self) -> impl Iterator<Item = &KindCondition> {
        self.kinds
            .iter()
            .filter(|kind| kind.phase == Phase::NotInstalled)
    }

    /// How many objects are in use.
    pub fn objects(&self) -> usize {
        self.kinds.iter().map(|kind| kind.objects).sum()
    }

    /// What is in the way, each thing once: its beginning, its sentence, and the kinds that it concerns.
    pub fn troubles(&self) -> Vec<(Since, Vec<&KindCondition>)> {
        let mut troubles: BTreeMap<(Cause, &str), (Since, Vec<&KindCondition>)> = BTreeMap::new();
        for kind in &self.kinds {
            let Some(since) = &kind.trouble else { continue };
            let Trouble { cause, message } = &since.trouble;
            // An outage is one, in whatever words each connection met it.
            let words = if *cause == Cause::Unreachable {
                ""
            } else {
                message
            };
            let known = troubles.entry((*cause, words));
            let (first, kinds) = known.or_insert_with(|| (since.clone(), Vec::new()));
            first.since = first.since.min(since.since);
            kinds.push(kind);
        }
        troubles.into_values().collect()
    }

    /// Whether the API server answers.
    pub fn is_reachable(&self) -> bool {
        let away = |kind: &KindCondition| {
            let trouble = kind.trouble.as_ref();
            trouble.is_some_and(|since| since.trouble.cause == Cause::Unreachable)
        };
        !self.kinds.iter().any(away)
    }

    /// What the log says when the condition was another one before.
    pub(super) fn news(&self, before: Option<&Self>) -> Vec<Said> {
        let mut news = Vec::new();
        let mut say = |is_bad, sentence: String| news.push(Said { is_bad, sentence });
        let was_reachable = before.is_none_or(Self::is_reachable);
        if was_reachable && !self.is_reachable() {
            let why = self.kinds.iter().filter_map(|kind| kind.trouble.as_ref());
            let why = why
                .map(|since| &since.trouble)
                .find(|trouble| trouble.cause == Cause::Unreachable);
            let why = why.map_or("", |trouble| &*trouble.message);
            say(
                true,
                format!("the API server {why}; the last state stays in force"),
            );
        } else if !was_reachable && self.is_reachable() {
            say(false, "the API server answers again".to_owned());
        }
        let known = |kind: &KindCondition| {
            let kinds = before.map(|before| &*before.kinds).unwrap_or_default();
            kinds.iter().find(|known| known.kind == kind.kind)
        };
        for kind in &self.kinds {
            let known = known(kind);
            let new = kind.trouble.as_ref().map(|since| &since.trouble);
            let old = known
                .and_then(|known| known.trouble.as_ref())
                .map(|since| &since.trouble);
            if let Some(new) = new
                && new.cause != Cause::Unreachable
                && Some(new) != old
            {
                say(
                    true,
                    format!("{}: the API server {}", kind.kind, new.message),
                );
            }
            let before = known.map(|known| known.phase);
            if kind.phase == Phase::NotInstalled && before != Some(Phase::NotInstalled) {
                say(
                    false,
                    format!(
                        "{} is not installed: waiting for {}",
                        kind.kind, kind.resource
                    ),
                );
            }
            if kind.phase == Phase::Following && before == Some(Phase::NotInstalled) {
                say(false, format!("{} is installed now", kind.kind));
            }
        }
        let was_waiting = before.is_none_or(|before| before.waiting().next().is_some());
        if was_waiting && self.waiting().next().is_none() {
            say(
                false,
                format!("every kind is listed: {} objects", self.objects()),
            );
        }
        news
    }
}
