//! Decisions about a small mesh, step by step.

mod forwarders;
mod limits;
mod names;

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use userspace_l7::key_sets::KeySets;
use userspace_l7::model::{
    AbortAnswer, Action, AppProtocol, AuthorizationPolicy, BackendTarget, Clause, Demands,
    ExternalAuthorizer, ExternalAuthorizerProtocol, FaultAbort, HeaderModifier, Health, HttpAction,
    HttpMatch, HttpPolicy, HttpPolicyAction, HttpPolicyRule, HttpRouteEntry, HttpRouteTable,
    HttpRule, Match, OperationMatch, PathMatch, PolicyKey, PortLayer7, PortRoutes, Redirect,
    RedirectPort, RetryPolicy, Rule, Scope, Service, ServiceLayer7, Snapshot, SourceMatch,
    StringMatch, WaypointKey, WaypointReference, WeightedBackend,
};

use super::wording::unless_aborted;
use super::{Expectation, Explanation, Question, Unanswerable, explain};
use crate::admin::fixture::{add_service, add_workload, empty, endpoint, key, service, workload};
use crate::admin::{PodState, PodStatus};

const REVIEWS: &str = "reviews.bookinfo.svc.cluster.local";

fn forward(weights: &[(&str, u32)]) -> HttpAction {
    let backend = |(host, weight): &(&str, u32)| WeightedBackend {
        weight: *weight,
        target: match *host {
            "" => BackendTarget::Invalid {
                why: "no such Service".into(),
            },
            host => BackendTarget::Service {
                service: key("bookinfo", host),
                port: 80,
                subset: None,
            },
        },
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
    };
    HttpAction::Forward(weights.iter().map(backend).collect())
}

fn entry(path: &str, action: HttpAction) -> HttpRouteEntry {
    HttpRouteEntry {
        matches: Arc::new(HttpMatch {
            path: PathMatch::Prefix(path.into()),
            ..HttpMatch::default()
        }),
        rule: Arc::new(HttpRule {
            name: format!("bookinfo.reviews.{}", path.trim_start_matches('/')).into(),
            origin: "HTTPRoute bookinfo/reviews".into(),
            action,
            request_headers: HeaderModifier::default(),
            response_headers: HeaderModifier::default(),
            rewrite: None,
            mirrors: Vec::new(),
            cors: None,
            fault: None,
            timeout: None,
            retry: RetryPolicy::never(),
            session: None,
            is_usable: true,
        }),
    }
}

fn policy(name: &str, action: HttpPolicyAction, method: &str, principal: &str) -> Arc<HttpPolicy> {
    Arc::new(HttpPolicy {
        key: PolicyKey {
            namespace: "bookinfo".into(),
            name: name.into(),
        },
        action,
        dry_run: false,
        rules: vec![HttpPolicyRule {
            from: vec![SourceMatch {
                principals: vec![StringMatch::Exact(principal.into())],
                ..SourceMatch::default()
            }],
            to: vec![OperationMatch {
                methods: vec![StringMatch::Exact(method.into())],
                ..OperationMatch::default()
            }],
            when: Vec::new(),
        }],
    })
}

