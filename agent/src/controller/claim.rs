//! Which parts of an object's status are this controller's to write, and which are others' and stay as they are.

use serde_json::Value;

use crate::mesh::{Kind, ObjectKey, ObjectName};
use crate::sources::{Held, Holdings};

/// The class of waypoints that nobody but Culvert has.
pub(super) const OWN_CLASS: &str = "culvert-waypoint";
/// The class that Istio's users ask for.
pub(super) const ISTIO_CLASS: &str = "istio-waypoint";
/// The class of Istio's ingress gateways, which every istiod brings, also one without ambient mode.
const ISTIO_INGRESS_CLASS: &str = "istio";
/// What the condition of a class says that Culvert has accepted.
const ACCEPTED_BY_US: &str = "Handled by the node agents";

/// The part of a kind's status that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Conditions of these types, wherever we have something to say.
    Conditions(&'static [&'static str]),
    /// All that a Gateway's controller says, while we are that.
    Gateway,
    /// Entries of `parents` under this controller's name.
    Parents(&'static str),
    /// Entries of `ancestors` under this controller's name.
    Ancestors(&'static str),
}

/// Istio's own name, as which routes' parents are looked for.
const ROUTE_CONTROLLER: &str = "istio.io/gateway-controller";
const POLICY_CONTROLLER: &str = "culvert.dev/policy-controller";

const BOUND: Claim = Claim::Conditions(&["istio.io/WaypointBound"]);
const ENTRY: Claim = Claim::Conditions(&["istio.io/WaypointBound", "istio.io/WaypointMissing"]);
const POLICY: Claim = Claim::Conditions(&["ZtunnelAccepted", "WaypointAccepted"]);

/// What is ours of an object; `None`: nothing. `beside_istiod`: a control plane of Istio's is there, which speaks about all
/// that is Istio's.
pub(super) fn claim(kind: &Kind, name: &str, held: &Held, beside_istiod: bool) -> Option<Claim> {
    let (claim, is_istios) = match kind {
        Kind::Service | Kind::WorkloadEntry => (BOUND, true),
        Kind::ServiceEntry => (ENTRY, true),
        Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::Telemetry => (POLICY, true),
        Kind::VirtualService => (Claim::Conditions(&["Accepted", "ResolvedRefs"]), true),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            (Claim::Parents(ROUTE_CONTROLLER), true)
        }
        Kind::Gateway => (Claim::Gateway, held.class.as_deref() != Some(OWN_CLASS)),
        Kind::GatewayClass => (Claim::Conditions(&["Accepted"]), name != OWN_CLASS),
        Kind::RateLimitPolicy => (Claim::Ancestors(POLICY_CONTROLLER), false),
        Kind::BackendTlsPolicy => (Claim::Ancestors(ROUTE_CONTROLLER), true),
        // Kubernetes' own controllers speak about those; what is wrong with a Namespace is told as an Event.
        _ => return None,
    };
    (!is_istios || !beside_istiod).then_some(claim)
}

/// Whether the claim ends with our having something to say: a Gateway or class that is another's is left as it is.
pub(super) fn is_kept_when_silent(kind: &Kind) -> bool {
    matches!(kind, Kind::Gateway | Kind::GatewayClass)
}

/// Whether what `reference` of an object in `namespace` names is a Gateway that another controller speaks about: of a class
/// that is not ours, or not there. Istio's own ingress says what it makes of a route under the name that we speak about
/// waypoints as.
pub(super) fn is_of_others(reference: &Value, namespace: &str, holdings: &Holdings) -> bool {
    let text = |field: &str| reference[field].as_str();
    let is_gateway = text("kind").is_none_or(|kind| kind == "Gateway")
        && text("group").is_none_or(|group| group == "gateway.networking.k8s.io");
    let gateway = ObjectKey {
        kind: Kind::Gateway,
        name: ObjectName {
            namespace: text("namespace").unwrap_or(namespace).into(),
            name: text("name").unwrap_or_default().into(),
        },
    };
    let class = holdings
        .get(&gateway)
        .and_then(|held| held.class.as_deref());
    is_gateway && !class.is_some_and(|class| [OWN_CLASS, ISTIO_CLASS].contains(&class))
}

