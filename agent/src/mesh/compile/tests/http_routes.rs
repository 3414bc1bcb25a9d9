//! HTTPRoutes → tables of matches.

use std::fmt::Write as _;
use std::time::Duration;

use userspace_l7::model::{
    BackendTarget, HttpAction, HttpRouteTable, HttpRule, PathMatch, PortRoutes, Snapshot, TextMatch,
};

use super::{Compiler, compile, objects, options, upserts};
use crate::mesh::{Change, Interner, decode};
use crate::sources::for_test::documents;

const MESH: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: w}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.9.0.1, ports: [{name: http, port: 80}, {name: http-b, port: 81}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: b}\nspec: {clusterIP: 10.9.0.2, ports: [{port: 80}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: c}\nspec: {hosts: [api.x], ports: [{number: 443, name: http, protocol: HTTP}], resolution: DNS}\n";
const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: s, namespace: a}]";

fn route(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn routes_of(snapshot: &Snapshot, port: u16, client: &str) -> PortRoutes {
    let mut found = snapshot.services_layer7.iter();
    let (_, layer7) = found
        .find(|(key, _)| &*key.hostname == "s.a.svc.cluster.local")
        .unwrap();
    layer7.ports[&port].routes_for(client).clone()
}

#[track_caller]
fn table(snapshot: &Snapshot, port: u16, client: &str) -> HttpRouteTable {
    match routes_of(snapshot, port, client) {
        PortRoutes::Http(table) => HttpRouteTable::clone(&table),
        other => panic!("{other:?}"),
    }
}

/// The rule of a single route with one rule.
#[track_caller]
fn rule(text: &str) -> HttpRule {
    let snapshot = compile(&format!(
        "{MESH}{}",
        route("a/r", &format!("{PARENT}, rules: [{{{text}}}]"))
    ));
    HttpRule::clone(&table(&snapshot, 80, "x").entries()[0].rule)
}

/// `path method headers query → route name`, line by line.
fn lines(table: &HttpRouteTable) -> String {
    let mut text = String::new();
    for entry in table.entries() {
        let one = &entry.matches;
        let path = match &one.path {
            PathMatch::Any => "any".to_owned(),
            PathMatch::Exact(path) => format!("={path}"),
            PathMatch::Prefix(path) => format!("{path}/"),
            PathMatch::TextPrefix(path) => format!("{path}*"),
            PathMatch::Regex(regex) => format!("~{}", regex.pattern()),
        };
        let method = match &one.method {
            Some(TextMatch::Exact(method)) => format!(" {method}"),
            _ => String::new(),
        };
        let counts = format!("{}h{}q", one.headers.len(), one.query.len());
        let _infallible = writeln!(text, "{path}{method} {counts} {}", entry.rule.name);
    }
    text
}

fn targets(rule: &HttpRule) -> Vec<String> {
    let HttpAction::Forward(backends) = &rule.action else {
        return Vec::new();
    };
    let describe = |target: &BackendTarget| match target {
        BackendTarget::Service { service, port, .. } => format!("{service}:{port}"),
        BackendTarget::Invalid { why } => why.to_string(),
    };
    backends
        .iter()
        .map(|one| format!("{} {}", one.weight, describe(&one.target)))
        .collect()
}

#[test]
fn matches_are_tried_in_the_order_of_gateway_api() {
    let rules = "rules: [{matches: [{path: {value: /}}]}, {matches: [{path: {value: /a}, method: GET}, {path: {value: /a}}]}, {matches: [{path: {type: RegularExpression, value: '/a.*'}}]}, {matches: [{path: {value: /a}, headers: [{name: x, value: y}]}]}, {matches: [{path: {value: /a}, queryParams: [{name: x, value: y}]}]}, {name: exact, matches: [{path: {type: Exact, value: /a}}]}, {matches: [{path: {value: /a/long/}}]}]";
    let snapshot = compile(&format!(
        "{MESH}{}",
        route("a/r", &format!("{PARENT}, {rules}"))
    ));
    let expected = "\
=/a 0h0q exact
/a/long/ 0h0q a.r.6
/a/ GET 0h0q a.r.1
/a/ 1h0q a.r.3
/a/ 0h1q a.r.4
/a/ 0h0q a.r.1
/ 0h0q a.r.0
~/a.* 0h0q a.r.2
";
    assert_eq!(lines(&table(&snapshot, 80, "x")), expected);
}

#[test]
fn between_equals_the_oldest_route_is_first_then_its_name() {
    let aged = |name: &str, created: &str| {
        route(name, PARENT).replacen(
            "namespace: a}",
            &format!("namespace: a, creationTimestamp: '{created}'}}"),
            1,
        )
    };
    let yaml = [
        MESH,
        &aged("a/b", "2026-01-02T00:00:00Z"),
        &aged("a/a", "2026-01-02T00:00:00Z"),
        &aged("a/c", "2026-01-01T00:00:00Z"),
    ]
    .concat();
    assert_eq!(
        lines(&table(&compile(&yaml), 80, "x")),
        "/ 0h0q a.c.0\n/ 0h0q a.a.0\n/ 0h0q a.b.0\n"
    );
}

#[test]
fn a_route_is_attached_to_its_port_or_to_all() {
    let only = PARENT.replace("namespace: a", "namespace: a, port: 81");
    let snapshot = compile(&format!("{MESH}{}", route("a/r", &only)));
    assert_eq!(routes_of(&snapshot, 80, "x"), PortRoutes::None);
    assert_eq!(lines(&table(&snapshot, 81, "x")), "/ 0h0q a.r.0\n");
    let snapshot = compile(&format!("{MESH}{}", route("a/r", PARENT)));
    let (PortRoutes::Http(one), PortRoutes::Http(other)) =
        (routes_of(&snapshot, 80, "x"), routes_of(&snapshot, 81, "x"))
    else {
        panic!("no tables")
    };
    assert!(std::sync::Arc::ptr_eq(&one, &other), "shared between ports");
}

#[test]
fn a_route_of_another_namespace_holds_for_its_own_clients() {
    let snapshot = compile(&format!(
        "{MESH}{}{}",
        route("a/r", PARENT),
        route("b/r", PARENT)
    ));
    assert_eq!(lines(&table(&snapshot, 80, "a")), "/ 0h0q a.r.0\n");
    assert_eq!(lines(&table(&snapshot, 80, "b")), "/ 0h0q b.r.0\n");
}

#[test]
fn a_route_of_the_waypoints_namespace_holds_for_all_clients() {
    let lent = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: lender}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: lender}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.9.0.1, ports: [{name: http, port: 80}]}\n";
    let snapshot = compile(&format!(
        "{lent}{}{}",
        route("lender/r", PARENT),
        route("b/r", PARENT)
    ));
    for client in ["a", "c", "lender"] {
        assert_eq!(lines(&table(&snapshot, 80, client)), "/ 0h0q lender.r.0\n");
    }
    assert_eq!(lines(&table(&snapshot, 80, "b")), "/ 0h0q b.r.0\n");
}

