//! Which parts of an object's status are this controller's to write, and which are others' and stay as they are.

use crate::mesh::Kind;
use crate::sources::{Held, Holdings};

/// The class of waypoints that nobody but Culvert has.
pub(super) const OWN_CLASS: &str = "culvert-waypoint";
/// The class that Istio's users ask for.
pub(super) const ISTIO_CLASS: &str = "istio-waypoint";
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
        // Kubernetes' own controllers speak about those; what is wrong with a Namespace is told as an Event.
        _ => return None,
    };
    (!is_istios || !beside_istiod).then_some(claim)
}

/// Whether the claim ends with our having something to say: a Gateway or class that is another's is left as it is.
pub(super) fn is_kept_when_silent(kind: &Kind) -> bool {
    matches!(kind, Kind::Gateway | Kind::GatewayClass)
}

/// Whether a control plane of Istio's is there: it accepts its class of waypoints in words that are not ours.
pub(super) fn istiod_is_there(holdings: &Holdings) -> bool {
    let class = holdings
        .iter()
        .find(|(key, _)| key.kind == Kind::GatewayClass && &*key.name.name == ISTIO_CLASS);
    let conditions = class.and_then(|(_, held)| held.status["conditions"].as_array());
    conditions.into_iter().flatten().any(|one| {
        one["type"] == "Accepted" && one["status"] == "True" && one["message"] != ACCEPTED_BY_US
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Claim, claim, istiod_is_there};
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
        check(
            "istio",
            accepted("True", "Handled by Istio controller"),
            false,
        );
        assert!(!istiod_is_there(&Holdings::new()));
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
    }
}
