//! What an object's status becomes: what stands there, with our part of it as it should be. Others' parts stay where they
//! are, and what is as it should be keeps its time.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::claim::Claim;
use crate::mesh::status::{
    AncestorStatus, Condition, ListenerStatus, ParentStatus, Reference, Status, Truth,
};

/// Longest message (`metav1.Condition`).
const LONGEST_MESSAGE: usize = 32_768;

/// Our part of a status.
#[derive(Clone, Copy)]
pub(super) struct Share<'a> {
    pub(super) claim: Claim,
    /// Which parents and ancestors another controller speaks about, though under the same name.
    pub(super) is_of_others: &'a dyn Fn(&Value) -> bool,
}

/// The fields of `status` that have to change for our part of it to say `wanted`; nothing if it says so.
pub(super) fn merge(
    current: &Value,
    wanted: &Status,
    share: Share<'_>,
    now: Timestamp,
) -> Option<Map<String, Value>> {
    let mut fields = Map::new();
    let mut put = |field: &str, list: Vec<Value>| {
        if entries(current, field) != list.as_slice() {
            fields.insert(field.to_owned(), list.into());
        }
    };
    let own = entries(current, "conditions");
    match share.claim {
        Claim::Conditions(types) => {
            put(
                "conditions",
                conditions(own, &wanted.conditions, types, now),
            );
        }
        Claim::Gateway => {
            let types = ["Accepted", "Programmed", "ResolvedRefs"];
            put(
                "conditions",
                conditions(own, &wanted.conditions, &types, now),
            );
            let addresses = wanted.addresses.iter();
            let addresses = addresses.map(|one| json!({ "type": one.kind, "value": one.value }));
            put("addresses", addresses.collect());
            let known = entries(current, "listeners");
            let listeners = wanted.listeners.iter();
            put(
                "listeners",
                listeners.map(|one| listener(known, one, now)).collect(),
            );
        }
        Claim::Parents(controller) => {
            let part = |one: &ParentStatus| (reference(&one.parent_ref), one.conditions.clone());
            let wanted = wanted.parents.iter().map(part).collect();
            let known = entries(current, "parents");
            let speaker = Speaker {
                controller,
                reference: "parentRef",
                is_of_others: share.is_of_others,
            };
            put("parents", speaker.spoken(known, wanted, now));
        }
        Claim::Ancestors(controller) => {
            let part =
                |one: &AncestorStatus| (reference(&one.ancestor_ref), one.conditions.clone());
            let wanted = wanted.ancestors.iter().map(part).collect();
            let known = entries(current, "ancestors");
            let speaker = Speaker {
                controller,
                reference: "ancestorRef",
                is_of_others: share.is_of_others,
            };
            put("ancestors", speaker.spoken(known, wanted, now));
        }
    }
    (!fields.is_empty()).then_some(fields)
}

/// A list below a value; none is an empty one.
fn entries<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// Who we are in a list of which each speaker has some entries.
struct Speaker<'a> {
    controller: &'static str,
    /// The field of an entry that says what it is about.
    reference: &'static str,
    is_of_others: &'a dyn Fn(&Value) -> bool,
}

impl Speaker<'_> {
    /// Others' entries as they are, ours as wanted.
    fn spoken(
        &self,
        known: &[Value],
        mut wanted: Vec<(Value, Vec<Condition>)>,
        now: Timestamp,
    ) -> Vec<Value> {
        let mut list = Vec::new();
        for one in known {
            let about = &one[self.reference];
            let is_ours = one["controllerName"] == self.controller;
            let said = wanted
                .iter()
                .position(|(wanted, _)| is_ours && wanted == about);
            match said {
                Some(at) => {
                    let (_, own) = wanted.remove(at);
                    let before = entries(one, "conditions");
                    list.push(self.entry(about, &all_conditions(before, &own, now)));
                }
                None if is_ours && !(self.is_of_others)(about) => {
                    // Two of one reference, or one that is not wanted any more, go.
                }
                None => list.push(one.clone()),
            }
        }
        let new = wanted.into_iter();
        list.extend(new.map(|(about, own)| self.entry(&about, &all_conditions(&[], &own, now))));
        list
    }

    fn entry(&self, about: &Value, conditions: &[Value]) -> Value {
        json!({
            (self.reference): about,
            "controllerName": self.controller,
            "conditions": conditions,
        })
    }
}

/// A listener's entry, of which all is its Gateway's controller's.
fn listener(known: &[Value], wanted: &ListenerStatus, now: Timestamp) -> Value {
    let same = known.iter().find(|one| one["name"] == wanted.name.as_str());
    let before = same.map_or(&[][..], |one| entries(one, "conditions"));
    json!({
        "name": wanted.name,
        "attachedRoutes": wanted.attached_routes,
        "supportedKinds": wanted.supported_kinds,
        "conditions": all_conditions(before, &wanted.conditions, now),
    })
}

/// A list that is all ours.
fn all_conditions(known: &[Value], wanted: &[Condition], now: Timestamp) -> Vec<Value> {
    let one = |wanted: &Condition| {
        let before = known.iter().find(|one| one["type"] == wanted.kind.as_str());
        condition(before, wanted, now)
    };
    wanted.iter().map(one).collect()
}

