//! A cluster's state from what is heard of it, and what is said about it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::api::{Cause, Trouble};
use super::cluster::Cluster;
use super::collection::{Collection, Topic, all, idle};
use super::condition::Phase;
use super::follow::News;
use crate::mesh::{Change, Kind, Object, ObjectKey, PolicyAction};
use crate::sources::{Input as _, Severity, Update, for_test};

/// A cluster of which every kind has been listed, and found empty.
fn listed() -> Cluster {
    let mut cluster = Cluster::new("https://api".into(), &all("istio"));
    for collection in all("istio") {
        if let Topic::Kind(kind) = collection.topic {
            hear(
                &mut cluster,
                &kind,
                [News::Following, News::Listing, News::ListEnd],
            );
        }
    }
    assert!(
        cluster
            .update()
            .is_some_and(|update| update.changes.is_empty())
    );
    cluster
}

fn hear(cluster: &mut Cluster, kind: &Kind, news: impl IntoIterator<Item = News>) {
    for one in news {
        cluster.take(kind, one, Timestamp::UNIX_EPOCH);
    }
}

fn pod(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "app" },
        "spec": spec,
    })
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "app" },
        "spec": spec,
    })
}

fn failing(cause: Cause, message: &str) -> News {
    News::Failing(Trouble {
        cause,
        message: message.to_owned(),
    })
}

/// `+ Pod app/x`, `- Pod app/y`.
fn shown(update: &Update) -> Vec<String> {
    let shown = update.changes.iter().map(|change| match change {
        Change::Upsert(object) => format!("+ {}", object.key()),
        Change::Remove(key) => format!("- {key}"),
    });
    shown.collect()
}

#[test]
fn nothing_is_handed_on_before_every_kind_is_listed() {
    let mut cluster = Cluster::new("https://api".into(), &all("istio"));
    let kinds = all("istio")
        .into_iter()
        .filter_map(|collection| match collection.topic {
            Topic::Kind(kind) => Some(kind),
            Topic::Definitions | Topic::Named(_) => None,
        });
    let (last, rest) = (
        Kind::AuthorizationPolicy,
        kinds.filter(|kind| *kind != Kind::AuthorizationPolicy),
    );
    for kind in rest {
        hear(&mut cluster, &kind, [News::Listing, News::ListEnd]);
    }
    let objects = [
        News::Listing,
        News::Listed(pod("x", &json!({ "containers": [] }))),
    ];
    hear(&mut cluster, &Kind::Pod, objects);
    assert!(cluster.update().is_none(), "policies are not known yet");
    let waiting: Vec<String> = cluster
        .condition()
        .waiting()
        .map(|kind| kind.resource.to_string())
        .filter(|resource| !resource.starts_with("customresource"))
        .collect();
    assert_eq!(waiting, ["authorizationpolicies.security.istio.io"]);

    hear(&mut cluster, &last, [News::NotInstalled]);
    let update = cluster.update().unwrap();
    assert_eq!(shown(&update), ["+ Pod app/x"]);
    assert!(cluster.update().is_none(), "nothing is new");
}

#[test]
fn a_new_list_takes_away_what_is_not_in_it_and_a_broken_one_nothing() {
    let mut cluster = listed();
    let spec = || json!({ "containers": [] });
    let both = [
        News::Changed(pod("x", &spec())),
        News::Changed(pod("y", &spec())),
    ];
    hear(&mut cluster, &Kind::Pod, both);
    assert_eq!(
        shown(&cluster.update().unwrap()),
        ["+ Pod app/x", "+ Pod app/y"]
    );

    let broken = [
        News::Listing,
        News::Listed(pod("y", &spec())),
        failing(Cause::Unreachable, "away"),
    ];
    hear(&mut cluster, &Kind::Pod, broken);
    assert!(cluster.update().is_none(), "the list has not ended");

    let again = [
        News::Listing,
        News::Listed(pod("x", &spec())),
        News::Listed(pod("z", &spec())),
        News::ListEnd,
    ];
    hear(&mut cluster, &Kind::Pod, again);
    assert_eq!(
        shown(&cluster.update().unwrap()),
        ["- Pod app/y", "+ Pod app/z"]
    );

    hear(&mut cluster, &Kind::Pod, [News::Deleted(pod("x", &spec()))]);
    assert_eq!(shown(&cluster.update().unwrap()), ["- Pod app/x"]);
    hear(&mut cluster, &Kind::Pod, [News::NotInstalled]);
    assert_eq!(shown(&cluster.update().unwrap()), ["- Pod app/z"]);
}

