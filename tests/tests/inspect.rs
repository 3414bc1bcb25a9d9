//! What a running agent tells of layer 7: the lists and descriptions of the command line, what watched policies would have
//! done, and what each pod costs its node.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::{Agent, eventually};
use e2e::net::http::{Ask, Conversation};
use serde_json::{Value, json};

/// How soon what has happened is counted and logged.
const SOON: Duration = Duration::from_secs(5);

/// 90/10 between two versions for what begins with `/shop`, and a policy.
const RULES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - name: nine
    matches: [{path: {type: PathPrefix, value: /shop}, method: GET}]
    backendRefs: [{name: echo-v1, port: 80, weight: 90}, {name: echo-v2, port: 80, weight: 10}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: echo}]
  rules: [{to: [{operation: {methods: [GET]}}]}]
---
apiVersion: culvert.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: many, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: echo}]
  limits: [{requests: 10000, period: 1s}]
";

/// A shop with these rules in force.
fn shop() -> Result<EchoMesh> {
    let mesh = EchoMesh::shop()?;
    mesh.apply("rules.yaml", RULES)?;
    let to = mesh.at("echo", 80)?;
    mesh.soon_answers("client", to, &Ask::get("/shop"), 200)?;
    mesh.soon_answers("client", to, &Ask::get("/elsewhere"), 404)?;
    mesh.soon_answers("client", to, &Ask::new("POST", "/shop"), 403)?;
    Ok(mesh)
}

/// What a command prints on the clients' node.
fn prints(mesh: &EchoMesh, words: &str) -> Result<String> {
    let arguments: Vec<&str> = words.split_whitespace().collect();
    let output = mesh.lab.node("a")?.culvert(&arguments)?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "culvert {words}: {}\n{told}{complained}",
        output.status
    );
    Ok(told)
}

/// The same as JSON.
fn tells(mesh: &EchoMesh, words: &str) -> Result<Value> {
    serde_json::from_str(&prints(mesh, &format!("{words} -o json"))?).context("not JSON")
}

/// The rows of a table, cell by cell, without its headings. No cell of these tables has a blank in it.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().skip(1);
    lines
        .map(|line| line.split_whitespace().collect())
        .collect()
}

const ECHO: &str = "echo.shop.svc.cluster.local";

#[test]
fn routes_backends_and_listeners_are_listed_as_they_are_in_force() -> Result<()> {
    let mesh = shop()?;
    let routes = prints(&mesh, "get routes -n shop echo")?;
    ensure!(
        routes.starts_with("NAMESPACE SERVICE")
            && routes.contains("split")
            && routes.contains("path prefix /shop, method GET"),
        "{routes}"
    );
    let all = tells(&mesh, "get routes -A")?;
    let all = all.as_array().context("an array")?;
    let found = all.iter().find(|route| route["hostname"] == ECHO);
    let route = found.context("no route of echo")?;
    ensure!(
        route["origin"] == "HTTPRoute shop/split" && route["port"] == 80,
        "{route}"
    );

    let backends = prints(&mesh, "get backends -n shop echo")?;
    let rule = route["rule"].as_str().context("a rule")?;
    let backend = |name: &str, weight: &str, endpoints: &str| {
        let host = format!("shop/{name}.shop.svc.cluster.local");
        let cells = ["shop", ECHO, "80", rule, &host, "80", weight, endpoints];
        cells.map(str::to_owned).to_vec()
    };
    for expected in [
        backend("echo-v1", "90", "1/1"),
        backend("echo-v2", "10", "1/1"),
    ] {
        ensure!(
            rows(&backends).iter().any(|row| *row == expected),
            "{expected:?} is missing in\n{backends}"
        );
    }
    // A pod that is not ready is counted, and is no longer among the healthy.
    let pod = mesh.pod("echo-v1")?;
    mesh.apply(&pod.file(), &pod.manifest_as(true, false))?;
    eventually("the backend has no healthy endpoint", SOON, || {
        let backends = prints(&mesh, "get backends -n shop echo")?;
        let expected = backend("echo-v1", "90", "0/1");
        ensure!(
            rows(&backends).iter().any(|row| *row == expected),
            "{backends}"
        );
        Ok(())
    })?;
    let backends = tells(&mesh, "get backends -n shop echo")?;
    let backends = backends.as_array().context("an array")?;
    let sick = backends.iter().find(|one| one["weight"] == 90);
    let sick = sick.context("no backend of weight 90")?;
    ensure!(sick["healthy"] == 0 && sick["endpoints"] == 1, "{sick}");

    is_listed_as_a_listener(&mesh)?;
    // What is taken away is gone.
    mesh.lab.manifests().delete("rules.yaml")?;
    eventually("no route is left", SOON, || {
        let routes = prints(&mesh, "get routes -n shop echo")?;
        ensure!(rows(&routes).is_empty(), "{routes}");
        Ok(())
    })
}

