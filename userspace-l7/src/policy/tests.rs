//! One row per sentence of Istio's rules for L4 authorization.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Connection, Denial, DryRun, judge};
use crate::model::{
    Action, AuthorizationPolicy, Clause, Health, Locality, Match, MeshSettings, NetworkMode, Peer,
    PolicyKey, Rule, Scope, ServiceAccountMatch, Snapshot, SpiffeId, StringMatch, TrustDomain,
    TunnelProtocol, Workload, WorkloadLabels, WorkloadUid,
};

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn key(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "app".into(),
        name: name.into(),
    }
}

fn rule(one: Match) -> Rule {
    Rule {
        clauses: vec![Clause { matches: vec![one] }],
    }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        key: key(name),
        scope: Scope::Namespace,
        action,
        dry_run: false,
        rules,
    }
}

fn workload() -> Workload {
    Workload {
        uid: WorkloadUid::new("k//Pod/app/server"),
        name: "server".into(),
        namespace: "app".into(),
        service_account: "server".into(),
        trust_domain: TrustDomain::new("td").unwrap(),
        addresses: ["10.0.0.2".parse().unwrap()].into_iter().collect(),
        hostname: "".into(),
        node: "n".into(),
        network: "".into(),
        network_mode: NetworkMode::Standard,
        cluster: "k".into(),
        protocol: TunnelProtocol::Hbone,
        peer: Peer::Culvert,
        canonical_name: "server".into(),
        canonical_revision: "v1".into(),
        workload_name: "server".into(),
        workload_type: "pod".into(),
        locality: Locality::default(),
        health: Health::Healthy,
        capacity: 1,
        services: vec![],
        labels: WorkloadLabels::default(),
        authorization_policies: vec![],
        application_tunnel: None,
        waypoint: None,
    }
}