#[test]
fn a_field_of_a_newer_kubernetes_is_no_mistake_and_one_of_a_policy_is() {
    let mut cluster = listed();
    let spec = json!({ "containers": [{ "name": "c", "inventedLater": 1 }], "alsoLater": {} });
    hear(&mut cluster, &Kind::Pod, [News::Changed(pod("x", &spec))]);
    let update = cluster.update().unwrap();
    assert_eq!(shown(&update), ["+ Pod app/x"]);
    assert!(update.problems.list.is_empty(), "{:?}", update.problems);

    let good = json!({ "action": "DENY", "rules": [{}] });
    let bad = json!({ "action": "DENY", "rules": [{ "inventedLater": 1 }] });
    hear(
        &mut cluster,
        &Kind::AuthorizationPolicy,
        [News::Changed(policy("p", &good))],
    );
    assert_eq!(
        shown(&cluster.update().unwrap()),
        ["+ AuthorizationPolicy app/p"]
    );
    hear(
        &mut cluster,
        &Kind::AuthorizationPolicy,
        [News::Changed(policy("p", &bad))],
    );
    let update = cluster.update().unwrap();
    assert!(update.changes.is_empty(), "its last good state stays");
    let [problem] = &*update.problems.list else {
        panic!("{:?}", update.problems)
    };
    assert_eq!(problem.severity, Severity::Error);
    assert_eq!(&*problem.place.file, "https://api");
    assert_eq!(&*problem.field, "spec.rules[0].inventedLater");

    // One that never had a good state lets nobody in.
    hear(
        &mut cluster,
        &Kind::AuthorizationPolicy,
        [News::Changed(policy("q", &bad))],
    );
    let update = cluster.update().unwrap();
    let [Change::Upsert(Object::AuthorizationPolicy(closed))] = &*update.changes else {
        panic!("{:?}", update.changes)
    };
    assert_eq!(
        (closed.spec.action, closed.spec.rules.len()),
        (PolicyAction::Allow, 0)
    );

    let gone = ["p", "q"].map(|name| News::Deleted(policy(name, &json!({}))));
    hear(&mut cluster, &Kind::AuthorizationPolicy, gone);
    let update = cluster.update().unwrap();
    assert_eq!(update.changes.len(), 2);
    assert!(cluster.own_problems().list.is_empty());
}

#[test]
fn istios_configuration_is_read_out_of_its_text() {
    let config = |data: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "istio", "namespace": "istio-system" },
            "data": data,
        })
    };
    let mut cluster = listed();
    let with = News::Changed(config(json!({ "mesh": "accessLogFile: /dev/stdout\n" })));
    hear(&mut cluster, &Kind::MeshConfig, [with]);
    assert_eq!(
        shown(&cluster.update().unwrap()),
        ["+ ConfigMap istio-system/istio"]
    );
    let broken = News::Changed(config(json!({ "mesh": "a: [" })));
    hear(&mut cluster, &Kind::MeshConfig, [broken]);
    let update = cluster.update().unwrap();
    assert!(
        update.changes.is_empty() && update.problems.stale,
        "{update:?}"
    );
    hear(
        &mut cluster,
        &Kind::MeshConfig,
        [News::Changed(config(json!({})))],
    );
    assert_eq!(
        shown(&cluster.update().unwrap()),
        ["- ConfigMap istio-system/istio"]
    );
}

