//! Which reports have been told. One is told when it has stood for a while, once, and counted when it comes again:
//! an Event of `events.k8s.io/v1` with its series.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::election::micro;
use super::report::Report;

/// How long something has to be so: objects of one manifest arrive one after the other.
const SETTLED: Duration = Duration::from_secs(3);
/// For how long something that is over is remembered, to be counted when it comes again; API servers keep Events that long.
const MEMORY: Duration = Duration::from_secs(60 * 60);
/// Counted not more often than this.
const COUNTED: Duration = Duration::from_secs(60);
/// Longest note, in bytes, and longest part of a name (`events.k8s.io/v1`).
const LONGEST_NOTE: usize = 1024;
const LONGEST_NAME: usize = 230;
/// Who says so.
const CONTROLLER: &str = "culvert.dev/controller";

/// All that was told, or will be.
#[derive(Debug, Default)]
pub(super) struct Journal(BTreeMap<Report, Entry>);

#[derive(Debug)]
struct Entry {
    /// Since when it is so, or is no more.
    since: Instant,
    is_so: bool,
    /// Whether this time has been told.
    is_told: bool,
    /// How often it was told; 0: there is no Event yet.
    times: u32,
    told: Option<Instant>,
}

/// A request to make.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Telling {
    /// Creates an Event.
    New { collection: String, event: Value },
    /// Counts one that is there.
    Again { path: String, fields: Value },
}

impl Journal {
    /// Takes over what there is to report.
    pub(super) fn notice(&mut self, reports: &BTreeSet<Report>, now: Instant) {
        for (report, entry) in &mut self.0 {
            let is_so = reports.contains(report);
            if entry.is_so != is_so {
                entry.since = now;
                entry.is_so = is_so;
                entry.is_told &= !is_so;
            }
        }
        for report in reports {
            self.0.entry(report.clone()).or_insert(Entry {
                since: now,
                is_so: true,
                is_told: false,
                times: 0,
                told: None,
            });
        }
        self.0
            .retain(|_, entry| entry.is_so || now < entry.since + MEMORY);
    }

    /// What is to be told now, and when there will be more.
    pub(super) fn due(&self, now: Instant) -> (Vec<Report>, Option<Instant>) {
        let (mut ready, mut next) = (Vec::new(), None::<Instant>);
        for (report, entry) in &self.0 {
            if !entry.is_so || entry.is_told {
                continue;
            }
            let counted = entry.told.map(|told| told + COUNTED);
            let when = (entry.since + SETTLED).max(counted.unwrap_or(now));
            if when <= now {
                ready.push(report.clone());
            } else {
                next = Some(next.map_or(when, |known| known.min(when)));
            }
        }
        (ready, next)
    }

    /// How a report is told.
    pub(super) fn telling(&self, report: &Report, instance: &str, now: Timestamp) -> Telling {
        let times = self.0.get(report).map_or(0, |entry| entry.times);
        let namespace = &*report.object.name.namespace;
        // Events about what has no namespace are in this one.
        let home = if namespace.is_empty() {
            "default"
        } else {
            namespace
        };
        let collection = format!("/apis/events.k8s.io/v1/namespaces/{home}/events");
        let name = name(report);
        if times > 0 {
            return Telling::Again {
                path: format!("{collection}/{name}"),
                fields: json!({ "series": { "count": times + 1, "lastObservedTime": micro(now) } }),
            };
        }
        let mut regarding = json!({
            "apiVersion": &*report.api_version,
            "kind": report.object.kind.to_string(),
            "name": &*report.object.name.name,
            "uid": &*report.uid,
        });
        if !namespace.is_empty() {
            regarding["namespace"] = namespace.into();
        }
        Telling::New {
            event: json!({
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": { "name": name, "namespace": home },
                "eventTime": micro(now),
                "reportingController": CONTROLLER,
                "reportingInstance": instance,
                "type": "Warning",
                "reason": report.reason,
                "action": report.action,
                "note": cut(&report.note, LONGEST_NOTE),
                "regarding": regarding,
            }),
            collection,
        }
    }

    /// A report was told, or was found to have been told by another.
    pub(super) fn told(&mut self, report: &Report, now: Instant) {
        if let Some(entry) = self.0.get_mut(report) {
            entry.is_told = true;
            entry.times += 1;
            entry.told = Some(now);
        }
    }

    /// Its Event is not there any more: it is told anew.
    pub(super) fn forgotten(&mut self, report: &Report) {
        if let Some(entry) = self.0.get_mut(report) {
            entry.times = 0;
            entry.told = None;
        }
    }

