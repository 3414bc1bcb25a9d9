//! What an object's owner is told about it, in the shapes of the Kubernetes, Gateway and Istio APIs. Plain values:
//! who shows or writes them is not known here, and neither is the time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An object's status, with what names the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Which object.
    pub metadata: StatusName,
    /// What there is to say about it.
    pub status: Status,
}

/// `metadata`, as far as it names the object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StatusName {
    /// Kubernetes namespace; absent for cluster-wide kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Object name.
    pub name: String,
}

/// `status`. Which parts there are depends on the kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// About the object as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where a Gateway is reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<StatusAddress>,
    /// A Gateway's listeners.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerStatus>,
    /// About a route at each of its parents.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ParentStatus>,
    /// About a policy at each of its targets (GEP-713).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<AncestorStatus>,
}

/// One of `status.addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusAddress {
    /// `Hostname` or `IPAddress`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub value: String,
}

/// One of `status.listeners`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// The listener.
    pub name: String,
    /// How many routes are attached to it.
    pub attached_routes: u32,
    /// Kinds of routes that can be attached to it.
    pub supported_kinds: Vec<serde_json::Value>,
    /// About it.
    pub conditions: Vec<Condition>,
}

/// One of `status.parents`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The parent, as the route names it.
    pub parent_ref: Reference,
    /// Who says so.
    pub controller_name: String,
    /// About the route at this parent.
    pub conditions: Vec<Condition>,
}

/// One of `status.ancestors`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    /// The target, as the policy names it.
    pub ancestor_ref: Reference,
    /// Who says so.
    pub controller_name: String,
    /// About the policy at this target.
    pub conditions: Vec<Condition>,
}

/// A reference, echoed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// API group; empty for Kubernetes' own.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace, if the reference says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// A part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// One port of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

/// One condition (`metav1.Condition`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about, such as `Accepted`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it is so.
    pub status: Truth,
    /// `metadata.generation` of the object that was looked at; absent where nobody counts generations, as in a
    /// directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Since when it is so; absent until [`since`] says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    /// Why, in one word.
    pub reason: String,
    /// Why, in one sentence.
    pub message: String,
}

/// Whether a condition holds. Nothing here is unknown: what is computed is computed from all that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "Kubernetes' own words")]
pub enum Truth {
    True,
    False,
}

/// Conditions that are good news when they are False.
const NEGATIVE: [&str; 2] = ["Conflicted", "PartiallyInvalid"];

impl Condition {
    /// Whether somebody should look at it.
    pub fn is_bad(&self) -> bool {
        let is_true = self.status == Truth::True;
        is_true == NEGATIVE.contains(&self.kind.as_str())
    }

    /// Puts the object's generation into it.
    pub(crate) fn observed(mut self, generation: Option<i64>) -> Self {
        self.observed_generation = generation;
        self
    }
}

/// `kind` is True.
pub(crate) fn holds(kind: &str, reason: &str, message: impl Into<String>) -> Condition {
    condition(kind, Truth::True, reason, message.into())
}

/// `kind` is False.
pub(crate) fn fails(kind: &str, reason: &str, message: impl Into<String>) -> Condition {
    condition(kind, Truth::False, reason, message.into())
}

fn condition(kind: &str, status: Truth, reason: &str, message: String) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        observed_generation: None,
        last_transition_time: None,
        reason: reason.to_owned(),
        message,
    }
}

impl ObjectStatus {
    /// Every condition, with where it stands: empty for the object as a whole.
    pub fn conditions(&self) -> impl Iterator<Item = (String, &Condition)> {
        let Status {
            conditions,
            listeners,
            parents,
            ancestors,
            ..
        } = &self.status;
        let listener = |one: &ListenerStatus| format!("listener {}", one.name);
        let parent = |one: &ParentStatus| one.parent_ref.shown();
        let ancestor = |one: &AncestorStatus| one.ancestor_ref.shown();
        let own = conditions.iter().map(|one| (String::new(), one));
        own.chain(listeners.iter().flat_map(move |part| {
            let place = listener(part);
            part.conditions.iter().map(move |one| (place.clone(), one))
        }))
        .chain(parents.iter().flat_map(move |part| {
            let place = parent(part);
            part.conditions.iter().map(move |one| (place.clone(), one))
        }))
        .chain(ancestors.iter().flat_map(move |part| {
            let place = ancestor(part);
            part.conditions.iter().map(move |one| (place.clone(), one))
        }))
    }

    /// `Kind namespace/name`.
    pub fn shown(&self) -> String {
        let StatusName { namespace, name } = &self.metadata;
        match namespace {
            Some(namespace) => format!("{} {namespace}/{name}", self.kind),
            None => format!("{} {name}", self.kind),
        }
    }

