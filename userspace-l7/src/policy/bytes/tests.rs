//! A connection of bytes to port 90 of service `raw`, row by row of what its waypoint's policies say.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BytesClaim, CalledPort};
use crate::model::{
    Demands, HttpPolicy, HttpPolicyAction, HttpPolicyRule, JwtKeys, JwtRule, MeshSettings,
    NamespacedHostname, OperationMatch, PolicyKey, ServiceLayer7, Side, Snapshot, SourceMatch,
    StringMatch, Telemetry, TrustDomain, WaypointKey, WorkloadLayer7, WorkloadUid,
};
use crate::policy::http::{HttpDenial, RuleName};

fn raw() -> NamespacedHostname {
    NamespacedHostname {
        namespace: "shop".into(),
        hostname: "raw".into(),
    }
}

fn policy(action: HttpPolicyAction, rule: HttpPolicyRule) -> HttpPolicy {
    HttpPolicy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: "p".into(),
        },
        action,
        dry_run: false,
        rules: vec![rule],
    }
}

/// A mesh in which these are the policies of the service's waypoint, and of the workload's.
fn mesh(policy: Option<HttpPolicy>) -> Snapshot {
    let mut mesh = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    let demands = Arc::new(Demands {
        authorization: policy.into_iter().map(Arc::new).collect(),
        ..Demands::default()
    });
    let waypoint = || WaypointKey {
        namespace: "shop".into(),
        name: "waypoint".into(),
    };
    let waypoint_identity = || "spiffe://td/ns/shop/sa/waypoint".parse().unwrap();
    let layer7 = ServiceLayer7 {
        waypoint: waypoint(),
        waypoint_identity: waypoint_identity(),
        ports: BTreeMap::new(),
        demands: Arc::clone(&demands),
        telemetry: Arc::new(Telemetry::default()),
        ingress: false,
        canary: None,
    };
    mesh.services_layer7.insert(raw(), Arc::new(layer7));
    let layer7 = WorkloadLayer7 {
        waypoint: waypoint(),
        waypoint_identity: waypoint_identity(),
        demands,
    };
    mesh.workloads_layer7.insert(server(), Arc::new(layer7));
    mesh
}

fn server() -> WorkloadUid {
    WorkloadUid::new("k//Pod/shop/server")
}

fn claim(called: bool) -> BytesClaim {
    BytesClaim {
        called: called.then(|| CalledPort {
            service: raw(),
            side: Side::default(),
            port: 90,
        }),
        besides: Vec::new(),
        workload: server(),
        identity: Some("spiffe://td/ns/clients/sa/client".parse().unwrap()),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:9090".parse().unwrap(),
        is_declared: true,
    }
}

fn from(principal: &str) -> HttpPolicyRule {
    HttpPolicyRule {
        from: vec![SourceMatch {
            principals: vec![StringMatch::Exact(principal.into())],
            ..SourceMatch::default()
        }],
        ..HttpPolicyRule::default()
    }
}

/// At a port, and with a method if one is said.
fn to(port: &str, method: Option<&str>) -> HttpPolicyRule {
    let methods = method.map(|method| StringMatch::Exact(method.into()));
    HttpPolicyRule {
        to: vec![OperationMatch {
            ports: vec![port.parse().unwrap()],
            methods: methods.into_iter().collect(),
            ..OperationMatch::default()
        }],
        ..HttpPolicyRule::default()
    }
}

#[test]
fn policies_are_asked_as_far_as_they_are_not_about_requests() {
    use HttpPolicyAction::{Allow, Deny};
    let client = "td/ns/clients/sa/client";
    let explicit = HttpDenial::Explicit(RuleName {
        policy: PolicyKey {
            namespace: "shop".into(),
            name: "p".into(),
        },
        rule: 0,
    });
    let denied = || Err(explicit.clone());
    let missed = || Err(HttpDenial::NotAllowed);
    for (what, action, rule, expected) in [
        ("deny all", Deny, HttpPolicyRule::default(), denied()),
        ("deny the client", Deny, from(client), denied()),
        ("deny another", Deny, from("td/ns/clients/sa/other"), Ok(())),
        ("deny the port", Deny, to("90", None), denied()),
        ("deny another port", Deny, to("91", None), Ok(())),
        (
            "deny GET at the port, and so the port",
            Deny,
            to("90", Some("GET")),
            denied(),
        ),
        ("allow the client", Allow, from(client), Ok(())),
        (
            "allow the waypoint, which is nobody's client",
            Allow,
            from("td/ns/shop/sa/waypoint"),
            missed(),
        ),
        (
            "allow another",
            Allow,
            from("td/ns/clients/sa/other"),
            missed(),
        ),
        ("allow GET", Allow, to("90", Some("GET")), missed()),
    ] {
        let mesh = mesh(Some(policy(action, rule)));
        assert_eq!(claim(true).judge(&mesh), expected, "{what}");
    }
}

#[test]
fn a_workloads_own_waypoint_is_asked_where_no_service_was_called() {
    let all = policy(HttpPolicyAction::Deny, HttpPolicyRule::default());
    let mut mesh = mesh(Some(all));
    mesh.services_layer7.remove(&raw());
    assert_eq!(claim(true).judge(&mesh), Ok(()), "the binding is gone");
    assert!(claim(false).judge(&mesh).is_err());
    mesh.workloads_layer7.remove(&server());
    assert_eq!(claim(false).judge(&mesh), Ok(()), "this one, too");
}

#[test]
fn on_a_port_that_declares_nothing_no_request_passes_as_bytes() {
    let unseen = |demands: Demands| {
        let mut mesh = mesh(None);
        let mut layer7 = (**mesh.services_layer7.get(&raw()).unwrap()).clone();
        layer7.demands = Arc::new(demands);
        mesh.services_layer7.insert(raw(), Arc::new(layer7));
        [true, false].map(|is_declared| {
            let claim = BytesClaim {
                is_declared,
                ..claim(true)
            };
            claim.judge(&mesh).is_ok()
        })
    };
    let asking = policy(HttpPolicyAction::Custom(None), to("90", Some("GET")));
    let demands = |authorization| Demands {
        authorization,
        ..Demands::default()
    };
    assert_eq!(unseen(demands(vec![Arc::new(asking)])), [true, false]);
    // Whom nobody is asked about passes.
    let elsewhere = policy(HttpPolicyAction::Custom(None), to("91", Some("GET")));
    assert_eq!(unseen(demands(vec![Arc::new(elsewhere)])), [true, true]);
    let rule = JwtRule {
        origin: "shop/tokens".into(),
        issuer: "somebody".into(),
        audiences: vec![],
        keys: JwtKeys::Inline("{}".into()),
        locations: vec![],
        forward_original: false,
        payload_header: None,
        claim_headers: vec![],
        space_delimited_claims: vec![],
    };
    let tokens = Demands {
        authentication: vec![Arc::new(rule)],
        ..Demands::default()
    };
    assert_eq!(unseen(tokens), [true, false]);
    assert_eq!(unseen(Demands::default()), [true, true]);
}
