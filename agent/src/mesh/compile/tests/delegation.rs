//! VirtualServices that delegate, and their delegates.

use userspace_l7::model::{BackendTarget, HttpAction, NamespacedHostname, PortRoutes, Snapshot};

use super::statuses::said;
use super::{compile, compiler, upserts};

const MESH: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: a}
spec: {gatewayClassName: istio-waypoint}
---
apiVersion: v1
kind: Namespace
metadata: {name: a, labels: {istio.io/use-waypoint: w}}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: a}
spec: {clusterIP: 10.9.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: t, namespace: b}
spec: {clusterIP: 10.9.0.2, ports: [{name: http, port: 80}]}
";

const ROOT: &str = "hosts: [s], http: [{name: team, match: [{uri: {prefix: /t}}], delegate: {name: d, namespace: b}}, \
    {name: rest, route: [{destination: {host: s}}]}]";

const DELEGATE: &str = "http: [{match: [{uri: {prefix: /t/x}}], route: [{destination: {host: t}}]}, {name: own, route: \
    [{destination: {host: t}}]}]";

fn virtual_service(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// The service's rules by their names, each with the host that it forwards to.
fn rules(snapshot: &Snapshot) -> Vec<(String, String)> {
    let key = NamespacedHostname {
        namespace: "a".into(),
        hostname: "s.a.svc.cluster.local".into(),
    };
    let PortRoutes::Http(table) = &snapshot.services_layer7[&key].ports[&80].routes else {
        return Vec::new();
    };
    let rules = table.entries().iter().map(|entry| {
        let HttpAction::Forward(backends) = &entry.rule.action else {
            panic!("{:?}", entry.rule)
        };
        let host = match &backends[0].target {
            BackendTarget::Service { service, .. } => service.hostname.to_string(),
            other @ BackendTarget::Invalid { .. } => panic!("{other:?}"),
        };
        (entry.rule.name.to_string(), host)
    });
    rules.collect()
}

fn named(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, host): &(&str, &str)| ((*name).to_owned(), (*host).to_owned());
    expected.iter().map(owned).collect()
}

const S: &str = "s.a.svc.cluster.local";
const T: &str = "t.b.svc.cluster.local";

#[test]
fn a_delegates_rules_stand_in_the_place_of_the_rule_that_delegates() {
    let (root, delegate) = (
        virtual_service("a/v", ROOT),
        virtual_service("b/d", DELEGATE),
    );
    let found = rules(&compile(&format!("{MESH}{root}{delegate}")));
    let expected = [("team", T), ("team-own", T), ("rest", S)];
    assert_eq!(
        found,
        named(&expected),
        "short names are of the delegate's namespace"
    );
}

#[test]
fn a_delegate_may_come_later_change_and_go() {
    let (root, delegate) = (
        virtual_service("a/v", ROOT),
        virtual_service("b/d", DELEGATE),
    );
    let mut compiler = compiler(&format!("{MESH}{root}"));
    let without = named(&[("rest", S)]);
    assert_eq!(rules(&compiler.snapshot()), without);
    compiler.apply(upserts(&delegate));
    assert_eq!(rules(&compiler.snapshot()).len(), 3);
    let shorter = virtual_service(
        "b/d",
        "http: [{name: only, route: [{destination: {host: t}}]}]",
    );
    compiler.apply(upserts(&shorter));
    let expected = named(&[("team-only", T), ("rest", S)]);
    assert_eq!(rules(&compiler.snapshot()), expected);
    // With hosts it is no delegate any more.
    let with_hosts = shorter.replace("spec: {", "spec: {hosts: [t], ");
    compiler.apply(upserts(&with_hosts));
    assert_eq!(rules(&compiler.snapshot()), without);
}

#[test]
fn what_cannot_be_delegated_is_told() {
    let root = virtual_service("a/v", ROOT);
    let narrower = virtual_service(
        "b/d",
        "http: [{match: [{uri: {prefix: /}}], route: [{destination: {host: t}}]}]",
    );
    for (delegate, expected) in [
        (
            "",
            "ResolvedRefs False DelegateNotFound: there is no VirtualService b/d without hosts to delegate to",
        ),
        (
            &narrower,
            "Accepted False UnsupportedValue: a match of b/d lies within none of those that delegate to it: its rule is left out",
        ),
    ] {
        let compiled = compiler(&format!("{MESH}{root}{delegate}"));
        let told = said(&compiled.object_statuses(), "VirtualService a/v");
        assert!(told.iter().any(|one| one == expected), "{told:?}");
    }
}