/// A list in which the types `ours` are ours.
fn conditions(known: &[Value], wanted: &[Condition], ours: &[&str], now: Timestamp) -> Vec<Value> {
    let mut list = Vec::new();
    for one in known {
        let kind = one["type"].as_str().unwrap_or_default();
        match wanted.iter().find(|wanted| wanted.kind == kind) {
            Some(wanted) => list.push(condition(Some(one), wanted, now)),
            None if ours.contains(&kind) => {}
            None => list.push(one.clone()),
        }
    }
    let is_new = |wanted: &&Condition| known.iter().all(|one| one["type"] != wanted.kind.as_str());
    let new = wanted.iter().filter(is_new);
    list.extend(new.map(|wanted| condition(None, wanted, now)));
    list
}

/// A condition; as it stands if it says the same. It is so since it changed over, not since it was explained otherwise.
fn condition(before: Option<&Value>, wanted: &Condition, now: Timestamp) -> Value {
    let status = match wanted.status {
        Truth::True => "True",
        Truth::False => "False",
    };
    let since = before
        .filter(|before| before["status"] == status)
        .and_then(|before| before["lastTransitionTime"].as_str());
    let mut one = json!({
        "type": wanted.kind,
        "status": status,
        "lastTransitionTime": since.map_or_else(|| now.to_string(), str::to_owned),
        "reason": wanted.reason,
        "message": short(&wanted.message),
    });
    if let Some(generation) = wanted.observed_generation {
        one["observedGeneration"] = generation.into();
    }
    let says = |before: &Value, field: &str| before[field] == one[field];
    let fields = ["status", "reason", "message", "observedGeneration"];
    match before {
        // With fields of others that say nothing else, such as Istio's `lastProbeTime`.
        Some(before) if fields.iter().all(|field| says(before, field)) => before.clone(),
        _ => one,
    }
}

fn short(message: &str) -> &str {
    let cut = message.char_indices().nth(LONGEST_MESSAGE);
    cut.map_or(message, |(at, _)| message.get(..at).unwrap_or_default())
}

