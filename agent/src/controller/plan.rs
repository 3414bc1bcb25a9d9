//! What has to be written, from what the API server holds and what there is to say: nothing where it says so already.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::claim::{
    ISTIO_CLASS, OWN_CLASS, claim, is_kept_when_silent, is_of_others, istiod_is_there,
};
use super::merge::{Share, merge};
use crate::mesh::status::{ObjectStatus, Status};
use crate::mesh::{Kind, ObjectKey, ObjectName};
use crate::sources::Holdings;

/// Who is the controller of Istio's class: Istio's own name, so that an istiod that comes later takes it over.
const ISTIO_CONTROLLER: &str = "istio.io/mesh-controller";
const OWN_CONTROLLER: &str = "culvert.dev/mesh-controller";
/// The version in which classes are created.
const CLASS_VERSION: &str = "gateway.networking.k8s.io/v1";
/// For people; at most 64 bytes.
const DESCRIPTION: &str = "Waypoints that are no pods: each node's agent does their work.";

/// Whether a control plane of Istio's is in the cluster, which speaks about Istio's kinds itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Istiod {
    /// It is if its class of waypoints is accepted in other words than ours, or its class of ingress gateways is.
    Found,
    /// It is.
    Present,
    /// It is not, whatever it left behind.
    Absent,
}

/// All that has to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Classes that are missing, as objects.
    pub(super) classes: Vec<(ObjectKey, Value)>,
    /// Statuses that say something else.
    pub(super) patches: Vec<Patch>,
}

/// What changes in the status of one object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Patch {
    pub(super) object: ObjectKey,
    pub(super) api_version: Arc<str>,
    /// The object's version that this was made from; it holds for no other.
    pub(super) version: Arc<str>,
    /// To be merged into the object.
    pub(super) fields: Value,
}

/// What the API server says, as far as planning needs it.
pub(super) struct Seen<'a> {
    pub(super) holdings: &'a Holdings,
    /// Whether it has classes of Gateways at all.
    pub(super) has_classes: bool,
    pub(super) istiod: Istiod,
}

/// Plans what makes the statuses of all objects say `wanted`.
pub(super) fn plan(seen: &Seen<'_>, wanted: &[ObjectStatus], now: Timestamp) -> Plan {
    let beside_istiod = match seen.istiod {
        Istiod::Found => istiod_is_there(seen.holdings),
        Istiod::Present => true,
        Istiod::Absent => false,
    };
    let wanted: HashMap<_, _> = wanted
        .iter()
        .map(|one| ((one.kind.as_str(), place(one)), &one.status))
        .collect();
    let silence = Status::default();
    let mut patches = Vec::new();
    for (key, held) in seen.holdings {
        let ObjectName { namespace, name } = &key.name;
        let Some(claim) = claim(&key.kind, name, held, beside_istiod) else {
            continue;
        };
        let kind = key.kind.to_string();
        let said = wanted.get(&(kind.as_str(), (&**namespace, &**name)));
        if said.is_none() && is_kept_when_silent(&key.kind) {
            continue;
        }
        let status = said.copied().unwrap_or(&silence);
        let share = Share {
            claim,
            is_of_others: &|about| is_of_others(about, namespace, seen.holdings),
        };
        if let Some(fields) = merge(&held.status, status, share, now) {
            patches.push(Patch {
                object: key.clone(),
                api_version: Arc::clone(&held.api_version),
                version: Arc::clone(&held.version),
                fields: json!({
                    "metadata": { "resourceVersion": &*held.version },
                    "status": fields,
                }),
            });
        }
    }
    Plan {
        classes: missing_classes(seen, beside_istiod),
        patches,
    }
}

fn place(one: &ObjectStatus) -> (&str, &str) {
    let namespace = one.metadata.namespace.as_deref();
    (namespace.unwrap_or_default(), &one.metadata.name)
}

