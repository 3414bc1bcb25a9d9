//! AuthorizationPolicies → layer 4.

use userspace_l7::model::{AuthorizationPolicy, Match, PolicyKey, Scope, StringMatch};

use super::{compile, compiler, pod, pod_yaml};

fn yaml(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn key(namespace: &str) -> PolicyKey {
    PolicyKey {
        namespace: namespace.into(),
        name: "p".into(),
    }
}

/// A policy's rules in one line: rules `|`, clauses `&`, matches `,`.
fn show(policy: &AuthorizationPolicy) -> String {
    let rules = policy.rules.iter().map(|rule| {
        let clauses = rule.clauses.iter().map(|clause| {
            clause
                .matches
                .iter()
                .map(show_match)
                .collect::<Vec<_>>()
                .join(", ")
        });
        let clauses: Vec<_> = clauses.collect();
        if clauses.is_empty() {
            "any".to_owned()
        } else {
            clauses.join(" & ")
        }
    });
    rules.collect::<Vec<_>>().join(" | ")
}

fn plain<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn show_match(one: &Match) -> String {
    let text = |pattern: &StringMatch| match pattern {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => "*".to_owned(),
    };
    let texts = |list: &[StringMatch]| list.iter().map(text).collect::<Vec<_>>();
    let accounts = |list: &[userspace_l7::model::ServiceAccountMatch]| {
        list.iter()
            .map(|one| format!("{}/{}", one.namespace, one.service_account))
            .collect::<Vec<_>>()
    };
    let fields = [
        ("ns", texts(&one.namespaces)),
        ("!ns", texts(&one.not_namespaces)),
        ("id", texts(&one.principals)),
        ("!id", texts(&one.not_principals)),
        ("sa", accounts(&one.service_accounts)),
        ("!sa", accounts(&one.not_service_accounts)),
        ("src", plain(&one.source_ips)),
        ("!src", plain(&one.not_source_ips)),
        ("dst", plain(&one.destination_ips)),
        ("!dst", plain(&one.not_destination_ips)),
        ("port", plain(&one.destination_ports)),
        ("!port", plain(&one.not_destination_ports)),
    ];
    let there = fields.into_iter().filter(|(_, list)| !list.is_empty());
    there
        .map(|(name, list)| format!("{name}={}", list.join("/")))
        .collect::<Vec<_>>()
        .join(" ")
}

#[track_caller]
fn rules(spec: &str, expected: &str) {
    let snapshot = compile(&yaml("a", spec));
    assert_eq!(show(&snapshot.policies[&key("a")]), expected, "{spec}");
}

#[test]
fn fields_of_layer_4_keep_their_meaning() {
    rules("", "");
    rules("rules: [{}]", "any");
    rules(
        "rules: [{from: [{source: {principals: ['td/ns/b/sa/c', '*', 'td/*', '*/sa/c']}}]}]",
        "id=td/ns/b/sa/c/*/td/*/*/sa/c",
    );
    rules(
        "rules: [{from: [{source: {notPrincipals: ['*']}}]}]",
        "!id=*",
    );
    rules(
        "rules: [{from: [{source: {namespaces: [b, 'c*'], notNamespaces: ['*d']}}]}]",
        "ns=b/c* !ns=*d",
    );
    rules(
        "rules: [{from: [{source: {serviceAccounts: [x, b/y], notServiceAccounts: [b/z]}}]}]",
        "sa=a/x/b/y !sa=b/z",
    );
    rules(
        "rules: [{from: [{source: {ipBlocks: [10.1.2.3, 10.9.8.7/16], notIpBlocks: ['2001:db8::/32']}}]}]",
        "src=10.1.2.3/32/10.9.0.0/16 !src=2001:db8::/32",
    );
    rules(
        "rules: [{to: [{operation: {ports: ['80', '81'], notPorts: ['82']}}]}]",
        "port=80/81 !port=82",
    );
    rules(
        "rules: [{from: [{source: {namespaces: [b]}}, {source: {namespaces: [c]}}], to: [{operation: {ports: ['80']}}]}]",
        "ns=b, ns=c & port=80",
    );
    rules(
        "rules: [{when: [{key: source.ip, values: [10.0.0.1]}, {key: destination.port, values: ['80'], notValues: ['81']}]}]",
        "src=10.0.0.1/32 & port=80 !port=81",
    );
    rules(
        "rules: [{when: [{key: source.namespace, values: [b]}]}, {when: [{key: destination.ip, notValues: [10.0.0.1]}]}]",
        "ns=b | !dst=10.0.0.1/32",
    );
    rules(
        "rules: [{when: [{key: source.serviceAccount, values: [b/x]}, {key: source.principal, values: ['*']}]}]",
        "sa=b/x & id=*",
    );
}

#[test]
fn cluster_local_is_the_meshes_own_trust_domain() {
    rules(
        "rules: [{from: [{source: {principals: [cluster.local/ns/b/sa/c, other/ns/b/sa/c, 'cluster.local/*']}}]}]",
        "id=td.example/ns/b/sa/c/other/ns/b/sa/c/td.example/*",
    );
}

#[test]
fn trust_domains_are_principals_of_them() {
    rules(
        "rules: [{from: [{source: {trustDomains: [x, 'y*', cluster.local]}}]}]",
        "id=x/*/y*/td.example/*",
    );
    rules(
        "rules: [{from: [{source: {notTrustDomains: [x]}}]}]",
        "!id=x/*",
    );
    rules(
        "rules: [{from: [{source: {trustDomains: [x], principals: ['*/sa/c']}}, {source: {namespaces: [b]}}]}]",
        "id=*/sa/c & id=x/* | ns=b",
    );
    rules("rules: [{from: [{source: {trustDomains: ['*x']}}]}]", "");
}

const GET: &str = "{operation: {methods: [GET]}}";

#[test]
fn an_allow_rule_with_layer_7_never_matches() {
    rules(&format!("rules: [{{to: [{GET}]}}]"), "");
    rules(
        &format!("rules: [{{to: [{GET}]}}, {{to: [{{operation: {{ports: ['80']}}}}]}}]"),
        "port=80",
    );
    rules(
        "rules: [{from: [{source: {namespaces: [b], requestPrincipals: ['*']}}]}]",
        "",
    );
    rules(
        "rules: [{when: [{key: 'request.headers[x]', values: [y]}]}]",
        "",
    );
}

#[test]
fn a_deny_rule_keeps_what_layer_4_can_judge() {
    let deny =
        |rest: &str, expected: &str| rules(&format!("action: DENY, rules: [{{{rest}}}]"), expected);
    deny(
        "to: [{operation: {ports: ['80'], methods: [GET]}}]",
        "port=80",
    );
    deny(&format!("to: [{GET}]"), "");
    deny("when: [{key: 'request.headers[x]', values: [y]}]", "");
    deny(
        &format!("from: [{{source: {{namespaces: [b]}}}}], to: [{GET}]"),
        "ns=b",
    );
    deny(
        &format!("to: [{GET}, {{operation: {{ports: ['80']}}}}]"),
        "port=80",
    );
    deny(
        "from: [{source: {namespaces: [b]}}], when: [{key: 'request.headers[x]', values: [y]}]",
        "ns=b",
    );
}

#[track_caller]
fn status(spec: &str, expected: (bool, &str, &str)) {
    let compiler = compiler(&yaml("a", spec));
    let found = compiler.policy_statuses().next().unwrap();
    assert_eq!(
        (found.accepted, found.reason),
        (expected.0, expected.1),
        "{spec}"
    );
    assert!(found.message.contains(expected.2), "{}", found.message);
}

#[test]
fn each_policy_says_what_became_of_it() {
    status("", (true, "Accepted", "attached to ztunnel"));
    status(
        &format!("rules: [{{to: [{GET}]}}]"),
        (
            false,
            "UnsupportedValue",
            "(found: methods). In ambient mode you must use a waypoint proxy to enforce HTTP rules. Within an ALLOW policy",
        ),
    );
    status(
        "action: DENY, rules: [{to: [{operation: {ports: ['80'], hosts: [a], paths: [/b]}}]}]",
        (
            false,
            "UnsupportedValue",
            "(found: hosts, paths). In ambient mode you must use a waypoint proxy to enforce HTTP rules. DENY policy with HTTP attributes is enforced without the HTTP rules.",
        ),
    );
    status(
        &format!("action: DENY, rules: [{{to: [{GET}]}}]"),
        (false, "UnsupportedValue", "will have no effect"),
    );
    status(
        "action: AUDIT",
        (false, "UnsupportedValue", "the AUDIT action"),
    );
    status(
        "action: CUSTOM, provider: {name: x}",
        (false, "UnsupportedValue", "the CUSTOM action"),
    );
    status(
        "targetRefs: [{kind: Service, name: s}]",
        (false, "TargetNotFound", "Service a/s was not found"),
    );
    status(
        "targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]",
        (true, "Accepted", "layer 7 enforces it"),
    );
}

#[test]
fn policies_with_targets_and_other_actions_are_none_of_layer_4() {
    for spec in [
        "targetRefs: [{kind: Service, name: s}]",
        "action: AUDIT",
        "action: CUSTOM, provider: {name: x}",
    ] {
        assert!(compile(&yaml("a", spec)).policies.is_empty(), "{spec}");
    }
}

#[test]
fn a_target_that_comes_later_is_found() {
    let mut compiler = compiler(&yaml("a", "targetRefs: [{kind: Service, name: s}]"));
    compiler.apply(super::upserts(
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {}\n",
    ));
    assert!(compiler.policy_statuses().all(|status| status.accepted));
    assert_eq!(compiler.notices().count(), 0);
}

#[test]
fn scope_follows_namespace_and_selector() {
    let selector = "selector: {matchLabels: {app: x}}";
    for (namespace, spec, scope) in [
        ("a", "", Scope::Namespace),
        ("a", "selector: {}", Scope::Namespace),
        ("a", selector, Scope::WorkloadSelector),
        ("istio-system", "", Scope::Global),
        ("istio-system", selector, Scope::WorkloadSelector),
    ] {
        let snapshot = compile(&yaml(namespace, spec));
        assert_eq!(
            snapshot.policies[&key(namespace)].scope,
            scope,
            "{namespace} {spec}"
        );
        assert_eq!(
            snapshot.global_policies.len(),
            usize::from(scope == Scope::Global)
        );
        assert_eq!(
            snapshot.namespace_policies.len(),
            usize::from(scope == Scope::Namespace)
        );
    }
}

#[test]
fn selected_workloads_name_the_policy() {
    let selector = "selector: {matchLabels: {app: x}}";
    let pods = format!(
        "{}{}{}",
        pod_yaml("a/p1", "n1", "10.0.0.1", "app: x", ""),
        pod_yaml("a/p2", "n1", "10.0.0.2", "app: y", ""),
        pod_yaml("b/p3", "n1", "10.0.0.3", "app: x", "")
    );
    let named = |namespace: &str| {
        let snapshot = compile(&format!("{pods}{}", yaml(namespace, selector)));
        ["a/p1", "a/p2", "b/p3"].map(|name| pod(&snapshot, name).authorization_policies.len())
    };
    assert_eq!(named("a"), [1, 0, 0]);
    assert_eq!(
        named("istio-system"),
        [1, 0, 1],
        "the root namespace selects in every one"
    );
}

#[test]
fn dry_run_is_an_annotation() {
    let text = yaml("a", "").replace(
        "namespace: a}",
        "namespace: a, annotations: {istio.io/dry-run: 'true'}}",
    );
    assert!(compile(&text).policies[&key("a")].dry_run);
    assert!(!compile(&yaml("a", "")).policies[&key("a")].dry_run);
}
