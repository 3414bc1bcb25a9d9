//! The controller against a real API server, as its own service account: what it writes is read back with the real `kubectl`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::bookinfo::cluster::Cluster;
use e2e::kubernetes::{ApiServer, Controller, Definitions};
use e2e::lab::eventually;
use e2e::shop::{BOUND, SUCCEEDED, condition, get, route, server, service, shop, told};
use serde_json::{Value, json};

/// How soon a change has to be told.
const SOON: Duration = Duration::from_secs(10);
const ROUTES: &str = "istio.io/gateway-controller";

/// Writes a status in namespace `shop` as somebody else.
fn patch_status(api: &ApiServer, object: &[&str], patch: &str) -> Result<()> {
    let words = [
        "patch",
        "--subresource=status",
        "--type=merge",
        "-n",
        "shop",
        "-p",
        patch,
    ];
    api.kubectl(&[&words[..], object].concat()).map(drop)
}

/// What one controller says of a route at each parent, by the parents' names.
fn parents(route: &Value, controller: &str) -> Vec<String> {
    let all = route["status"]["parents"].as_array().into_iter().flatten();
    let own = all.filter(|one| one["controllerName"] == controller);
    own.map(|one| {
        one["parentRef"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    })
    .collect()
}

fn version(api: &ApiServer, object: &str) -> Result<String> {
    let object = get(api, object)?;
    let version = object["metadata"]["resourceVersion"].as_str();
    Ok(version.context("no resourceVersion")?.to_owned())
}

/// Bookinfo in an API server with everything that the seed's reader applies, and a controller, in service.
fn seed() -> Result<(Cluster, Controller)> {
    let mut cluster = Cluster::build()?;
    cluster.register(&Definitions::ALL)?;
    let account = cluster
        .api()?
        .account_kubeconfig("culvert-system", "culvert-controller")?;
    for file in [
        "waypoint.yaml",
        "waypoint-foo.yaml",
        "http-route.yaml",
        "authorization-policy-waypoint.yaml",
        "authorization-policy.yaml",
    ] {
        let text = cluster.manifest(file)?;
        cluster.apply(&text)?;
    }
    cluster.kubectl("label ns bookinfo istio.io/use-waypoint=waypoint")?;
    let controller = Controller::start(&cluster.lab, "b", &account, &[])?;
    controller.wait_ready()?;
    Ok((cluster, controller))
}

/// What Istio's documentation has the seed's reader look at.
#[test]
fn the_seeds_objects_say_what_became_of_them() -> Result<()> {
    let (mut cluster, controller) = seed()?;
    let api: &ApiServer = cluster.api()?;
    // As the reader waits for it.
    for (condition, object) in [
        ("Accepted", "gatewayclass/culvert-waypoint"),
        ("Accepted", "gatewayclass/istio-waypoint"),
        ("Programmed", "gateway/waypoint"),
        (BOUND, "service/reviews"),
        (
            "WaypointAccepted",
            "authorizationpolicy/productpage-waypoint",
        ),
        ("ZtunnelAccepted", "authorizationpolicy/productpage-viewer"),
    ] {
        let condition = format!("--for=condition={condition}");
        api.kubectl(&[
            "wait",
            &condition,
            "--timeout=30s",
            "-n",
            "bookinfo",
            object,
        ])?;
    }
    let gateway = get(api, "gateway waypoint -n bookinfo")?;
    ensure!(
        gateway["status"]["addresses"][0]
            == json!({ "type": "Hostname", "value": "waypoint.bookinfo.svc.cluster.local" }),
        "{}",
        gateway["status"]
    );
    let listener = &gateway["status"]["listeners"][0];
    ensure!(
        listener["name"] == "mesh" && listener["attachedRoutes"] == 0,
        "{listener}"
    );
    let listed = api.kubectl(&["get", "gateway", "waypoint", "-n", "bookinfo"])?;
    ensure!(
        listed.contains("waypoint.bookinfo.svc.cluster.local") && listed.contains("True"),
        "{listed}"
    );
    let route = eventually("the route says what its parent makes of it", SOON, || {
        let route = get(api, "httproute reviews -n bookinfo")?;
        ensure!(
            parents(&route, ROUTES) == ["reviews"],
            "{}",
            route["status"]
        );
        Ok(route)
    })?;
    let (since, _) = accepted(&route)?;

    // Another generation is looked at; what has not changed over is so since then.
    let weight = r#"[{"op":"replace","path":"/spec/rules/0/backendRefs/0/weight","value":80}]"#;
    api.kubectl(&[
        "patch",
        "httproute",
        "reviews",
        "-n",
        "bookinfo",
        "--type=json",
        "-p",
        weight,
    ])?;
    eventually("the new generation is looked at", SOON, || {
        let route = get(api, "httproute reviews -n bookinfo")?;
        let (still, generation) = accepted(&route)?;
        ensure!(generation == 2 && still == since, "{generation}, {still}");
        Ok(())
    })?;
    controller.stop()
}

/// Since when a route is accepted by its first parent, and which generation of it was looked at: its present one.
fn accepted(route: &Value) -> Result<(String, i64)> {
    let conditions = &route["status"]["parents"][0]["conditions"];
    let (said, entry) = condition(conditions, "Accepted")?;
    ensure!(said == "True Accepted", "{said}");
    let (said, _) = condition(conditions, "ResolvedRefs")?;
    ensure!(said == "True ResolvedRefs", "{said}");
    let generation = &entry["observedGeneration"];
    ensure!(*generation == route["metadata"]["generation"], "{entry}");
    let since = entry["lastTransitionTime"].as_str().context("no time")?;
    Ok((since.to_owned(), generation.as_i64().context("no number")?))
}

#[test]
fn a_waypoint_that_goes_is_told_by_status_and_event() -> Result<()> {
    let (mut cluster, controller) = seed()?;
    let api: &ApiServer = cluster.api()?;
    let service = "service reviews -n bookinfo";
    told(api, service, BOUND, "True WaypointAccepted")?;
    api.kubectl(&["delete", "gateway", "waypoint", "-n", "bookinfo"])?;
    told(api, service, BOUND, "False WaypointIsNotReady")?;
    told(
        api,
        "authorizationpolicy productpage-waypoint -n bookinfo",
        "WaypointAccepted",
        "False AncestorNotBound",
    )?;
    eventually("kubectl shows the event", SOON, || {
        let described = api.kubectl(&["describe", "service", "reviews", "-n", "bookinfo"])?;
        let mut lines = described.lines();
        let line =
            lines.find(|line| line.contains("WaypointIsNotReady") && line.contains("Warning"));
        line.map(drop)
            .with_context(|| format!("no event in {described}"))
    })?;
    // Nobody asks for a waypoint any more: there is nothing to say.
    api.kubectl(&["label", "ns", "bookinfo", "istio.io/use-waypoint-"])?;
    eventually("the condition is gone", SOON, || {
        let service = get(api, service)?;
        let conditions = &service["status"]["conditions"];
        ensure!(condition(conditions, BOUND).is_err(), "{conditions}");
        Ok(())
    })?;
    let refused = ["outcome=\"refused\""];
    let refused = controller.metric("culvert_controller_writes_total", &refused)?;
    ensure!(refused < 0.5, "refused: {}", controller.log()?);
    controller.stop()
}

#[test]
fn others_entries_stay_and_what_is_right_is_not_written_again() -> Result<()> {
    let (api, account, lab) = server()?;
    shop(&api, &["one", "two"])?;
    api.apply(&route(&["one", "two"]))?;
    // What a mesh of somebody else's says of the same route.
    let theirs = json!({
        "parentRef": { "group": "", "kind": "Service", "name": "one" },
        "controllerName": "example.com/mesh",
        "conditions": [{ "type": "Accepted", "status": "False", "reason": "No", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" }],
    });
    let theirs_are = json!({ "status": { "parents": [theirs] } }).to_string();
    patch_status(&api, &["httproute", "r"], &theirs_are)?;
    let controller = Controller::start(&lab, "a", &account, &[])?;
    let says = |expected: &[&str]| {
        eventually(&format!("we speak of {expected:?}"), SUCCEEDED, || {
            let route = get(&api, "httproute r -n shop")?;
            ensure!(parents(&route, ROUTES) == expected, "{}", route["status"]);
            let first = &route["status"]["parents"][0];
            ensure!(*first == theirs, "{first}");
            Ok(())
        })
    };
    says(&["one", "two"])?;
    // A parent that is no parent any more is not spoken of; without any of ours there is only theirs.
    api.apply(&route(&["two"]))?;
    says(&["two"])?;
    api.kubectl(&["delete", "service", "two", "-n", "shop"])?;
    eventually("the parent is missing", SOON, || {
        let route = get(&api, "httproute r -n shop")?;
        let conditions = &route["status"]["parents"][1]["conditions"];
        let (accepted, _) = condition(conditions, "Accepted")?;
        ensure!(accepted == "False NoMatchingParent", "{accepted}");
        Ok(())
    })?;
    api.apply(
        &route(&["two"])
            .replace("kind: Service", "kind: Gateway")
            .replace("group: ''", "group: gateway.networking.k8s.io"),
    )?;
    says(&[])?;

    // What is right is not written again, whatever else happens.
    told(&api, "service one -n shop", BOUND, "True WaypointAccepted")?;
    let before = version(&api, "service one -n shop")?;
    let written = controller.written()?;
    for name in ["three", "four", "five"] {
        api.apply(&service(name, "{}"))?;
        told(
            &api,
            &format!("service {name} -n shop"),
            BOUND,
            "True WaypointAccepted",
        )?;
    }
    let after = version(&api, "service one -n shop")?;
    ensure!(before == after, "{before} became {after}");
    let more = controller.written()? - written;
    ensure!(more < 3.5, "{more} writes for three services");

    controller.stop()
}

#[test]
fn nobody_quarrels() -> Result<()> {
    let (api, account, lab) = server()?;
    shop(&api, &["one"])?;
    let controller = Controller::start(&lab, "a", &account, &[])?;
    told(&api, "service one -n shop", BOUND, "True WaypointAccepted")?;
    // Somebody of another opinion writes over and over: we do not join in.
    let written = controller.written()?;
    let opinion =
        json!({ "status": { "conditions": [{ "type": BOUND, "status": "False", "reason": "No",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } })
        .to_string();
    for _ in 0..25 {
        patch_status(&api, &["service", "one"], &opinion)?;
    }
    // Events come after statuses: when it has told one, it has had its say about what came before.
    api.apply(&service("six", "{istio.io/use-waypoint: nobodys}"))?;
    eventually("an event is written", SOON, || {
        let events = api.kubectl(&["get", "events", "-n", "shop"])?;
        ensure!(events.contains("service/six"), "{events}");
        Ok(())
    })?;
    let quarrel = controller.written()? - written;
    ensure!(
        (1.0..9.5).contains(&quarrel),
        "{quarrel} writes against 25: {}",
        controller.log()?
    );
    controller.stop()
}

/// Where an istiod is, it speaks about Istio's kinds, and we about our own.
#[test]
fn beside_istiod_only_our_own_is_written() -> Result<()> {
    let (api, account, lab) = server()?;
    shop(&api, &["one"])?;
    api.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: istio-waypoint}\n\
         spec: {controllerName: istio.io/mesh-controller}\n---\n\
         apiVersion: culvert.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: p, namespace: shop}\n\
         spec: {targetRefs: [{group: '', kind: Service, name: one}], limits: [{requests: 1}]}\n",
    )?;
    let accepted = json!({ "status": { "conditions": accepted_by_istio() } }).to_string();
    patch_status(&api, &["gatewayclass", "istio-waypoint"], &accepted)?;
    let before = version(&api, "gatewayclass istio-waypoint")?;
    let controller = Controller::start(&lab, "a", &account, &[])?;
    told(
        &api,
        "gatewayclass culvert-waypoint",
        "Accepted",
        "True Accepted",
    )?;
    told(&api, "gateway w -n shop", "Programmed", "True Programmed")?;
    eventually("our policy has its status", SOON, || {
        let policy = get(&api, "ratelimitpolicy p -n shop")?;
        let ancestor = &policy["status"]["ancestors"][0];
        ensure!(
            ancestor["controllerName"] == "culvert.dev/policy-controller",
            "{policy}"
        );
        let (accepted, _) = condition(&ancestor["conditions"], "Accepted")?;
        ensure!(accepted == "True Accepted", "{ancestor}");
        Ok(())
    })?;
    eventually("everything is written", SOON, || {
        let pending = controller.metric("culvert_controller_pending", &[])?;
        ensure!(pending < 0.5, "{pending} are still to be written");
        Ok(())
    })?;
    let service = get(&api, "service one -n shop")?;
    ensure!(
        condition(&service["status"]["conditions"], BOUND).is_err(),
        "{}",
        service["status"]
    );
    let after = version(&api, "gatewayclass istio-waypoint")?;
    ensure!(before == after, "istiod's class was written");
    controller.stop()
}

/// What an object is accepted as, in the words of Istio's controller.
fn accepted_by_istio() -> Value {
    json!([{ "type": "Accepted", "status": "True", "reason": "Accepted",
        "message": "Handled by Istio controller", "lastTransitionTime": "2026-01-01T00:00:00Z" }])
}

/// Beside an istiod that has no ambient mode, and so no class of waypoints: its ingress calls itself what we do.
#[test]
fn what_an_ingress_of_istios_says_of_a_route_stays() -> Result<()> {
    let (api, account, lab) = server()?;
    shop(&api, &["one"])?;
    api.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: istio}\n\
         spec: {controllerName: istio.io/gateway-controller}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: ingress, namespace: shop}\n\
         spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}\n",
    )?;
    let ingress = "{name: ingress}, {group: '', kind: Service";
    api.apply(&route(&["one"]).replace("{group: '', kind: Service", ingress))?;
    let theirs = json!({
        "parentRef": { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "ingress" },
        "controllerName": ROUTES,
        "conditions": accepted_by_istio(),
    });
    let theirs_are = json!({ "status": { "parents": [theirs] } }).to_string();
    patch_status(&api, &["httproute", "r"], &theirs_are)?;

    // Told that nobody else speaks about Istio's kinds, it still leaves alone what is about the ingress.
    let controller = Controller::start(&lab, "a", &account, &["--istiod", "absent"])?;
    let says = |expected: &[&str]| {
        eventually(&format!("{expected:?} are spoken of"), SUCCEEDED, || {
            let route = get(&api, "httproute r -n shop")?;
            ensure!(parents(&route, ROUTES) == expected, "{}", route["status"]);
            let first = &route["status"]["parents"][0];
            ensure!(*first == theirs, "{first}");
            Ok(())
        })
    };
    says(&["ingress", "one"])?;
    api.apply(
        &route(&["one"]).replace("{group: '', kind: Service, name: one}", "{name: ingress}"),
    )?;
    says(&["ingress"])?;
    controller.stop()?;

    // Asked to find it out, it knows that istiod by the class of its ingress, and leaves Istio's kinds to it.
    let class = json!({ "status": { "conditions": accepted_by_istio() } }).to_string();
    patch_status(&api, &["gatewayclass", "istio"], &class)?;
    api.apply(&service("two", "{}"))?;
    api.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: v, namespace: shop}\n\
         spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n",
    )?;
    let controller = Controller::start(&lab, "a", &account, &[])?;
    told(&api, "gateway v -n shop", "Programmed", "True Programmed")?;
    eventually("everything is written", SOON, || {
        let pending = controller.metric("culvert_controller_pending", &[])?;
        ensure!(pending < 0.5, "{pending} are still to be written");
        Ok(())
    })?;
    says(&["ingress"])?;
    let service = get(&api, "service two -n shop")?;
    ensure!(
        condition(&service["status"]["conditions"], BOUND).is_err(),
        "{}",
        service["status"]
    );
    controller.stop()
}