    /// It cannot be told now.
    pub(super) fn refused(&mut self, report: &Report, now: Instant) {
        if let Some(entry) = self.0.get_mut(report) {
            entry.told = Some(now);
        }
    }
}

/// The same for every controller, so that two of them tell nothing twice.
fn name(report: &Report) -> String {
    let mut hasher = DefaultHasher::new();
    let kind = report.object.kind.to_string();
    (kind, &report.uid, &report.reason, &report.note).hash(&mut hasher);
    let object = cut(&report.object.name.name, LONGEST_NAME);
    format!("{object}.{:016x}", hasher.finish())
}

fn cut(text: &str, bytes: usize) -> &str {
    let ends = text.char_indices().map(|(at, one)| at + one.len_utf8());
    let end = ends.take_while(|end| *end <= bytes).last();
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use jiff::Timestamp;
    use serde_json::json;

    use super::{Journal, Report, Telling};
    use crate::controller::for_test::key;
    use crate::mesh::Kind;

    fn report(note: &str) -> Report {
        Report {
            object: key(Kind::Service, "a", "s"),
            api_version: "v1".into(),
            uid: "u".into(),
            reason: "WaypointMissing".to_owned(),
            action: "WaypointBound".to_owned(),
            note: note.to_owned(),
        }
    }

    #[test]
    fn a_report_is_told_once_when_it_has_settled_and_counted_when_it_returns() {
        let begin = Instant::now();
        let second = |n| begin + Duration::from_secs(n);
        let (there, nothing) = (BTreeSet::from([report("x")]), BTreeSet::new());
        let mut journal = Journal::default();
        let mut tell = |reports: &BTreeSet<Report>, at| {
            journal.notice(reports, second(at));
            let (ready, next) = journal.due(second(at));
            let mut told = Vec::new();
            for report in &ready {
                told.push(match journal.telling(report, "me", Timestamp::UNIX_EPOCH) {
                    Telling::New { .. } => 1,
                    Telling::Again { fields, .. } => fields["series"]["count"].as_u64().unwrap(),
                });
                journal.told(report, second(at));
            }
            (told, next.map(|next| (next - begin).as_secs()))
        };
        for (at, reports, told, next) in [
            (0, &there, vec![], Some(3)),
            (1, &nothing, vec![], None),
            (2, &there, vec![], Some(5)),
            (5, &there, vec![1], None),
            (50, &there, vec![], None),
            (51, &nothing, vec![], None),
            // Again, but not more than once a minute.
            (52, &there, vec![], Some(65)),
            (65, &there, vec![2], None),
            (4000, &nothing, vec![], None),
            // Long forgotten.
            (8000, &nothing, vec![], None),
            (8001, &there, vec![], Some(8004)),
            (8004, &there, vec![1], None),
        ] {
            assert_eq!(tell(reports, at), (told, next), "at {at}");
        }
    }

    #[test]
    fn an_event_has_the_shape_of_the_api() {
        let mut journal = Journal::default();
        let Telling::New { collection, event } =
            journal.telling(&report("x"), "me", Timestamp::UNIX_EPOCH)
        else {
            panic!("it has been told");
        };
        assert_eq!(collection, "/apis/events.k8s.io/v1/namespaces/a/events");
        let name = event["metadata"]["name"].as_str().unwrap();
        assert_eq!((name.len(), &name[..2]), (18, "s."));
        assert_eq!(event["eventTime"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            event["regarding"],
            json!({ "apiVersion": "v1", "kind": "Service", "namespace": "a", "name": "s", "uid": "u" })
        );
        let long = report(&"ä".repeat(1000));
        let Telling::New { event, .. } = journal.telling(&long, "me", Timestamp::UNIX_EPOCH) else {
            panic!("it has been told");
        };
        assert_eq!(event["note"].as_str().unwrap().len(), 1024);
        // Of a kind without namespaces.
        let class = Report {
            object: key(Kind::Namespace, "", "shop"),
            ..report("x")
        };
        journal.notice(&BTreeSet::from([class.clone()]), Instant::now());
        journal.told(&class, Instant::now());
        let Telling::Again { path, .. } = journal.telling(&class, "me", Timestamp::UNIX_EPOCH)
        else {
            panic!("it has not been told");
        };
        assert!(
            path.starts_with("/apis/events.k8s.io/v1/namespaces/default/events/shop."),
            "{path}"
        );
    }
}