/// Whether a control plane of Istio's is there: it accepts its class of waypoints in words that are not ours, or that of
/// its ingress gateways, about which we have none.
pub(super) fn istiod_is_there(holdings: &Holdings) -> bool {
    holdings.iter().any(|(key, held)| {
        let is_istios = match (&key.kind, &*key.name.name) {
            (Kind::GatewayClass, ISTIO_CLASS) => true,
            (Kind::GatewayClass, ISTIO_INGRESS_CLASS) => {
                held.controller.as_deref() == Some(ROUTE_CONTROLLER)
            }
            _ => false,
        };
        let conditions = held.status["conditions"].as_array();
        is_istios
            && conditions.into_iter().flatten().any(|one| {
                one["type"] == "Accepted"
                    && one["status"] == "True"
                    && one["message"] != ACCEPTED_BY_US
            })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Claim, claim, is_of_others, istiod_is_there};
    use crate::controller::for_test::{held, key};
    use crate::mesh::Kind;
    use crate::sources::Holdings;

    #[test]
    fn istiod_is_known_by_the_class_that_it_accepts() {
        let check = |class: &str, status: Value, expected: bool| {
            let holdings = Holdings::from([(key(Kind::GatewayClass, "", class), held(status))]);
            assert_eq!(istiod_is_there(&holdings), expected, "{holdings:?}");
        };
        let accepted = |status: &str, message: &str| json!({ "conditions": [{ "type": "Accepted", "status": status, "message": message }] });
        check(
            "istio-waypoint",
            accepted("True", "Handled by Istio controller"),
            true,
        );
        check(
            "istio-waypoint",
            accepted("True", "Handled by the node agents"),
            false,
        );
        // What Gateway API's definition begins with.
        check(
            "istio-waypoint",
            accepted("Unknown", "Waiting for controller"),
            false,
        );
        check("istio-waypoint", json!(null), false);
        // Somebody else's, of that name by chance.
        check(
            "istio",
            accepted("True", "Handled by Istio controller"),
            false,
        );
        assert!(!istiod_is_there(&Holdings::new()));
        // An istiod without ambient mode has no class of waypoints.
        for (status, expected) in [("True", true), ("Unknown", false)] {
            let mut class = held(accepted(status, "Handled by Istio controller"));
            class.controller = Some("istio.io/gateway-controller".into());
            let holdings = Holdings::from([(key(Kind::GatewayClass, "", "istio"), class)]);
            assert_eq!(istiod_is_there(&holdings), expected, "{status}");
        }
    }

    #[test]
    fn a_gateway_of_another_class_is_its_own_controllers_to_speak_about() {
        let gateway = |name: &str, class: &str| {
            let mut held = held(json!(null));
            held.class = Some(class.into());
            (key(Kind::Gateway, "a", name), held)
        };
        let holdings = Holdings::from([
            gateway("ours", "istio-waypoint"),
            gateway("own", "culvert-waypoint"),
            gateway("ingress", "istio"),
        ]);
        for (reference, namespace, expected) in [
            (json!({ "name": "ingress" }), "a", true),
            (json!({ "name": "ingress", "namespace": "a" }), "b", true),
            (json!({ "name": "gone" }), "a", true),
            (json!({ "name": "ours" }), "b", true),
            (json!({ "name": "ours" }), "a", false),
            (json!({ "name": "own", "namespace": "a" }), "b", false),
            (
                json!({ "group": "", "kind": "Service", "name": "ingress" }),
                "a",
                false,
            ),
            (
                json!({ "group": "networking.istio.io", "kind": "Gateway", "name": "x" }),
                "a",
                false,
            ),
        ] {
            assert_eq!(
                is_of_others(&reference, namespace, &holdings),
                expected,
                "{reference} of {namespace}"
            );
        }
    }

    #[test]
    fn beside_istiod_only_our_own_is_spoken_about() {
        let of_class = |class: &str| {
            let mut held = held(json!(null));
            held.class = Some(class.into());
            held
        };
        let plain = held(json!(null));
        for (kind, name, held, alone, beside) in [
            (Kind::Service, "s", &plain, true, false),
            (Kind::HttpRoute, "r", &plain, true, false),
            (Kind::AuthorizationPolicy, "p", &plain, true, false),
            (Kind::RateLimitPolicy, "p", &plain, true, true),
            (Kind::BackendTlsPolicy, "p", &plain, true, false),
            (Kind::GatewayClass, "culvert-waypoint", &plain, true, true),
            (Kind::GatewayClass, "istio-waypoint", &plain, true, false),
            (
                Kind::Gateway,
                "w",
                &of_class("culvert-waypoint"),
                true,
                true,
            ),
            (Kind::Gateway, "w", &of_class("istio-waypoint"), true, false),
            (Kind::Pod, "p", &plain, false, false),
            (Kind::Namespace, "n", &plain, false, false),
        ] {
            let found = [false, true].map(|istiod| claim(&kind, name, held, istiod).is_some());
            assert_eq!(found, [alone, beside], "{kind} {name}");
        }
        let own = claim(&Kind::RateLimitPolicy, "p", &plain, true);
        assert_eq!(own, Some(Claim::Ancestors("culvert.dev/policy-controller")));
        let gateway_apis = claim(&Kind::BackendTlsPolicy, "p", &plain, false);
        assert_eq!(
            gateway_apis,
            Some(Claim::Ancestors("istio.io/gateway-controller"))
        );
    }
}