fn missing_classes(seen: &Seen<'_>, beside_istiod: bool) -> Vec<(ObjectKey, Value)> {
    let wanted = [
        (OWN_CLASS, OWN_CONTROLLER, seen.has_classes),
        (
            ISTIO_CLASS,
            ISTIO_CONTROLLER,
            seen.has_classes && !beside_istiod,
        ),
    ];
    let mut missing = Vec::new();
    for (class, controller, is_wanted) in wanted {
        let key = ObjectKey {
            kind: Kind::GatewayClass,
            name: ObjectName {
                namespace: "".into(),
                name: class.into(),
            },
        };
        if is_wanted && !seen.holdings.contains_key(&key) {
            let object = json!({
                "apiVersion": CLASS_VERSION,
                "kind": "GatewayClass",
                "metadata": {
                    "name": class,
                    "labels": { "app.kubernetes.io/managed-by": "culvert" },
                },
                "spec": {
                    "controllerName": controller,
                    "description": DESCRIPTION,
                },
            });
            missing.push((key, object));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::{Istiod, Patch, Plan, Seen, plan};
    use crate::controller::for_test::{held, key};
    use crate::mesh::status::{Condition, ObjectStatus, Status, StatusName, holds};
    use crate::mesh::{Kind, ObjectKey};
    use crate::sources::Holdings;

    const NOW: &str = "2026-01-02T00:00:00Z";
    const BOUND: &str = "istio.io/WaypointBound";

    fn stands(kind: &str, message: &str) -> Value {
        json!({ "conditions": [{ "type": kind, "status": "True", "lastTransitionTime": NOW, "reason": "R", "message": message }] })
    }

    fn wants(kind: &str, namespace: &str, name: &str, conditions: Vec<Condition>) -> ObjectStatus {
        ObjectStatus {
            api_version: "v1".to_owned(),
            kind: kind.to_owned(),
            metadata: StatusName {
                namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
                name: name.to_owned(),
            },
            status: Status {
                conditions,
                ..Status::default()
            },
        }
    }

    fn planned(
        holdings: &[(ObjectKey, Value)],
        wanted: &[ObjectStatus],
        (has_classes, istiod): (bool, Istiod),
    ) -> Plan {
        let holdings: Holdings = holdings
            .iter()
            .map(|(key, status)| (key.clone(), held(status.clone())))
            .collect();
        let seen = Seen {
            holdings: &holdings,
            has_classes,
            istiod,
        };
        plan(&seen, wanted, NOW.parse::<Timestamp>().unwrap())
    }

    fn objects(patches: &[Patch]) -> Vec<String> {
        patches.iter().map(|one| one.object.to_string()).collect()
    }

    #[test]
    fn only_what_says_something_else_is_written() {
        let service = |name: &str| key(Kind::Service, "a", name);
        let holdings = [
            (service("as-wanted"), stands(BOUND, "m")),
            (service("new"), json!({ "loadBalancer": {} })),
            (service("released"), stands(BOUND, "m")),
            (service("never"), json!(null)),
            (service("others"), stands("Ready", "m")),
        ];
        let bound = |name: &str| wants("Service", "a", name, vec![holds(BOUND, "R", "m")]);
        // Of one that is gone there may still be something to say.
        let wanted = [bound("as-wanted"), bound("gone"), bound("new")];
        let Plan { patches, .. } = planned(&holdings, &wanted, (false, Istiod::Found));
        assert_eq!(objects(&patches), ["Service a/new", "Service a/released"]);
        assert_eq!(
            patches[0].fields,
            json!({ "metadata": { "resourceVersion": "7" }, "status": stands(BOUND, "m") })
        );
        assert_eq!(patches[1].fields["status"], json!({ "conditions": [] }));
    }

    #[test]
    fn what_is_another_controllers_is_left_as_it_is() {
        let holdings = [
            (key(Kind::Gateway, "a", "w"), stands("Accepted", "theirs")),
            (
                key(Kind::GatewayClass, "", "istio"),
                stands("Accepted", "theirs"),
            ),
        ];
        let Plan { patches, .. } = planned(&holdings, &[], (false, Istiod::Absent));
        assert_eq!(objects(&patches), [""; 0]);
    }

    #[test]
    fn classes_are_created_where_they_are_missing_and_nobody_elses() {
        let theirs = stands("Accepted", "Handled by Istio controller");
        let ours = stands("Accepted", "Handled by the node agents");
        let (istios, own) = ("istio-waypoint", "culvert-waypoint");
        for (there, has_classes, istiod, expected) in [
            (vec![], false, Istiod::Found, vec![]),
            (vec![], true, Istiod::Found, vec![own, istios]),
            (vec![], true, Istiod::Present, vec![own]),
            (vec![(istios, &theirs)], true, Istiod::Found, vec![own]),
            (vec![(own, &ours)], true, Istiod::Absent, vec![istios]),
            (
                vec![(own, &ours), (istios, &ours)],
                true,
                Istiod::Found,
                vec![],
            ),
        ] {
            let class = |(name, status): &(&str, &Value)| {
                (key(Kind::GatewayClass, "", name), (*status).clone())
            };
            let holdings: Vec<_> = there.iter().map(class).collect();
            let Plan { classes, .. } = planned(&holdings, &[], (has_classes, istiod));
            let names: Vec<_> = classes.iter().map(|(key, _)| &*key.name.name).collect();
            assert_eq!(names, expected, "{there:?} {istiod:?}");
        }
    }

    #[test]
    fn beside_istiod_its_objects_are_its_own() {
        let holdings = [
            (
                key(Kind::Service, "a", "s"),
                stands(BOUND, "istiod's words"),
            ),
            (
                key(Kind::GatewayClass, "", "istio-waypoint"),
                stands("Accepted", "Handled by Istio controller"),
            ),
        ];
        let wanted = [wants("Service", "a", "s", vec![holds(BOUND, "R", "ours")])];
        let written = |istiod| objects(&planned(&holdings, &wanted, (true, istiod)).patches);
        assert_eq!(written(Istiod::Found), [""; 0]);
        assert_eq!(written(Istiod::Present), [""; 0]);
        assert_eq!(written(Istiod::Absent), ["Service a/s"]);
    }
}