#[test]
fn what_has_no_effect_is_told_and_waited_for_by_nobody() {
    let collections: Vec<Collection> = all("istio").into_iter().chain(idle()).collect();
    let mut cluster = Cluster::holding("https://api".into(), &collections);
    for collection in all("istio") {
        if let Topic::Kind(kind) = collection.topic {
            hear(&mut cluster, &kind, [News::Listing, News::ListEnd]);
        }
    }
    assert!(cluster.update().is_some(), "it waits");
    let filter = json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": { "name": "lua", "namespace": "app", "uid": "u", "resourceVersion": "1" },
    });
    let kind = Kind::Other("networking.istio.io".into(), "EnvoyFilter".into());
    hear(&mut cluster, &kind, [News::Changed(filter.clone())]);
    let update = cluster.update().unwrap();
    let said: Vec<_> = update
        .problems
        .list
        .iter()
        .map(|one| (one.severity, one.object.to_string()))
        .collect();
    assert_eq!(
        said,
        [(Severity::Warning, "EnvoyFilter app/lua".to_owned())]
    );
    assert_eq!(cluster.holdings().len(), 1);
    hear(&mut cluster, &kind, [News::Deleted(filter)]);
    assert!(cluster.update().unwrap().problems.list.is_empty());
}

/// A DestinationRule that names a Secret.
fn sealing_rule() -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "name": "r", "namespace": "app" },
        "spec": { "host": "s", "trafficPolicy": { "tls": { "mode": "SIMPLE", "credentialName": "c" } } },
    })
}

#[test]
fn what_others_name_is_followed_one_by_one() {
    let mut cluster = listed();
    assert!(cluster.names().is_empty());
    let rule = sealing_rule();
    hear(
        &mut cluster,
        &Kind::DestinationRule,
        [News::Changed(rule.clone())],
    );
    let names: Vec<_> = cluster.names().into_iter().collect();
    let [own, authorities] = names.as_slice() else {
        panic!("{names:?}");
    };
    assert_eq!(own.to_string(), "Secret app/c");
    assert_eq!(authorities.to_string(), "Secret app/c-cacert");
    let mut told = |key: &ObjectKey, news: Vec<News>| {
        for one in news {
            cluster.take_named(key, one, Timestamp::UNIX_EPOCH);
        }
        let condition = cluster.condition();
        let secrets = condition.kinds.iter().find(|kind| &*kind.kind == "Secret");
        let is_troubled = secrets.unwrap().trouble.is_some();
        (
            shown(&cluster.update().unwrap_or_else(|| Update {
                changes: Vec::new(),
                problems: std::sync::Arc::default(),
                noticed: None,
            })),
            is_troubled,
        )
    };
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "c", "namespace": "app" },
        "data": { "ca.crt": "eA==", "password": "eA==" },
    });
    let (_, is_troubled) = told(own, vec![failing(Cause::Forbidden, "no")]);
    assert!(is_troubled);
    // Another's news do not hide it.
    let (_, is_troubled) = told(
        authorities,
        vec![News::Following, News::Listing, News::ListEnd],
    );
    assert!(is_troubled);
    let listed = vec![
        News::Following,
        News::Listing,
        News::Listed(secret.clone()),
        News::ListEnd,
    ];
    assert_eq!(
        told(own, listed),
        (vec!["+ Secret app/c".to_owned()], false)
    );
    // Gone while nobody watched.
    let relisted = vec![News::Listing, News::ListEnd];
    assert_eq!(
        told(own, relisted),
        (vec!["- Secret app/c".to_owned()], false)
    );
    let again = vec![News::Changed(secret)];
    assert_eq!(told(own, again), (vec!["+ Secret app/c".to_owned()], false));
    hear(&mut cluster, &Kind::DestinationRule, [News::Deleted(rule)]);
    assert!(cluster.names().is_empty());
    cluster.forget(own);
    let changes = shown(&cluster.update().unwrap());
    assert!(
        changes.contains(&"- Secret app/c".to_owned()),
        "{changes:?}"
    );
}