    fn conditions_mut(&mut self) -> impl Iterator<Item = &mut Condition> {
        let status = &mut self.status;
        let listeners = status.listeners.iter_mut();
        let parents = status.parents.iter_mut();
        let ancestors = status.ancestors.iter_mut();
        let own = status.conditions.iter_mut();
        own.chain(listeners.flat_map(|one| &mut one.conditions))
            .chain(parents.flat_map(|one| &mut one.conditions))
            .chain(ancestors.flat_map(|one| &mut one.conditions))
    }

    /// What names it among all, in the order of the list.
    fn place(&self) -> (&str, &StatusName) {
        (&self.kind, &self.metadata)
    }
}

impl Reference {
    /// `Kind name`, with the port where there is one.
    fn shown(&self) -> String {
        match self.port {
            Some(port) => format!("{} {}:{port}", self.kind, self.name),
            None => format!("{} {}", self.kind, self.name),
        }
    }
}

/// Says since when each condition is so: since it was so before, else since `now`. A condition whose reason or
/// message changed has not changed over (`metav1.Condition`: "the last time the condition transitioned from one status
/// to another"). Both lists are sorted by kind and name.
pub(crate) fn since(before: &[ObjectStatus], list: &mut [ObjectStatus], now: Timestamp) {
    for object in list {
        let found = before.binary_search_by(|old| old.place().cmp(&object.place()));
        let old = found.ok().and_then(|at| before.get(at));
        let known: Vec<(String, Condition)> = old
            .into_iter()
            .flat_map(ObjectStatus::conditions)
            .map(|(place, one)| (place, one.clone()))
            .collect();
        let places: Vec<_> = object.conditions().map(|(place, _)| place).collect();
        for (place, condition) in places.into_iter().zip(object.conditions_mut()) {
            let same = known.iter().find(|(other, old)| {
                *other == place && old.kind == condition.kind && old.status == condition.status
            });
            let then = same.and_then(|(_, old)| old.last_transition_time);
            condition.last_transition_time = Some(then.unwrap_or(now));
        }
    }
}

/// Sorts as [`since`] wants it.
pub(crate) fn sort(list: &mut [ObjectStatus]) {
    list.sort_by(|one, other| one.place().cmp(&other.place()));
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{Condition, ObjectStatus, Status, StatusName, fails, holds, since};

    fn object(conditions: Vec<Condition>) -> ObjectStatus {
        ObjectStatus {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
            metadata: StatusName {
                namespace: Some("a".to_owned()),
                name: "s".to_owned(),
            },
            status: Status {
                conditions,
                ..Status::default()
            },
        }
    }

    #[test]
    fn a_condition_is_so_since_it_changed_over() {
        let time = |second| Timestamp::from_second(second).unwrap();
        let times = |list: &[ObjectStatus]| -> Vec<i64> {
            let all = list.iter().flat_map(ObjectStatus::conditions);
            all.map(|(_, one)| one.last_transition_time.unwrap().as_second())
                .collect()
        };
        let mut first = vec![object(vec![holds("A", "x", ""), fails("B", "x", "")])];
        since(&[], &mut first, time(1));
        assert_eq!(times(&first), [1, 1]);
        // Another reason is no other status; what is new is so since now.
        let mut second = vec![object(vec![
            holds("A", "y", ""),
            holds("B", "x", ""),
            holds("C", "x", ""),
        ])];
        since(&first, &mut second, time(2));
        assert_eq!(times(&second), [1, 2, 2]);
    }

    #[test]
    fn some_conditions_are_bad_news_when_they_are_true() {
        assert!(fails("Accepted", "", "").is_bad());
        assert!(!holds("Accepted", "", "").is_bad());
        assert!(!fails("Conflicted", "", "").is_bad());
        assert!(holds("Conflicted", "", "").is_bad());
    }

    #[test]
    fn it_has_kubectls_shape() {
        let mut list = vec![object(vec![
            holds("Accepted", "Accepted", "fine").observed(Some(3)),
        ])];
        since(&[], &mut list, Timestamp::UNIX_EPOCH);
        let expected = serde_json::json!([{
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "s", "namespace": "a" },
            "status": { "conditions": [{
                "type": "Accepted",
                "status": "True",
                "observedGeneration": 3,
                "lastTransitionTime": "1970-01-01T00:00:00Z",
                "reason": "Accepted",
                "message": "fine",
            }] },
        }]);
        assert_eq!(serde_json::to_value(&list).unwrap(), expected);
        let read: Vec<ObjectStatus> = serde_json::from_value(expected).unwrap();
        assert_eq!(read, list);
    }
}