/// As the API server stores one: fields that it does not say are left out.
fn reference(one: &Reference) -> Value {
    serde_json::to_value(one).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::{Share, merge};
    use crate::controller::claim::Claim;
    use crate::mesh::status::{
        Condition, ListenerStatus, ParentStatus, Reference, Status, StatusAddress, fails, holds,
    };

    const THEN: &str = "2026-01-01T00:00:00Z";
    const NOW: &str = "2026-01-02T00:00:00Z";
    const OURS: Claim = Claim::Conditions(&["Ours", "AlsoOurs"]);

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    /// A condition as it stands in an API server.
    fn stands(kind: &str, status: &str, reason: &str, since: &str) -> Value {
        json!({ "type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": "m" })
    }

    fn says(conditions: Vec<Condition>) -> Status {
        Status {
            conditions,
            ..Status::default()
        }
    }

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "tables hand them over")]
    fn check(current: &Value, wanted: &Status, claim: Claim, expected: Option<Value>) {
        let share = Share {
            claim,
            is_of_others: &|about| about["name"] == "ingress",
        };
        let merged = merge(current, wanted, share, now()).map(Value::Object);
        assert_eq!(merged, expected, "{current:#}");
        // What was written is what is wanted.
        if let Some(Value::Object(fields)) = merged {
            let mut after = current.as_object().cloned().unwrap_or_default();
            after.extend(fields);
            assert_eq!(merge(&Value::Object(after), wanted, share, now()), None);
        }
    }

    #[test]
    fn conditions_of_others_stay_and_ours_become_what_is_wanted() {
        let other = stands("Other", "True", "X", THEN);
        let ours = stands("Ours", "True", "R", THEN);
        let wants = |conditions: Vec<Condition>| says(conditions);
        for (before, wanted, after) in [
            // Nothing, and nothing to say.
            (json!(null), wants(vec![]), None),
            (json!({ "loadBalancer": {} }), wants(vec![]), None),
            // New.
            (
                json!(null),
                wants(vec![holds("Ours", "R", "m")]),
                Some(json!([stands("Ours", "True", "R", NOW)])),
            ),
            (
                json!({ "conditions": [other] }),
                wants(vec![holds("Ours", "R", "m")]),
                Some(json!([other, stands("Ours", "True", "R", NOW)])),
            ),
            // As it stands.
            (
                json!({ "conditions": [ours, other] }),
                wants(vec![holds("Ours", "R", "m")]),
                None,
            ),
            // Explained otherwise: it keeps its time.
            (
                json!({ "conditions": [ours, other] }),
                wants(vec![holds("Ours", "Q", "m")]),
                Some(json!([stands("Ours", "True", "Q", THEN), other])),
            ),
            // Changed over.
            (
                json!({ "conditions": [other, ours] }),
                wants(vec![fails("Ours", "R", "m")]),
                Some(json!([other, stands("Ours", "False", "R", NOW)])),
            ),
            // Nothing to say any more.
            (
                json!({ "conditions": [ours, other] }),
                wants(vec![]),
                Some(json!([other])),
            ),
            (
                json!({ "conditions": [ours] }),
                wants(vec![]),
                Some(json!([])),
            ),
        ] {
            let expected = after.map(|list| json!({ "conditions": list }));
            check(&before, &wanted, OURS, expected);
        }
    }

    #[test]
    fn the_generation_that_was_looked_at_is_news() {
        let mut stand = stands("Ours", "True", "R", THEN);
        stand["observedGeneration"] = 1.into();
        let seen = |generation| says(vec![holds("Ours", "R", "m").observed(Some(generation))]);
        check(&json!({ "conditions": [stand] }), &seen(1), OURS, None);
        let mut newer = stand.clone();
        newer["observedGeneration"] = 2.into();
        check(
            &json!({ "conditions": [stand] }),
            &seen(2),
            OURS,
            Some(json!({ "conditions": [newer] })),
        );
        // Somebody's probe time is nobody's news.
        stand["lastProbeTime"] = NOW.into();
        check(&json!({ "conditions": [stand] }), &seen(1), OURS, None);
    }

    fn parent(name: &str, reason: &str) -> ParentStatus {
        ParentStatus {
            parent_ref: Reference {
                group: String::new(),
                kind: "Service".to_owned(),
                namespace: None,
                name: name.to_owned(),
                section_name: None,
                port: Some(80),
            },
            controller_name: "us".to_owned(),
            conditions: vec![holds("Accepted", reason, "m")],
        }
    }

    fn stands_at(name: &str, controller: &str, reason: &str, since: &str) -> Value {
        json!({
            "parentRef": { "group": "", "kind": "Service", "name": name, "port": 80 },
            "controllerName": controller,
            "conditions": [stands("Accepted", "True", reason, since)],
        })
    }

    #[test]
    fn what_another_controller_says_at_a_parent_stays() {
        let theirs = stands_at("s", "them", "R", THEN);
        let [one, two, ingress] =
            ["s", "t", "ingress"].map(|name| stands_at(name, "us", "R", THEN));
        for (before, wanted, after) in [
            (vec![], vec![], None),
            (
                vec![&theirs],
                vec![parent("s", "R")],
                Some(json!([theirs, stands_at("s", "us", "R", NOW)])),
            ),
            (vec![&one, &theirs], vec![parent("s", "R")], None),
            // In another order than the route has them: no reason to write.
            (
                vec![&one, &two],
                vec![parent("t", "R"), parent("s", "R")],
                None,
            ),
            (
                vec![&one, &theirs, &two],
                vec![parent("t", "Q")],
                Some(json!([theirs, stands_at("t", "us", "Q", THEN)])),
            ),
            (vec![&one, &theirs], vec![], Some(json!([theirs]))),
            (vec![&theirs], vec![], None),
            (vec![&one, &one], vec![parent("s", "R")], Some(json!([one]))),
            // A gateway that is another's, though its controller calls itself what we do.
            (vec![&ingress, &one], vec![parent("s", "R")], None),
            (vec![&ingress, &one], vec![], Some(json!([ingress]))),
        ] {
            let wanted = Status {
                parents: wanted,
                ..Status::default()
            };
            let expected = after.map(|list| json!({ "parents": list }));
            check(
                &json!({ "parents": before }),
                &wanted,
                Claim::Parents("us"),
                expected,
            );
        }
    }

    #[test]
    fn a_gateway_is_its_controllers_as_a_whole() {
        let wanted = Status {
            conditions: vec![holds("Accepted", "Accepted", "m")],
            addresses: vec![StatusAddress {
                kind: "Hostname".to_owned(),
                value: "w.a.svc".to_owned(),
            }],
            listeners: vec![ListenerStatus {
                name: "mesh".to_owned(),
                attached_routes: 0,
                supported_kinds: Vec::new(),
                conditions: vec![holds("Accepted", "Accepted", "m")],
            }],
            ..Status::default()
        };
        // As the definition of Gateway API makes one.
        let fresh = json!({ "conditions": [
            { "type": "Accepted", "status": "Unknown", "reason": "Pending", "message": "Waiting for controller",
              "lastTransitionTime": "1970-01-01T00:00:00Z" },
            { "type": "Programmed", "status": "Unknown", "reason": "Pending", "message": "Waiting for controller",
              "lastTransitionTime": "1970-01-01T00:00:00Z" },
        ] });
        let accepted = stands("Accepted", "True", "Accepted", NOW);
        let expected = json!({
            "conditions": [accepted],
            "addresses": [{ "type": "Hostname", "value": "w.a.svc" }],
            "listeners": [{ "name": "mesh", "attachedRoutes": 0, "supportedKinds": [], "conditions": [accepted] }],
        });
        check(&fresh, &wanted, Claim::Gateway, Some(expected.clone()));
        // A listener that is gone goes.
        let mut old = expected.clone();
        old["listeners"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "name": "old", "attachedRoutes": 0, "conditions": [] }));
        let listeners = json!({ "listeners": expected["listeners"] });
        check(&old, &wanted, Claim::Gateway, Some(listeners));
    }
}
