//! PeerAuthentications → DENY policies, by precedence.

use userspace_l7::model::{Action, PolicyKey, Scope};

use super::{compile, compiler, pod, pod_yaml};

fn peer(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

const STRICT: &str = "mtls: {mode: STRICT}";
const PERMISSIVE: &str = "mtls: {mode: PERMISSIVE}";
const DISABLE: &str = "mtls: {mode: DISABLE}";
const X: &str = "selector: {matchLabels: {app: x}}";

/// Names of the policies of pod a/p, which is labelled app: x.
#[track_caller]
fn names(peers: &[(&str, &str)], expected: &[&str]) {
    let peers: Vec<_> = peers.iter().map(|(name, spec)| peer(name, spec)).collect();
    let snapshot = compile(&format!(
        "{}{}",
        pod_yaml("a/p", "n1", "10.0.0.1", "app: x", ""),
        peers.concat()
    ));
    let found = pod(&snapshot, "a/p");
    let found: Vec<_> = found
        .authorization_policies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(found, expected, "{peers:?}");
    for key in &pod(&snapshot, "a/p").authorization_policies {
        let policy = &snapshot.policies[key];
        assert_eq!(
            (policy.action, policy.scope),
            (Action::Deny, Scope::WorkloadSelector)
        );
    }
}

const STATIC: &[&str] = &["istio-system/istio_converted_static_strict"];

#[test]
fn the_narrower_level_wins() {
    names(&[], &[]);
    names(&[("istio-system/m", STRICT)], STATIC);
    names(&[("istio-system/m", PERMISSIVE)], &[]);
    names(&[("istio-system/m", STRICT), ("a/n", PERMISSIVE)], &[]);
    names(&[("istio-system/m", STRICT), ("a/n", DISABLE)], &[]);
    names(&[("istio-system/m", STRICT), ("a/n", "")], STATIC);
    names(&[("istio-system/m", PERMISSIVE), ("a/n", STRICT)], STATIC);
    names(&[("b/n", STRICT)], &[]);
    names(
        &[("a/n", STRICT), ("a/w", &format!("{X}, {PERMISSIVE}"))],
        &[],
    );
    names(
        &[("a/n", PERMISSIVE), ("a/w", &format!("{X}, {STRICT}"))],
        STATIC,
    );
    names(
        &[(
            "a/w",
            &format!("selector: {{matchLabels: {{app: y}}}}, {STRICT}"),
        )],
        &[],
    );
    names(&[("istio-system/w", &format!("{X}, {STRICT}"))], &[]);
}

#[test]
fn ports_make_exceptions() {
    let converted = &["a/converted_peer_authentication_w"][..];
    let ports = |mode: &str| format!("portLevelMtls: {{8080: {{mode: {mode}}}}}");
    let w = |mtls: &str, mode: &str| format!("{X}, {mtls}, {}", ports(mode));
    names(&[("a/w", &w(STRICT, "PERMISSIVE"))], converted);
    names(&[("a/w", &w(STRICT, "DISABLE"))], converted);
    names(&[("a/w", &w(PERMISSIVE, "STRICT"))], converted);
    names(&[("a/w", &w(STRICT, "STRICT"))], STATIC);
    names(&[("a/w", &w(PERMISSIVE, "PERMISSIVE"))], &[]);
    names(
        &[
            ("a/n", STRICT),
            ("a/w", &format!("{X}, {}", ports("PERMISSIVE"))),
        ],
        converted,
    );
    names(
        &[
            ("istio-system/m", STRICT),
            ("a/w", &format!("{X}, {}", ports("UNSET"))),
        ],
        STATIC,
    );
}

#[test]
fn converted_policies_refuse_peers_without_identity() {
    let converted = |spec: &str| {
        let snapshot = compile(&peer("a/w", &format!("{X}, {spec}")));
        let key = PolicyKey {
            namespace: "a".into(),
            name: "converted_peer_authentication_w".into(),
        };
        let matches = snapshot.policies[&key].rules[0]
            .clauses
            .iter()
            .map(|clause| {
                let one = &clause.matches[0];
                (
                    one.not_principals.len(),
                    one.destination_ports.clone(),
                    one.not_destination_ports.clone(),
                )
            });
        matches.collect::<Vec<_>>()
    };
    let strict = converted(
        "mtls: {mode: STRICT}, portLevelMtls: {81: {mode: PERMISSIVE}, 80: {mode: DISABLE}}",
    );
    assert_eq!(strict, [(1, vec![], vec![]), (0, vec![], vec![80, 81])]);
    let permissive = converted("mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: STRICT}}");
    assert_eq!(permissive, [(1, vec![80], vec![])]);
}

#[test]
fn of_several_on_one_level_the_oldest_counts() {
    let aged = |name: &str, year: &str, spec: &str| {
        let created = format!("namespace: a, creationTimestamp: '{year}-01-01T00:00:00Z'}}");
        peer(&format!("a/{name}"), spec).replace("namespace: a}", &created)
    };
    let strict = |yaml: String| {
        let yaml = format!("{}{yaml}", pod_yaml("a/p", "n1", "10.0.0.1", "app: x", ""));
        !pod(&compile(&yaml), "a/p")
            .authorization_policies
            .is_empty()
    };
    assert!(strict(format!(
        "{}{}",
        aged("z", "2020", STRICT),
        aged("b", "2021", PERMISSIVE)
    )));
    assert!(!strict(format!(
        "{}{}",
        aged("z", "2021", STRICT),
        aged("b", "2020", PERMISSIVE)
    )));
    // Where nobody knows their age, the first name.
    assert!(strict(format!(
        "{}{}",
        peer("a/b", STRICT),
        peer("a/c", PERMISSIVE)
    )));
    let (one, other) = (format!("{X}, {STRICT}"), format!("{X}, {PERMISSIVE}"));
    assert!(!strict(format!(
        "{}{}",
        aged("z", "2021", &one),
        aged("b", "2020", &other)
    )));
}

#[test]
fn a_selector_in_the_root_namespace_says_that_it_has_no_effect() {
    let compiler = compiler(&peer("istio-system/w", &format!("{X}, {STRICT}")));
    let status = compiler.policy_statuses().next().unwrap();
    assert_eq!(
        (status.accepted, status.reason),
        (false, "UnsupportedValue")
    );
}