fn snapshot(policies: &[AuthorizationPolicy]) -> Snapshot {
    let trust_domain = TrustDomain::new("td").unwrap();
    let mut snapshot = Snapshot::empty(MeshSettings {
        trust_domain,
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    let all: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
    let namespace: Vec<_> = all
        .iter()
        .filter(|p| p.scope == Scope::Namespace)
        .cloned()
        .collect();
    snapshot
        .namespace_policies
        .insert("app".into(), namespace.into());
    snapshot.global_policies = all
        .iter()
        .filter(|p| p.scope == Scope::Global)
        .cloned()
        .collect();
    for policy in all {
        snapshot.policies.insert(policy.key.clone(), policy);
    }
    snapshot
}

/// Judges a call from 10.0.0.1 to 10.0.0.2:80.
fn decide(policies: &[AuthorizationPolicy], identity: Option<&str>) -> Result<(), Denial> {
    let id = identity.map(|text| text.parse::<SpiffeId>().unwrap());
    let connection = Connection {
        source: "::ffff:10.0.0.1".parse().unwrap(),
        identity: id.as_ref(),
        waypoint: None,
        through: None,
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    judge(&snapshot(policies), &workload(), &connection)
        .decision
        .map(|_allowed| ())
}

const CLIENT: Option<&str> = Some("spiffe://td/ns/web/sa/client");
const OTHER: Option<&str> = Some("spiffe://td/ns/web2/sa/client");

/// The same match under ALLOW and DENY: both follow from whether it holds.
#[track_caller]
fn check_match(one: &Match, identity: Option<&str>, holds: bool) {
    let allow = decide(
        &[policy("p", Action::Allow, vec![rule(one.clone())])],
        identity,
    );
    assert_eq!(
        allow,
        if holds {
            Ok(())
        } else {
            Err(Denial::NotAllowed)
        },
        "ALLOW {one:?}"
    );
    let deny = decide(
        &[policy("p", Action::Deny, vec![rule(one.clone())])],
        identity,
    );
    assert_eq!(
        deny,
        if holds {
            Err(Denial::Explicit(key("p")))
        } else {
            Ok(())
        },
        "DENY {one:?}"
    );
}

#[test]
fn principals_match_the_verified_identity_only() {
    let of = |pattern| Match {
        principals: vec![pattern],
        ..Match::default()
    };
    check_match(&of(exact("td/ns/web/sa/client")), CLIENT, true);
    check_match(&of(exact("td/ns/web/sa/client")), OTHER, false);
    check_match(&of(exact("td/ns/web/sa/client")), None, false);
    check_match(&of(exact("spiffe://td/ns/web/sa/client")), CLIENT, false);
    check_match(&of(exact("TD/ns/web/sa/client")), CLIENT, false);
    check_match(&of(StringMatch::Prefix("td/ns/web/".into())), CLIENT, true);
    check_match(&of(StringMatch::Prefix("td/ns/web/".into())), OTHER, false);
    check_match(&of(StringMatch::Suffix("/sa/client".into())), OTHER, true);
    check_match(&of(StringMatch::Suffix("/sa/server".into())), OTHER, false);
    check_match(&of(StringMatch::Presence), CLIENT, true);
    check_match(&of(StringMatch::Presence), None, false);
}

#[test]
fn not_principals_hold_for_a_peer_without_identity() {
    let of = |pattern| Match {
        not_principals: vec![pattern],
        ..Match::default()
    };
    check_match(&of(StringMatch::Presence), None, true);
    check_match(&of(StringMatch::Presence), CLIENT, false);
    check_match(&of(exact("td/ns/web/sa/client")), None, true);
    check_match(&of(exact("td/ns/web/sa/client")), CLIENT, false);
    check_match(&of(exact("td/ns/web/sa/client")), OTHER, true);
}

#[test]
fn namespaces_and_service_accounts_come_from_the_identity() {
    let namespaces = Match {
        namespaces: vec![exact("web")],
        ..Match::default()
    };
    check_match(&namespaces, CLIENT, true);
    check_match(&namespaces, OTHER, false);
    check_match(&namespaces, None, false);
    // Istio's waypoint takes a `*` anywhere, and a name that holds one is nobody's: at layer 4 it means the same.
    let inner = |text: &str| Match {
        namespaces: vec![exact(text)],
        ..Match::default()
    };
    check_match(&inner("w*b"), CLIENT, true);
    check_match(&inner("w*x"), CLIENT, false);
    let not_namespaces = Match {
        not_namespaces: vec![exact("web")],
        ..Match::default()
    };
    check_match(&not_namespaces, CLIENT, false);
    check_match(&not_namespaces, None, true);
    let account = ServiceAccountMatch {
        namespace: "web".into(),
        service_account: "client".into(),
    };
    let accounts = Match {
        service_accounts: vec![account.clone()],
        ..Match::default()
    };
    check_match(&accounts, CLIENT, true);
    check_match(
        &accounts,
        Some("spiffe://other-domain/ns/web/sa/client"),
        true,
    );
    check_match(&accounts, OTHER, false);
    let not_accounts = Match {
        not_service_accounts: vec![account],
        ..Match::default()
    };
    check_match(&not_accounts, CLIENT, false);
    check_match(&not_accounts, None, true);
}

#[test]
fn addresses_are_those_of_the_connection() {
    let nets = |text: &str| vec![text.parse().unwrap()];
    let one = Match {
        source_ips: nets("10.0.0.0/24"),
        ..Match::default()
    };
    check_match(&one, None, true);
    let one = Match {
        source_ips: nets("10.0.1.0/24"),
        ..Match::default()
    };
    check_match(&one, None, false);
    let one = Match {
        source_ips: nets("::/0"),
        ..Match::default()
    };
    check_match(&one, None, false);
    let one = Match {
        not_source_ips: nets("10.0.0.1/32"),
        ..Match::default()
    };
    check_match(&one, None, false);
    let one = Match {
        destination_ips: nets("10.0.0.2/32"),
        ..Match::default()
    };
    check_match(&one, None, true);
    let one = Match {
        not_destination_ips: nets("10.0.0.2/32"),
        ..Match::default()
    };
    check_match(&one, None, false);
}

#[test]
fn ports_are_those_of_the_workload() {
    let one = Match {
        destination_ports: vec![80],
        ..Match::default()
    };
    check_match(&one, None, true);
    let one = Match {
        destination_ports: vec![8080],
        ..Match::default()
    };
    check_match(&one, None, false);
    let one = Match {
        not_destination_ports: vec![8080],
        ..Match::default()
    };
    check_match(&one, None, true);
    let one = Match {
        not_destination_ports: vec![80],
        ..Match::default()
    };
    check_match(&one, None, false);
}

#[test]
fn fields_of_a_match_are_anded_and_values_ored() {
    let one = Match {
        principals: vec![exact("x"), exact("td/ns/web/sa/client")],
        destination_ports: vec![80, 81],
        ..Match::default()
    };
    check_match(&one, CLIENT, true);
    check_match(
        &Match {
            destination_ports: vec![81],
            ..one.clone()
        },
        CLIENT,
        false,
    );
    check_match(
        &Match {
            principals: vec![exact("x")],
            ..one
        },
        CLIENT,
        false,
    );
}

#[test]
fn emptiness_means_what_istio_says() {
    let cases: [(Vec<Rule>, bool); 5] = [
        (vec![], false),
        (vec![Rule::default()], true),
        (
            vec![Rule {
                clauses: vec![Clause::default()],
            }],
            true,
        ),
        (vec![rule(Match::default())], false),
        (vec![rule(Match::default()), Rule::default()], true),
    ];
    for (rules, matches) in cases {
        let allow = decide(&[policy("p", Action::Allow, rules.clone())], CLIENT);
        assert_eq!(allow.is_ok(), matches, "ALLOW {rules:?}");
        let deny = decide(&[policy("p", Action::Deny, rules.clone())], CLIENT);
        assert_eq!(deny.is_err(), matches, "DENY {rules:?}");
    }
}

#[test]
fn clauses_of_a_rule_are_anded() {
    // PeerAuthentication STRICT with port 80 PERMISSIVE: no identity AND not port 80.
    let plaintext = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let strict_except = |port| {
        let other = Match {
            not_destination_ports: vec![port],
            ..Match::default()
        };
        let clauses = [plaintext.clone(), other].map(|one| Clause { matches: vec![one] });
        policy(
            "strict",
            Action::Deny,
            vec![Rule {
                clauses: clauses.into(),
            }],
        )
    };
    assert_eq!(decide(&[strict_except(80)], None), Ok(()));
    assert_eq!(
        decide(&[strict_except(81)], None),
        Err(Denial::Explicit(key("strict")))
    );
    assert_eq!(decide(&[strict_except(81)], CLIENT), Ok(()));
}

#[test]
fn without_policies_everything_is_allowed() {
    assert_eq!(decide(&[], None), Ok(()));
}

#[test]
fn a_selector_policy_binds_only_workloads_that_name_it() {
    let mut deny = policy("selected", Action::Deny, vec![Rule::default()]);
    deny.scope = Scope::WorkloadSelector;
    let snapshot = snapshot(&[deny]);
    let connection = Connection {
        source: "10.0.0.1".parse().unwrap(),
        identity: None,
        waypoint: None,
        through: None,
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    assert!(judge(&snapshot, &workload(), &connection).decision.is_ok());
    let mut selected = workload();
    selected.authorization_policies.push(key("selected"));
    assert!(judge(&snapshot, &selected, &connection).decision.is_err());
}

#[test]
fn a_global_policy_binds_every_namespace() {
    let mut deny = policy("mesh", Action::Deny, vec![Rule::default()]);
    deny.scope = Scope::Global;
    assert_eq!(decide(&[deny], CLIENT), Err(Denial::Explicit(key("mesh"))));
}

#[test]
fn dry_run_reports_and_never_decides() {
    let dry = |name, action, rules| AuthorizationPolicy {
        dry_run: true,
        ..policy(name, action, rules)
    };
    let snapshot = snapshot(&[
        dry("d", Action::Deny, vec![Rule::default()]),
        dry("a", Action::Allow, vec![]),
    ]);
    let connection = Connection {
        source: "10.0.0.1".parse().unwrap(),
        identity: None,
        waypoint: None,
        through: None,
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let verdict = judge(&snapshot, &workload(), &connection);
    assert!(verdict.decision.is_ok());
    assert_eq!(
        verdict.dry_run,
        [DryRun::WouldDeny(key("d")), DryRun::WouldNotAllow]
    );
}

fn any_match() -> impl Strategy<Value = Match> {
    let text = prop_oneof![
        Just(StringMatch::Presence),
        Just(exact("td/ns/web/sa/client")),
        Just(StringMatch::Prefix("td/".into())),
        Just(StringMatch::Suffix("client".into())),
    ];
    let texts = || prop::collection::vec(text.clone(), 0..2);
    let ports = || prop::collection::vec(79_u16..82, 0..2);
    (texts(), texts(), ports(), ports()).prop_map(
        |(principals, not_principals, ports, not_ports)| Match {
            principals,
            not_principals,
            destination_ports: ports,
            not_destination_ports: not_ports,
            ..Match::default()
        },
    )
}

fn any_policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let one =
        (prop::bool::ANY, prop::collection::vec(any_match(), 0..3)).prop_map(|(deny, matches)| {
            let action = if deny { Action::Deny } else { Action::Allow };
            policy("p", action, matches.into_iter().map(rule).collect())
        });
    prop::collection::vec(one, 0..4)
}

proptest! {
    #[test]
    fn a_deny_that_matches_beats_every_allow(policies in any_policies(), known in prop::bool::ANY) {
        let identity = if known { CLIENT } else { None };
        let denies: Vec<_> = policies.iter().filter(|p| p.action == Action::Deny).cloned().collect();
        if decide(&denies, identity).is_err() {
            prop_assert!(decide(&policies, identity).is_err());
        }
    }

    #[test]
    fn the_order_of_policies_never_matters(policies in any_policies(), known in prop::bool::ANY) {
        let identity = if known { CLIENT } else { None };
        let mut reversed = policies.clone();
        reversed.reverse();
        prop_assert_eq!(decide(&policies, identity).is_ok(), decide(&reversed, identity).is_ok());
    }

    #[test]
    fn one_more_deny_never_opens_a_door(policies in any_policies(), extra in any_match()) {
        let mut more = policies.clone();
        more.push(policy("extra", Action::Deny, vec![rule(extra)]));
        if decide(&policies, CLIENT).is_err() {
            prop_assert!(decide(&more, CLIENT).is_err());
        }
    }
}
