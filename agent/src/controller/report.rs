//! What owners are told by Events: what no status says, or nobody would look for in one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::mesh::status::{Condition, ObjectStatus};
use crate::mesh::{Kind, Notice, ObjectKey, ObjectName, idle_kinds, used_kinds};
use crate::sources::{Holdings, Problem, Severity};

/// Something about an object that its owner should act on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Report {
    pub(super) object: ObjectKey,
    pub(super) api_version: Arc<str>,
    pub(super) uid: Arc<str>,
    /// One word.
    pub(super) reason: String,
    /// What we did or tried, in one word.
    pub(super) action: String,
    /// One sentence.
    pub(super) note: String,
}

/// What there is to report: conditions that are not as they should be, notices of the compiler, and what could not be read.
/// Of an object whose condition says what is wrong the notice, which says the same, is left out.
pub(super) fn reports<'a>(
    holdings: &Holdings,
    statuses: &[ObjectStatus],
    notices: impl IntoIterator<Item = &'a Notice>,
    problems: &[Problem],
) -> BTreeSet<Report> {
    let kinds = used_kinds().into_iter().chain(idle_kinds());
    let mut collection = Collection {
        holdings,
        kinds: kinds
            .map(|used| (used.kind.to_string(), used.kind))
            .collect(),
        reports: BTreeSet::new(),
    };
    let mut said = HashSet::new();
    for status in statuses {
        said.extend(collection.conditions(status));
    }
    for notice in notices {
        if notice.warning && !said.contains(&notice.object) {
            collection.say(&notice.object, ["NoEffect", "Compile", &notice.message]);
        }
    }
    for problem in problems {
        collection.problem(problem);
    }
    collection.reports
}

/// Reports that come together.
struct Collection<'a> {
    holdings: &'a Holdings,
    /// By their names.
    kinds: HashMap<String, Kind>,
    reports: BTreeSet<Report>,
}

impl Collection<'_> {
    /// What a status says that is not as it should be; of which object, if there is anything.
    fn conditions(&mut self, status: &ObjectStatus) -> Option<ObjectKey> {
        let name = &status.metadata;
        let namespace = name.namespace.as_deref().unwrap_or_default();
        let object = self.key(&status.kind, namespace, &name.name)?;
        let mut is_bad = false;
        for (place, condition) in status.conditions().filter(|(_, one)| one.is_bad()) {
            is_bad = true;
            let Condition {
                kind,
                reason,
                message,
                ..
            } = condition;
            let note = if place.is_empty() {
                message.clone()
            } else {
                format!("{place}: {message}")
            };
            let action = kind.rsplit('/').next().unwrap_or_default();
            self.say(&object, [reason, action, &note]);
        }
        is_bad.then_some(object)
    }

    fn problem(&mut self, problem: &Problem) {
        let reason = match problem.severity {
            Severity::Error => "NotTakenOver",
            Severity::Warning => "NoEffect",
            Severity::Info => return,
        };
        let Some((kind, name)) = problem.object.split_once(' ') else {
            return;
        };
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let Some(object) = self.key(kind, namespace, name) else {
            return;
        };
        let note = if problem.field.is_empty() {
            problem.message.to_string()
        } else {
            format!("{}: {}", &*problem.field, &*problem.message)
        };
        self.say(&object, [reason, "Read", &note]);
    }

    /// Of an object that is gone, or of which nothing is kept, nobody is told.
    fn say(&mut self, object: &ObjectKey, [reason, action, note]: [&str; 3]) {
        if let Some(held) = self.holdings.get(object) {
            self.reports.insert(Report {
                object: object.clone(),
                api_version: Arc::clone(&held.api_version),
                uid: Arc::clone(&held.uid),
                reason: reason.to_owned(),
                action: action.to_owned(),
                note: note.to_owned(),
            });
        }
    }

    fn key(&self, kind: &str, namespace: &str, name: &str) -> Option<ObjectKey> {
        Some(ObjectKey {
            kind: self.kinds.get(kind)?.clone(),
            name: ObjectName {
                namespace: namespace.into(),
                name: name.into(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::reports;
    use crate::controller::for_test::{held, key};
    use crate::mesh::status::{ObjectStatus, Status, StatusName, fails, holds};
    use crate::mesh::{Kind, Notice};
    use crate::sources::{Holdings, Place, Problem, Severity};

    #[test]
    fn owners_are_told_once_what_is_wrong_with_what_is_there() {
        let service = |name: &str| key(Kind::Service, "a", name);
        let holdings: Holdings = ["bad", "noticed", "unread", "fine"]
            .map(|name| (service(name), held(json!(null))))
            .into();
        let status = |name: &str, condition| ObjectStatus {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
            metadata: StatusName {
                namespace: Some("a".to_owned()),
                name: name.to_owned(),
            },
            status: Status {
                conditions: vec![condition],
                ..Status::default()
            },
        };
        let bound = "istio.io/WaypointBound";
        let statuses = [
            status("bad", fails(bound, "WaypointMissing", "no w")),
            status("fine", holds(bound, "WaypointAccepted", "w")),
            status("gone", fails(bound, "WaypointMissing", "no w")),
        ];
        let notice = |name: &str, warning| Notice {
            object: service(name),
            warning,
            message: "asks for x".to_owned(),
        };
        let notices = [
            notice("bad", true),
            notice("noticed", true),
            notice("fine", false),
        ];
        let problems = [Problem {
            severity: Severity::Error,
            place: Place {
                file: "https://api".into(),
                position: None,
            },
            object: "Service a/unread".into(),
            field: "spec.ports".into(),
            message: "is no list".into(),
        }];
        let found = reports(&holdings, &statuses, &notices, &problems);
        let shown: Vec<_> = found
            .iter()
            .map(|one| format!("{} {} {}: {}", one.object, one.action, one.reason, one.note))
            .collect();
        assert_eq!(
            shown,
            [
                "Service a/bad WaypointBound WaypointMissing: no w",
                "Service a/noticed Compile NoEffect: asks for x",
                "Service a/unread Read NotTakenOver: spec.ports: is no list",
            ]
        );
    }
}