#[test]
fn backends_keep_their_weights_and_invalid_ones_say_why() {
    let rule = rule(
        "backendRefs: [{name: s, port: 80, weight: 90}, {name: t, namespace: b, port: 80, weight: 0}, {group: networking.istio.io, kind: Hostname, name: API.x, port: 443}, {name: gone, port: 80}, {name: s, port: 1}, {name: s}, {name: s.a, port: 80}, {group: x.y, kind: Z, name: z}]",
    );
    assert_eq!(
        targets(&rule),
        [
            "90 a/s.a.svc.cluster.local:80",
            "0 b/t.b.svc.cluster.local:80",
            "1 c/api.x:443",
            "1 backend(gone.a.svc.cluster.local) not found",
            "1 backend s.a.svc.cluster.local has no port 1",
            "1 backend s needs a port",
            "1 backend name s.a is a hostname: write the Service's name",
            "1 backend kind Z of group x.y is not supported",
        ]
    );
    assert!(rule.is_usable);
}

#[test]
fn a_backend_that_comes_later_is_found() {
    let mut compiler = Compiler::new(options());
    let text = format!("{PARENT}, rules: [{{backendRefs: [{{name: late, port: 80}}]}}]");
    compiler.apply(upserts(&format!("{MESH}{}", route("a/r", &text))));
    let rule = |snapshot: &Snapshot| targets(&table(snapshot, 80, "x").entries()[0].rule);
    assert_eq!(
        rule(&compiler.snapshot()),
        ["1 backend(late.a.svc.cluster.local) not found"]
    );
    let late = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: a}\nspec: {ports: [{port: 80}]}\n";
    let there = compiler.apply(upserts(late));
    assert_eq!(rule(&there), ["1 a/late.a.svc.cluster.local:80"]);
    let gone = compiler.apply(objects(late).iter().map(|one| Change::Remove(one.key())));
    assert_eq!(
        rule(&gone),
        ["1 backend(late.a.svc.cluster.local) not found"]
    );
}