/// The service's port is one that the waypoint listens on, with one route, policy and limit.
fn is_listed_as_a_listener(mesh: &EchoMesh) -> Result<()> {
    let listeners = prints(mesh, "get listeners -n shop echo")?;
    let http = rows(&listeners)
        .into_iter()
        .find(|row| row.get(2) == Some(&"80"))
        .context("no listener of port 80")?;
    ensure!(
        http == [
            "shop",
            ECHO,
            "80",
            "http",
            "shop/waypoint",
            "1",
            "1",
            "0",
            "1"
        ],
        "{listeners}"
    );
    let yaml = prints(mesh, "get listeners -n shop echo -o yaml")?;
    ensure!(
        yaml.contains("waypoint: shop/waypoint") && yaml.contains("rateLimits: 1"),
        "{yaml}"
    );
    Ok(())
}

#[test]
fn a_service_and_its_pods_are_described_with_all_that_is_theirs() -> Result<()> {
    let mesh = shop()?;
    let text = prints(&mesh, "describe service shop/echo")?;
    let address = mesh.at("echo", 80)?.ip().to_string();
    let (v1, v2) = (mesh.pod("echo-v1")?, mesh.pod("echo-v2")?);
    for part in [
        ECHO,
        &address,
        "shop/waypoint",
        "80:8080",
        "HTTPRoute shop/split",
        "path prefix /shop, method GET",
        &v1.v4().to_string(),
        &v2.v4().to_string(),
        "Healthy",
    ] {
        ensure!(text.contains(part), "no `{part}` in\n{text}");
    }
    let described = tells(&mesh, "describe service echo -n shop")?;
    let [service] = described.as_array().map_or(&[][..], Vec::as_slice) else {
        anyhow::bail!("not one service: {described}");
    };
    let backends = service["layer7"]["backends"].as_array();
    let weights = backends.map(|all| {
        let of_80 = all.iter().filter(|one| one["port"] == 80);
        of_80.map(|one| one["weight"].clone()).collect::<Vec<_>>()
    });
    ensure!(weights == Some(vec![json!(90), json!(10)]), "{service}");

    let text = prints(&mesh, "describe pod shop/echo-v2")?;
    for part in [
        "captured by this agent",
        &v2.v4().to_string(),
        ECHO,
        "HBONE",
    ] {
        ensure!(text.contains(part), "no `{part}` in\n{text}");
    }
    let text = prints(&mesh, "describe pod echo-v1 -n shop -o yaml")?;
    ensure!(
        text.contains("on another node") && text.contains("node: b"),
        "{text}"
    );
    let output = mesh
        .lab
        .node("a")?
        .culvert(&["describe", "pod", "nobody"])?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && complaint.contains("culvert get workloads"),
        "{complaint}"
    );
    Ok(())
}