/// `reviews` with routes by path, two versions behind it, and whatever is demanded.
fn mesh(authorization: Vec<Arc<HttpPolicy>>) -> Snapshot {
    let mut snapshot = empty();
    let mut client = workload("default", "curl-1", &["10.1.0.9"]);
    client.service_account = "curl".into();
    let _client = add_workload(&mut snapshot, client);
    let mut servers = Vec::new();
    for (version, address, health) in [
        ("v1", "10.1.0.1", Health::Healthy),
        ("v2", "10.1.0.2", Health::Unhealthy),
    ] {
        let name = format!("reviews-{version}");
        let mut server = workload("bookinfo", &name, &[address]);
        server.node = "node-b".into();
        let server = add_workload(&mut snapshot, server);
        let one = endpoint(&server, health);
        let host = format!("{name}.bookinfo.svc.cluster.local");
        let vip = address.replace("10.1.0", "10.96.0");
        let own = service("bookinfo", &name, &host, &[&vip]);
        add_service(&mut snapshot, own, vec![one.clone()]);
        servers.push(one);
    }
    let reviews = service("bookinfo", "reviews", REVIEWS, &["10.96.0.9"]);
    add_service(&mut snapshot, reviews, servers);
    let (v1, v2) = (
        "reviews-v1.bookinfo.svc.cluster.local",
        "reviews-v2.bookinfo.svc.cluster.local",
    );
    let entries = vec![
        entry("/split", forward(&[(v1, 90), ("", 10)])),
        entry("/down", forward(&[(v2, 1)])),
        entry("/none", forward(&[])),
        entry(
            "/old",
            HttpAction::Redirect(Redirect {
                scheme: None,
                hostname: Some("new.example.com".into()),
                path: None,
                port: RedirectPort::Derived,
                status: StatusCode::FOUND,
            }),
        ),
    ];
    let port = PortLayer7 {
        protocol: AppProtocol::Http1,
        routes: PortRoutes::Http(Arc::new(HttpRouteTable::new(entries, false))),
        consumer_routes: BTreeMap::new(),
        rate_limits: Arc::new([]),
    };
    let layer7 = ServiceLayer7 {
        waypoint: WaypointKey {
            namespace: "bookinfo".into(),
            name: "waypoint".into(),
        },
        waypoint_identity: "spiffe://cluster.local/ns/bookinfo/sa/waypoint"
            .parse()
            .unwrap(),
        ports: BTreeMap::from([(80, Arc::new(port))]),
        demands: Arc::new(Demands {
            authorization,
            ..Demands::default()
        }),
        telemetry: Arc::default(),
        ingress: false,
        canary: None,
    };
    snapshot
        .services_layer7
        .insert(key("bookinfo", REVIEWS), Arc::new(layer7));
    snapshot
}

fn ask(snapshot: &Snapshot, query: &str) -> Result<Explanation, Unanswerable> {
    explain(
        (snapshot, &KeySets::default()),
        &[],
        &Question::from_query(query)?,
    )
}

#[track_caller]
fn expect(snapshot: &Snapshot, query: &str, status: Option<u16>, why: &str) -> Explanation {
    let explanation = ask(snapshot, query).unwrap();
    let expected = &explanation.expected;
    assert_eq!(expected.status, status, "{expected:?}");
    assert!(expected.why.contains(why), "{expected:?}");
    explanation
}

#[test]
fn a_request_is_followed_to_its_backends_by_weight() {
    let query = "from=default/curl&to=reviews.bookinfo:80&path=/split/x?a=1";
    let found = expect(&mesh(Vec::new()), query, None, "the application answers");
    assert!(found.expected.is_delivered);
    assert_eq!(found.client.pod, "curl-1", "any pod of the account");
    assert_eq!(found.destination.address, "10.96.0.9:80");
    assert_eq!(found.waypoint.name.as_deref(), Some("bookinfo/waypoint"));
    let route = found.route.unwrap();
    assert_eq!(route.origin.as_deref(), Some("HTTPRoute bookinfo/reviews"));
    assert_eq!(route.matched.as_deref(), Some("path prefix /split"));
    let shares: Vec<(&str, &str)> = found
        .backends
        .iter()
        .map(|backend| (&*backend.name, &*backend.share))
        .collect();
    assert_eq!(
        shares,
        [
            ("bookinfo/reviews-v1.bookinfo.svc.cluster.local", "90.0"),
            ("invalid: no such Service", "10.0"),
        ]
    );
    let endpoint = &found.backends[0].endpoints[0];
    assert_eq!(endpoint.workload, "bookinfo/reviews-v1");
    assert_eq!(endpoint.address, "10.1.0.1:8080");
    assert!(endpoint.takes_requests && endpoint.verdict == "allowed");
}

#[test]
fn the_mesh_answers_where_no_backend_can() {
    let mesh = mesh(Vec::new());
    for (path, status, why) in [
        ("/elsewhere", 404, "no route matches"),
        ("/down", 503, "no healthy upstream"),
        ("/none", 500, "no backend with a weight"),
        ("/old", 302, "redirected to http://new.example.com/old"),
        ("/split/../old", 302, "redirected"),
    ] {
        let query = format!("from=default/curl&to=reviews.bookinfo:80&path={path}");
        let found = expect(&mesh, &query, Some(status), why);
        assert!(!found.expected.is_delivered, "{path}");
    }
}

