//! GRPCRoute, TCPRoute and TLSRoute; RequestAuthentication; the mesh's configuration.

use userspace_l7::model::{
    BackendTarget, ExternalAuthorizerProtocol, HttpPolicyAction, JwksSource, JwtKeys, JwtLocation,
    NamespacedHostname, PathMatch, PathNormalization, PortRoutes, ServiceLayer7, StringMatch,
};

use super::{compile, compiler, upserts};

const MESH: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a}\nspec: {gatewayClassName: culvert-waypoint}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: w}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.9.0.1, ports: [{name: grpc, port: 80}]}\n";

fn route(kind: &str, name: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{rules}]}}\n"
    )
}

#[track_caller]
fn layer7(yaml: &str) -> ServiceLayer7 {
    let key = NamespacedHostname {
        namespace: "a".into(),
        hostname: "s.a.svc.cluster.local".into(),
    };
    ServiceLayer7::clone(&compile(&format!("{MESH}{yaml}")).services_layer7[&key])
}

#[test]
fn grpc_methods_are_paths_in_the_order_of_their_lengths() {
    let yaml = route(
        "GRPCRoute",
        "r",
        "{}, {matches: [{method: {method: Get}}, {method: {service: x.Y}}, {method: {service: x.Y, method: Get}}, {method: {type: RegularExpression, service: 'x[.].*'}}]}",
    );
    let PortRoutes::Http(table) = &layer7(&yaml).ports[&80].routes else {
        panic!("no table")
    };
    assert!(table.is_grpc);
    let paths: Vec<_> = table
        .entries()
        .iter()
        .map(|entry| match &entry.matches.path {
            PathMatch::Exact(path) => format!("={path}"),
            PathMatch::Prefix(path) => format!("{path}/"),
            PathMatch::Regex(regex) => regex.pattern().to_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        paths,
        [
            "/(?:x[.].*)/(?:[^/]+)",
            "=/x.Y/Get",
            "/x.Y/",
            "/(?:[^/]+)/(?:Get)",
            "Any"
        ]
    );
}

#[test]
fn of_several_kinds_only_the_first_applies() {
    let backends = "{backendRefs: [{name: s, port: 80, weight: 3}, {name: gone, port: 80}]}";
    let tcp = route("TCPRoute", "t", backends);
    let tls = route("TLSRoute", "t", backends);
    let http = route("HTTPRoute", "t", "{}");
    let grpc = route("GRPCRoute", "t", "{}");
    let routes = |yaml: &str| layer7(yaml).ports[&80].routes.clone();
    let PortRoutes::Tcp(found) = routes(&tcp) else {
        panic!("no connections")
    };
    assert_eq!((found[0].weight, found[1].weight), (3, 1));
    assert!(matches!(found[1].target, BackendTarget::Invalid { .. }));
    let origin = |yaml: &str| match routes(yaml) {
        PortRoutes::Http(table) => table
            .entries()
            .first()
            .map(|one| one.rule.origin.to_string()),
        _ => None,
    };
    let all = [&*tcp, &*tls, &*http, &*grpc].concat();
    assert_eq!(origin(&all).as_deref(), Some("GRPCRoute a/t"));
    let without = [&*tcp, &*tls, &*http].concat();
    assert_eq!(origin(&without).as_deref(), Some("HTTPRoute a/t"));
}

#[test]
fn tokens_are_looked_for_in_the_usual_places_or_in_the_named_ones() {
    let policy = |rules: &str| {
        let yaml = format!(
            "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: j, namespace: a}}\nspec: {{targetRefs: [{{kind: Service, name: s}}], jwtRules: [{rules}]}}\n"
        );
        layer7(&yaml).demands.authentication.clone()
    };
    let usual = policy("{issuer: me}");
    assert_eq!(usual[0].locations.len(), 2);
    assert!(matches!(
        &usual[0].keys,
        JwtKeys::Remote { source: JwksSource::Discovery(issuer), .. } if &**issuer == "me"
    ));
    let named = policy(
        "{issuer: me, jwksUri: 'http://keys.a/x', fromHeaders: [{name: x-jwt, prefix: 'T '}], fromCookies: [c], outputClaimToHeaders: [{header: x-sub, claim: a.b}]}",
    );
    assert_eq!(
        named[0].locations,
        [
            JwtLocation::Header {
                name: http::HeaderName::from_static("x-jwt"),
                prefix: "T ".into()
            },
            JwtLocation::Cookie("c".into())
        ]
    );
    assert_eq!(named[0].claim_headers[0].1.len(), 2);
}

#[test]
fn the_meshs_configuration_gives_authorizers_and_defaults() {
    let config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: {trustDomainAliases: [old.example], pathNormalization: {normalization: MERGE_SLASHES}, defaultHttpRetryPolicy: {attempts: 7}, unknown: 1, extensionProviders: [{name: ask, envoyExtAuthzHttp: {service: auth.b.svc.cluster.local, port: 8000, timeout: 1s, headersToUpstreamOnAllow: [X-*]}}]}}\n";
    let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{kind: Service, name: s}], action: CUSTOM, provider: {name: ask}, rules: [{from: [{source: {principals: [old.example/ns/b/sa/c]}}]}]}\n";
    let found = layer7(&format!(
        "{policy}{config}{}",
        route("HTTPRoute", "r", "{}")
    ));
    let HttpPolicyAction::Custom(Some(asked)) = &found.demands.authorization[0].action else {
        panic!("{found:?}")
    };
    assert_eq!(asked.service.to_string(), "b/auth.b.svc.cluster.local");
    assert_eq!((asked.port, asked.status_on_error.as_u16()), (8000, 403));
    let ExternalAuthorizerProtocol::Http(settings) = &asked.protocol else {
        panic!("{asked:?}")
    };
    // Header names have no case.
    let names = [StringMatch::Prefix("x-".into())];
    assert_eq!(settings.upstream_headers, names);
    assert_eq!(asked.body, None);
    assert_eq!(
        found.demands.authorization[0].rules[0].from[0].principals,
        ["td.example", "old.example"]
            .map(|domain| StringMatch::Exact(format!("{domain}/ns/b/sa/c").into()))
    );
    let PortRoutes::Http(table) = &found.ports[&80].routes else {
        panic!("no table")
    };
    assert_eq!(table.entries()[0].rule.retry.attempts, 7);
    let mut compiler = compiler(&format!("{MESH}{policy}"));
    let normalization = |compiler: &super::Compiler| compiler.snapshot().path_normalization;
    assert_eq!(normalization(&compiler), PathNormalization::Base);
    compiler.apply(upserts(config));
    assert_eq!(normalization(&compiler), PathNormalization::MergeSlashes);
}