/// A policy about `echo-v1` that is only watched.
fn watched(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: shop\n  \
         annotations: {{istio.io/dry-run: \"true\"}}\nspec:\n  targetRefs: [{{kind: Service, group: \"\", name: \
         echo-v1}}]\n{rest}"
    )
}

/// How often a watched policy has come to a result.
fn judgements(agent: &Agent, policy: &str, action: &str, result: &str) -> Result<f64> {
    let labels = [
        format!("policy=\"{policy}\""),
        format!("authz_dry_run_action=\"{action}\""),
        format!("authz_dry_run_result=\"{result}\""),
    ];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    agent.metric("culvert_authorization_dry_run_total", &labels)
}

fn are_logged(agent: &Agent) -> Result<()> {
    eventually("the log says so", SOON, || {
        let log = agent.log()?;
        for words in [
            "shadow denied, matched policy ns[shop]-policy[secrets]-rule[0]",
            "shadow allowed, matched policy ns[shop]-policy[readers]-rule[0]",
            "shadow denied, matched policy none",
        ] {
            let line = log.lines().find(|line| line.contains(words));
            let line = line.with_context(|| format!("no line says `{words}`"))?;
            ensure!(line.contains("dry run"), "{line}");
        }
        Ok(())
    })
}

fn nobody_was_refused(mesh: &EchoMesh) -> Result<()> {
    for node in ["a", "b"] {
        let refused = ["response_code=\"403\""];
        let refused = mesh
            .lab
            .agent(node)?
            .metric("istio_requests_total", &refused)?;
        ensure!(
            refused == 0.0,
            "{refused} requests were refused at node {node}"
        );
    }
    Ok(())
}

#[test]
fn what_a_watched_policy_would_have_done_is_logged_and_counted_and_nobody_is_refused() -> Result<()>
{
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let deny = watched(
        "secrets",
        "  action: DENY\n  rules: [{to: [{operation: {paths: [/secret]}}]}]\n",
    );
    let allow = watched(
        "readers",
        "  action: ALLOW\n  rules: [{to: [{operation: {methods: [GET]}}]}]\n",
    );
    mesh.apply("watched.yaml", &format!("{deny}---\n{allow}"))?;
    // Where the server is: there policies of services are judged.
    let agent = mesh.lab.agent("b")?;
    let count = |policy, action, result| judgements(agent, policy, action, result);
    eventually("both policies are watched", SOON, || {
        mesh.seen("client", to, &Ask::get("/"))?;
        let seen = count("shop/readers", "allow", "allowed")?;
        ensure!(seen > 0.0, "{seen}");
        Ok(())
    })?;
    let before = (
        count("shop/secrets", "deny", "denied")?,
        count("none", "allow", "denied")?,
    );
    ensure!(before == (0.0, 0.0), "{before:?}");
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        for ask in [
            Ask::get("/secret"),
            Ask::get("/open"),
            Ask::new("POST", "/open"),
        ] {
            for _ in 0..5 {
                let answer = conversation.ask(&ask)?;
                ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
            }
        }
        Ok(())
    })?;
    let after = (
        count("shop/secrets", "deny", "denied")?,
        count("none", "allow", "denied")?,
    );
    ensure!(after == (5.0, 5.0), "{after:?}");
    are_logged(agent)?;
    nobody_was_refused(&mesh)?;
    // Beforehand it is told, too.
    let explained = tells(
        &mesh,
        "explain --from clients/client --to echo-v1.shop:80 GET /secret",
    )?;
    ensure!(
        explained["expected"]["isDelivered"] == true
            && explained["policies"]
                .to_string()
                .contains("matches rule 0 (dry run)"),
        "{explained}"
    );
    Ok(())
}

/// What a pod of the clients has cost its node: seconds, requests, bytes.
fn cost(mesh: &EchoMesh, pod: &str) -> Result<[f64; 3]> {
    let agent = mesh.lab.agent("a")?;
    let pod = format!("pod=\"{pod}\"");
    let of = |what: &str| {
        let metric = format!("culvert_workload_{what}_total");
        agent.metric(&metric, &["namespace=\"clients\"", &pod])
    };
    Ok([of("cpu_seconds")?, of("requests")?, of("bytes")?])
}

#[test]
fn a_pod_is_charged_for_its_own_traffic_and_for_nobody_elses() -> Result<()> {
    const REQUESTS: u32 = 200;
    const BODY: u32 = 2000;
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 80)?;
    // Both have been served, so neither is charged for a beginning later.
    for client in ["client", "stranger"] {
        mesh.soon_at_layer7(client, to, true)?;
    }
    // Connections that have ended are accounted for a moment later.
    let mut before = [cost(&mesh, "client")?, cost(&mesh, "stranger")?];
    eventually("nothing is under way", SOON, || {
        let now = [cost(&mesh, "client")?, cost(&mesh, "stranger")?];
        let is_quiet = now == before;
        before = now;
        ensure!(is_quiet, "{now:?}");
        Ok(())
    })?;
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        let ask = Ask::get("/").wishing(&format!("bytes={BODY}"));
        for _ in 0..REQUESTS {
            let answer = conversation.ask(&ask)?;
            ensure!(answer.body.len() == BODY as usize, "{}", answer.text());
        }
        Ok(())
    })?;
    let [[seconds, requests, bytes], stranger] = before;
    eventually("the client has been charged", SOON, || {
        let now = cost(&mesh, "client")?;
        let least = bytes + f64::from(REQUESTS * BODY);
        // Requests are whole numbers.
        let more = now[1] - requests - f64::from(REQUESTS);
        ensure!(
            now[0] > seconds && more.abs() < 0.5 && now[2] >= least,
            "{:?} has become {now:?}",
            before[0]
        );
        Ok(())
    })?;
    let now = cost(&mesh, "stranger")?;
    ensure!(
        now.map(f64::to_bits) == stranger.map(f64::to_bits),
        "{stranger:?} has become {now:?}"
    );
    Ok(())
}