#[test]
fn timeouts_follow_istios_mapping() {
    let seconds = |one: Option<Duration>| one.map(|one| one.as_secs());
    for (text, timeout, per_try) in [
        ("timeouts: {request: 10s}", Some(10), None),
        ("timeouts: {request: 0s}", None, None),
        (
            "timeouts: {request: 10s, backendRequest: 2s}",
            Some(2),
            None,
        ),
        (
            "timeouts: {request: 10s, backendRequest: 2s}, retry: {attempts: 3}",
            Some(10),
            Some(2),
        ),
        ("retry: {}", None, None),
    ] {
        let rule = rule(text);
        let found = (seconds(rule.timeout), seconds(rule.retry.per_try_timeout));
        assert_eq!(found, (timeout, per_try), "{text}");
    }
    assert_eq!(rule("").retry.attempts, 2, "the mesh's own default");
    let own = rule("retry: {attempts: 0, codes: [503], backoff: 100ms}").retry;
    assert_eq!((own.attempts, own.statuses.len()), (0, 1));
    assert_eq!(own.backoff, Duration::from_millis(100));
}

#[test]
fn a_filter_that_is_not_supported_makes_its_rule_unusable() {
    for text in [
        "filters: [{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}]",
        "filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP}}]",
        "backendRefs: [{name: s, port: 80, filters: [{type: CORS, cors: {}}]}]",
    ] {
        assert!(!rule(text).is_usable, "{text}");
    }
    let headers =
        "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: x.y}]}}";
    let rule = rule(&format!("filters: [{headers}]"));
    assert_eq!(rule.request_headers.authority.unwrap(), "x.y");
    assert!(rule.is_usable && rule.request_headers.set.is_empty());
}

/// What decoding a route with one such rule complains of.
#[track_caller]
fn refuses(rule: &str, expected: &str) {
    let yaml = route("a/r", &format!("{PARENT}, rules: [{{{rule}}}]"));
    let value = documents(&yaml).into_iter().next().unwrap();
    let errors = decode(value, &mut Interner::default()).unwrap_err();
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, [expected], "{rule}");
}

#[test]
fn invalid_routes_are_refused_field_by_field() {
    let at = "spec.rules[0]";
    refuses(
        "matches: [{path: {type: RegularExpression, value: '/('}}]",
        &format!(
            "{at}.matches[0].path.value: `/(` is not a regular expression in RE2's syntax (unclosed group): correct it"
        ),
    );
    refuses(
        "matches: [{path: {value: a}}]",
        &format!("{at}.matches[0].path.value: is not a path: begin it with /"),
    );
    refuses(
        "matches: [{method: get}]",
        &format!(
            "{at}.matches[0].method: `get` is not a method: use GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH"
        ),
    );
    refuses(
        "backendRefs: [{name: s, port: 80, weight: -1}]",
        &format!("{at}.backendRefs[0].weight: -1 is not a weight: use 0 to 1000000"),
    );
    refuses(
        "backendRefs: [{name: s, prot: 80}]",
        &format!(
            "{at}.backendRefs[0].prot: is not a field of this kind: correct its name or remove it"
        ),
    );
    refuses(
        "timeouts: {request: 1s, backendRequest: 2s}",
        &format!(
            "{at}.timeouts.backendRequest: is longer than timeouts.request: one attempt cannot take longer than all"
        ),
    );
    refuses(
        "timeouts: {request: 1.5s}",
        &format!(
            "{at}.timeouts.request: `1.5s` is not a duration: write up to four whole numbers with h, m, s or ms, such as 10s or 1m500ms"
        ),
    );
    refuses(
        "filters: [{type: URLRewrite}]",
        &format!("{at}.filters[0].urlRewrite: is missing: type URLRewrite needs it"),
    );
    refuses(
        "filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: s, port: 80}]",
        &format!(
            "{at}.backendRefs: a rule that redirects has no backends: remove them or the redirect"
        ),
    );
    refuses(
        "filters: [{type: Magic}]",
        &format!(
            "{at}.filters[0].type: `Magic` is not a filter: use RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, RequestRedirect, URLRewrite, CORS, ExternalAuth, ExtensionRef"
        ),
    );
}