#[test]
fn an_injected_fault_answers_before_all_else() {
    let expected = |answer, per_million| {
        let abort = FaultAbort {
            answer,
            per_million,
        };
        let expected = unless_aborted(&abort, Expectation::delivered("the application answers"));
        (expected.status, expected.is_delivered, expected.why)
    };
    let teapot = AbortAnswer::Http(StatusCode::IM_A_TEAPOT);
    let told = |status, is_delivered, why: &str| (status, is_delivered, why.to_owned());
    assert_eq!(
        expected(teapot, 1_000_000),
        told(
            Some(418),
            false,
            "an injected fault answers every request with 418 I'm a teapot"
        )
    );
    assert_eq!(
        expected(AbortAnswer::Grpc(14), 1_000_000),
        told(
            Some(200),
            false,
            "an injected fault answers every request with grpc-status 14"
        )
    );
    assert_eq!(
        expected(teapot, 125_000),
        told(
            None,
            true,
            "the application answers; an injected fault answers 12.5 % of requests with 418 I'm a teapot instead"
        )
    );
    assert_eq!(
        expected(teapot, 0),
        told(None, true, "the application answers")
    );
}

#[test]
fn the_policy_and_the_rule_that_decide_are_named() {
    let curl = "cluster.local/ns/default/sa/curl";
    let mesh = mesh(vec![
        policy("readers", HttpPolicyAction::Allow, "GET", curl),
        policy("no-delete", HttpPolicyAction::Deny, "DELETE", curl),
    ]);
    let query = |method: &str| {
        format!("from=default/curl&to=reviews.bookinfo:80&path=/split&method={method}")
    };
    let get = expect(&mesh, &query("GET"), None, "the application answers");
    let verdicts: Vec<(&str, &str, &str)> = get
        .policies
        .iter()
        .map(|step| (&*step.name, &*step.verdict, &*step.at))
        .collect();
    assert_eq!(
        verdicts,
        [
            ("bookinfo/readers", "matches rule 0", "node-b"),
            ("bookinfo/no-delete", "does not match", "node-b"),
        ]
    );
    let none = "ALLOW policies exist, and none of their rules matches";
    expect(&mesh, &query("POST"), Some(403), none);
    let denied = "policy bookinfo/no-delete denies it by rule 0";
    expect(&mesh, &query("DELETE"), Some(403), denied);
}

#[test]
fn a_policy_that_asks_says_whom() {
    let authorizer = ExternalAuthorizer {
        name: "login".into(),
        service: key("auth", "authz.auth.svc.cluster.local"),
        port: 9000,
        protocol: ExternalAuthorizerProtocol::Grpc,
        timeout: std::time::Duration::from_secs(1),
        fail_open: false,
        status_on_error: StatusCode::FORBIDDEN,
        body: None,
    };
    let query = "from=default/curl&to=reviews.bookinfo:80&path=/split";
    let curl = "cluster.local/ns/default/sa/curl";
    for (asked, status, why, says) in [
        (
            Some(Arc::new(authorizer)),
            None,
            "if login lets the request pass",
            "matches rule 0; asks login (auth/authz.auth.svc.cluster.local:9000)",
        ),
        (
            None,
            Some(403),
            "",
            "matches rule 0; would ask a provider that does not exist, so it refuses",
        ),
    ] {
        let policy = policy("ask", HttpPolicyAction::Custom(asked), "GET", curl);
        let found = expect(&mesh(vec![policy]), query, status, why);
        let step = found
            .policies
            .iter()
            .find(|step| step.layer == "L7")
            .unwrap();
        assert_eq!((&*step.action, &*step.verdict), ("CUSTOM", says));
    }
}

#[test]
fn a_policy_that_lets_only_the_waypoint_in_is_satisfied_by_layer_7() {
    let mut mesh = mesh(Vec::new());
    let waypoint = Match {
        principals: vec![StringMatch::Exact(
            "cluster.local/ns/bookinfo/sa/waypoint".into(),
        )],
        ..Match::default()
    };
    mesh.global_policies = Arc::new([Arc::new(AuthorizationPolicy {
        key: PolicyKey {
            namespace: "bookinfo".into(),
            name: "waypoint-only".into(),
        },
        scope: Scope::Global,
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![waypoint],
            }],
        }],
    })]);
    let through = "from=default/curl&to=reviews.bookinfo:80&path=/split";
    expect(&mesh, through, None, "the application answers");
    let around = "from=default/curl&to=10.1.0.1:8080";
    let found = expect(
        &mesh,
        around,
        None,
        "allow policies exist, but none allowed",
    );
    assert!(!found.expected.is_delivered);
    assert_eq!(found.policies[0].verdict, "does not match");
    assert_eq!(found.waypoint.name, None);
}