#[test]
fn an_outage_is_said_once_and_so_is_its_end() {
    let mut cluster = listed();
    cluster.take_definitions(&News::ListEnd, Timestamp::UNIX_EPOCH);
    let well = cluster.condition();
    assert!(well.is_reachable() && well.troubles().is_empty());
    for kind in [Kind::Pod, Kind::Service] {
        hear(
            &mut cluster,
            &kind,
            [failing(Cause::Unreachable, "cannot be reached: refused")],
        );
    }
    let away = cluster.condition();
    assert!(!away.is_reachable());
    let troubles = away.troubles();
    assert_eq!((troubles.len(), troubles[0].1.len()), (1, 2));
    let said = |now: &super::ClusterCondition, before| -> Vec<String> {
        now.news(before)
            .into_iter()
            .map(|said| said.sentence)
            .collect()
    };
    assert_eq!(
        said(&away, Some(&well)),
        ["the API server cannot be reached: refused; the last state stays in force"]
    );
    assert!(said(&away, Some(&away)).is_empty());
    for kind in [Kind::Pod, Kind::Service] {
        hear(&mut cluster, &kind, [News::Following]);
    }
    assert_eq!(
        said(&cluster.condition(), Some(&away)),
        ["the API server answers again"]
    );
}

#[test]
fn what_is_not_granted_and_not_installed_has_a_sentence() {
    let mut cluster = listed();
    let well = cluster.condition();
    hear(
        &mut cluster,
        &Kind::Telemetry,
        [failing(Cause::Forbidden, "does not let the agent")],
    );
    hear(&mut cluster, &Kind::TcpRoute, [News::NotInstalled]);
    let now = cluster.condition();
    assert!(now.is_reachable());
    let sentences: BTreeSet<String> = now
        .news(Some(&well))
        .into_iter()
        .map(|said| said.sentence)
        .collect();
    let expected = [
        "TCPRoute is not installed: waiting for tcproutes.gateway.networking.k8s.io",
        "Telemetry: the API server does not let the agent",
    ];
    assert_eq!(sentences, expected.map(str::to_owned).into());
    let missing: Vec<Phase> = now.not_installed().map(|kind| kind.phase).collect();
    assert_eq!(missing, [Phase::NotInstalled]);
}

/// By group and resource: what may be listed and watched by the first `ClusterRole` of some manifests, and which objects
/// of it only.
fn followable(manifests: &str) -> BTreeSet<(String, String, Option<Vec<String>>)> {
    let manifests = for_test::documents(manifests);
    let role = manifests
        .iter()
        .find(|one| one["kind"] == "ClusterRole")
        .unwrap();
    let texts = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut granted = BTreeSet::new();
    let rules = role["rules"].as_array().unwrap().iter();
    for rule in rules.filter(|rule| texts(&rule["verbs"]) == ["list", "watch"]) {
        let only = (!rule["resourceNames"].is_null()).then(|| texts(&rule["resourceNames"]));
        for (group, resource) in texts(&rule["apiGroups"]).iter().flat_map(|group| {
            let resources = texts(&rule["resources"]);
            resources
                .into_iter()
                .map(move |resource| (group.clone(), resource))
        }) {
            granted.insert((group, resource, only.clone()));
        }
    }
    granted
}

/// The agent may read what it follows, and nothing else; the controller what has no effect, besides.
#[test]
fn the_roles_that_are_deployed_grant_exactly_what_is_followed() {
    let followed = |collection: Collection| {
        let only = collection.name.map(|name| vec![name.to_string()]);
        (collection.group.to_owned(), collection.plural, only)
    };
    let agents = include_str!("../../../../deploy/base/rbac.yaml");
    let all = all("istio").into_iter().map(followed);
    assert_eq!(followable(agents), all.collect());
    assert!(
        !agents.contains("patch") && !agents.contains("get"),
        "{agents}"
    );
    let controllers = include_str!("../../../../deploy/base/controller-rbac.yaml");
    let idle = idle().into_iter().map(followed);
    assert_eq!(followable(controllers), idle.collect());
}