#[test]
fn a_backend_tls_policy_is_told_what_became_of_it() -> Result<()> {
    let (api, account, lab) = server()?;
    shop(&api, &["one"])?;
    let policy = |authorities: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, name: one}}], validation: {{hostname: one.example, {authorities}}}}}\n"
        )
    };
    api.apply(&policy("wellKnownCACertificates: System"))?;
    let controller = Controller::start(&lab, "a", &account, &[])?;
    let says = |expected: [&str; 2]| {
        eventually(&format!("the policy is {expected:?}"), SUCCEEDED, || {
            let policy = get(&api, "backendtlspolicy p -n shop")?;
            let ancestor = &policy["status"]["ancestors"][0];
            ensure!(ancestor["controllerName"] == ROUTES, "{policy}");
            ensure!(ancestor["ancestorRef"]["name"] == "one", "{policy}");
            let kinds = ["Accepted", "ResolvedRefs"];
            let found = kinds.map(|kind| condition(&ancestor["conditions"], kind));
            for (found, expected) in found.into_iter().zip(expected) {
                let (found, _) = found?;
                ensure!(found == expected, "{ancestor}");
            }
            Ok(())
        })
    };
    says(["True Accepted", "True ResolvedRefs"])?;
    // Certificates of a ConfigMap that is not there.
    api.apply(&policy(
        "caCertificateRefs: [{group: '', kind: ConfigMap, name: nobodys}]",
    ))?;
    says([
        "False NoValidCACertificate",
        "False InvalidCACertificateRef",
    ])?;
    controller.stop()
}

/// Whoever writes one hears of it, though no agent follows its kind.
#[test]
fn kinds_without_effect_are_told_by_event() -> Result<()> {
    let (api, account, lab) = server()?;
    let controller = Controller::start(&lab, "a", &account, &[])?;
    controller.wait_ready()?;
    api.kubectl(&["create", "namespace", "shop"])?;
    api.apply(
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: lua, namespace: shop}\n\
         spec: {configPatches: []}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: machines, namespace: shop}\n\
         spec: {template: {serviceAccount: vm}}\n",
    )?;
    eventually("both are told of", SUCCEEDED, || {
        let events = api.kubectl(&["get", "events", "-n", "shop"])?;
        for object in ["envoyfilter/lua", "workloadgroup/machines"] {
            let mut lines = events.lines();
            let line = lines.find(|line| line.contains(object));
            let line = line.with_context(|| format!("no {object} in {events}"))?;
            ensure!(line.contains("NoEffect"), "{line}");
        }
        Ok(())
    })?;
    controller.stop()
}