#[test]
fn who_goes_around_a_waypoint_in_a_strict_namespace_is_told() {
    let mut mesh = mesh(Vec::new());
    let bound = |service: &Service| Service {
        waypoint: Some(WaypointReference {
            destination: key("bookinfo", "waypoint"),
            hbone_port: 15008,
            is_foreign: false,
        }),
        ..service.clone()
    };
    let service = bound(&mesh.services[&key("bookinfo", REVIEWS)]);
    mesh.services.insert(service.key.clone(), Arc::new(service));
    let uid = mesh.workload_at("10.1.0.1".parse().unwrap()).unwrap();
    let mut server = (**uid).clone();
    server.services = vec![key("bookinfo", REVIEWS)];
    let _server = add_workload(&mut mesh, server);
    let (through, around) = (
        "from=default/curl&to=reviews.bookinfo:80&path=/split",
        "from=default/curl&to=10.1.0.1:8080",
    );
    expect(&mesh, around, None, "the application answers");
    mesh.strict_namespaces.insert("bookinfo".into());
    let found = expect(&mesh, through, None, "the application answers");
    let name = "bookinfo/culvert.dev/strict-waypoint";
    let said = |found: &Explanation| {
        let step = found.policies.iter().find(|step| step.name == name);
        step.map(|step| step.verdict.clone())
    };
    assert_eq!(said(&found).as_deref(), Some("does not match"));
    let found = expect(&mesh, around, None, "call the service");
    assert!(!found.expected.is_delivered);
    let verdict = format!("matches: around the waypoint of bookinfo/{REVIEWS}");
    assert_eq!(said(&found), Some(verdict));
}

#[test]
fn what_the_mesh_does_not_know_passes_through() {
    let found = expect(
        &mesh(Vec::new()),
        "from=default/curl&to=192.0.2.1:443",
        None,
        "the application answers",
    );
    assert!(found.destination.meaning.contains("unknown to the mesh"));
    assert!(found.expected.is_delivered);
}

#[test]
fn whether_the_client_is_captured_is_said() {
    let mesh = mesh(Vec::new());
    let question = Question::from_query("from=default/curl-1&to=reviews.bookinfo:80").unwrap();
    let pod = PodStatus {
        uid: "Kubernetes//Pod/default/curl-1".to_owned(),
        name: "curl-1".to_owned(),
        namespace: "default".to_owned(),
        service_account: "curl".to_owned(),
        state: PodState::Pending,
        reason: Some("its network namespace is gone".to_owned()),
        encrypted_within_node: false,
    };
    let capture = |pods: &[PodStatus]| {
        explain((&mesh, &KeySets::default()), pods, &question)
            .unwrap()
            .client
            .capture
    };
    assert_eq!(
        capture(std::slice::from_ref(&pod)),
        "not captured yet: its network namespace is gone"
    );
    let up = PodStatus {
        state: PodState::Up,
        ..pod
    };
    assert_eq!(capture(&[up]), "captured by this node's agent");
}

#[test]
fn a_question_about_nobody_is_refused_with_what_to_do() {
    let mesh = mesh(Vec::new());
    for (query, words) in [
        ("from=curl&to=reviews.bookinfo:80", "<namespace>/<pod"),
        (
            "from=default/nobody&to=reviews.bookinfo:80",
            "no pod and no service account `nobody`",
        ),
        (
            "from=default/curl&to=reviews.bookinfo",
            "<host or address>:<port>",
        ),
        (
            "from=default/curl&to=gone:80",
            "no service is called `gone`",
        ),
        (
            "from=default/curl&to=gone:80&method=G%20T",
            "`G T` is no method",
        ),
        (
            "from=default/curl&to=gone:80&header=nonsense",
            "`nonsense` is no header",
        ),
        ("from=default/curl&to=gone:80&path=x", "`x` is no path"),
    ] {
        let error = ask(&mesh, query).unwrap_err().to_string();
        assert!(error.contains(words), "{query}: {error}");
    }
}
