//! How requests are spread and limited: subsets, DestinationRule, sessions.
//!
//! Names follow Istio's ambient integration tests, or the Gateway API's, where there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::echo::{EchoMesh, Seen, destination_rule};
use e2e::lab::eventually;
use e2e::net::http::{Ask, Conversation, Response};
use e2e::net::serve::Server;
use e2e::net::{self, h2c};

/// A shop with these manifests, and where `echo` is.
fn shop_with(manifests: &str) -> Result<(EchoMesh, SocketAddr)> {
    let mesh = EchoMesh::shop()?;
    mesh.apply("traffic.yaml", manifests)?;
    let to = mesh.at("echo", 80)?;
    Ok((mesh, to))
}

/// A DestinationRule about `echo`.
fn rule(policy: &str) -> String {
    destination_rule("echo", policy)
}

/// A VirtualService and a DestinationRule with one subset for each version, and one that nobody is in.
fn virtual_service(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: echo\n  namespace: shop\nspec:\n  \
         hosts: [echo.shop.svc.cluster.local]\n  http:\n{http}---\napiVersion: networking.istio.io/v1\nkind: \
         DestinationRule\nmetadata:\n  name: echo\n  namespace: shop\nspec:\n  host: echo.shop.svc.cluster.local\n  \
         subsets:\n  - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v2, labels: {{version: v2}}}}\n  - {{name: \
         v3, labels: {{version: v3}}}}\n"
    )
}

/// Waits until a request from the client is answered by this pod.
fn reaches(mesh: &EchoMesh, to: SocketAddr, ask: &Ask, pod: &str) -> Result<()> {
    mesh.soon(&format!("{ask:?} reaches {pod}"), || {
        let seen = mesh.seen("client", to, ask)?;
        ensure!(seen.pod == pod, "{} answers", seen.pod);
        Ok(())
    })
}

/// The answers to requests of one connection of the client.
fn answers(mesh: &EchoMesh, to: SocketAddr, ask: &Ask, times: usize) -> Result<Vec<Response>> {
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        (0..times).map(|_| conversation.ask(ask)).collect()
    })
}

/// How often each pod answers requests of one connection.
fn pods(
    mesh: &EchoMesh,
    to: SocketAddr,
    ask: &Ask,
    times: usize,
) -> Result<BTreeMap<String, usize>> {
    let mut pods = BTreeMap::new();
    for answer in answers(mesh, to, ask, times)? {
        *pods.entry(Seen::in_answer(&answer)?.pod).or_default() += 1;
    }
    Ok(pods)
}

/// The statuses of requests that are under way at the same time, each on a connection of its own.
fn at_once(mesh: &EchoMesh, to: SocketAddr, ask: &Ask, many: usize) -> Result<Vec<Response>> {
    mesh.pod("client")?.run(|| {
        let conversations = (0..many).map(|_| Conversation::open(to));
        let mut conversations = conversations.collect::<Result<Vec<_>>>()?;
        for conversation in &conversations {
            conversation.write(&ask.wire())?;
        }
        let answers = conversations.iter_mut().map(|one| one.answer("GET"));
        answers.collect()
    })
}

#[test]
fn traffic_split() -> Result<()> {
    let (mesh, to) = shop_with(&virtual_service(
        "  - match: [{headers: {istio-custom-user: {exact: me}}}]\n    route: [{destination: {host: \
         echo.shop.svc.cluster.local, subset: v2}}]\n  - match: [{uri: {prefix: /nobody}}]\n    route: [{destination: \
         {host: echo, subset: v3}}]\n  - match: [{uri: {prefix: /unknown}}]\n    route: [{destination: {host: echo, \
         subset: v4}}]\n  - route: [{destination: {host: echo, subset: v1}}]\n",
    ))?;
    let mine = Ask::get("/").with("istio-custom-user", "me");
    reaches(&mesh, to, &mine, "echo-v2")?;
    reaches(&mesh, to, &Ask::get("/"), "echo-v1")?;
    let once = |pod: &str, times| BTreeMap::from([(pod.to_owned(), times)]);
    ensure!(pods(&mesh, to, &mine, 20)? == once("echo-v2", 20));
    ensure!(pods(&mesh, to, &Ask::get("/"), 20)? == once("echo-v1", 20));
    for path in ["/nobody", "/unknown"] {
        let answer = mesh.soon_answers("client", to, &Ask::get(path), 503)?;
        ensure!(answer.text() == "no healthy upstream", "{}", answer.text());
    }
    Ok(())
}

#[test]
fn server_routing() -> Result<()> {
    let (mesh, to) = shop_with(&virtual_service(
        "  - headers: {request: {add: {x-istio-test: 'yes'}}, response: {set: {x-answer: 'too'}}}\n    route: \
         [{destination: {host: echo, subset: v1}}]\n",
    ))?;
    mesh.soon("a header more", || {
        let answer = mesh.ask("client", to, &Ask::get("/"))?;
        ensure!(answer.header("x-answer") == Some("too"), "{answer:?}");
        let seen = Seen::in_answer(&answer)?;
        ensure!(
            seen.header("x-istio-test").as_deref() == Some("yes"),
            "{seen:?}"
        );
        ensure!(seen.pod == "echo-v1", "{seen:?}");
        Ok(())
    })
}

#[test]
fn a_virtual_service_delegates() -> Result<()> {
    let delegate = |subset: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: team, namespace: shop}}\nspec: {{http: \
             [{{route: [{{destination: {{host: echo, subset: {subset}}}}}]}}]}}\n"
        )
    };
    let (mesh, to) = shop_with(&virtual_service(
        "  - match: [{uri: {prefix: /team}}]\n    headers: {response: {set: {x-team: 'yes'}}}\n    delegate: {name: team}\n  - \
         route: [{destination: {host: echo, subset: v1}}]\n",
    ))?;
    mesh.apply("team.yaml", &delegate("v1"))?;
    mesh.soon("the team's rules hold", || {
        let answer = mesh.ask("client", to, &Ask::get("/team"))?;
        ensure!(answer.header("x-team") == Some("yes"), "{answer:?}");
        Ok(())
    })?;
    mesh.apply("team.yaml", &delegate("v2"))?;
    reaches(&mesh, to, &Ask::get("/team/x"), "echo-v2")?;
    reaches(&mesh, to, &Ask::get("/other"), "echo-v1")
}

#[test]
fn faults_are_injected() -> Result<()> {
    let to_v1 = "    route: [{destination: {host: echo, subset: v1}}]\n";
    let (mesh, to) = shop_with(&virtual_service(&format!(
        "  - match: [{{uri: {{prefix: /abort}}}}]\n    fault: {{abort: {{httpStatus: 418, percentage: {{value: \
         100}}}}}}\n{to_v1}  - match: [{{uri: {{prefix: /delay}}}}]\n    fault: {{delay: {{fixedDelay: 400ms, \
         percentage: {{value: 100}}}}}}\n{to_v1}  - match: [{{uri: {{prefix: /some}}}}]\n    fault: {{abort: \
         {{httpStatus: 503, percentage: {{value: 25}}}}}}\n{to_v1}  - match: [{{uri: {{exact: /direct}}}}]\n    \
         directResponse: {{status: 202, body: {{string: made up}}}}\n  -{}",
        &to_v1[3..]
    )))?;
    mesh.soon_answers("client", to, &Ask::get("/abort"), 418)?;
    let begun = Instant::now();
    mesh.seen("client", to, &Ask::get("/delay"))?;
    ensure!(
        begun.elapsed() >= Duration::from_millis(400),
        "{:?}",
        begun.elapsed()
    );
    let answers = answers(&mesh, to, &Ask::get("/some"), 400)?;
    let failed = answers.iter().filter(|answer| answer.status == 503).count();
    // 100 of 400, give or take five standard deviations: 5 · √(400 · 0.25 · 0.75) = 43.
    ensure!((57..=143).contains(&failed), "{failed} of 400");
    let direct = mesh.ask("client", to, &Ask::get("/direct"))?;
    ensure!(
        (direct.status, &*direct.text()) == (202, "made up"),
        "{direct:?}"
    );
    reaches(&mesh, to, &Ask::get("/other"), "echo-v1")
}

#[test]
fn destination_rule_spreads_in_turn() -> Result<()> {
    let (mesh, to) = shop_with(&rule("loadBalancer: {simple: ROUND_ROBIN}"))?;
    let even = BTreeMap::from([("echo-v1".to_owned(), 20), ("echo-v2".to_owned(), 20)]);
    mesh.soon("requests take turns", || {
        let pods = pods(&mesh, to, &Ask::get("/"), 40)?;
        ensure!(pods == even, "{pods:?}");
        Ok(())
    })?;
    // The default draws two and takes the idler one: a slow endpoint is left to its work.
    mesh.apply("traffic.yaml", "# no rule any more\n")?;
    mesh.soon("requests are drawn again", || {
        let pods = pods(&mesh, to, &Ask::get("/"), 40)?;
        ensure!(pods != even && pods.len() == 2, "{pods:?}");
        Ok(())
    })
}

#[test]
fn destination_rule_hashes_consistently() -> Result<()> {
    let by_header = rule("loadBalancer: {consistentHash: {httpHeaderName: x-user}}");
    let by_query = rule("loadBalancer: {consistentHash: {httpQueryParameterName: user}}");
    let (mesh, to) = shop_with(&by_header)?;
    let header = |user: usize| Ask::get("/").with("x-user", &user.to_string());
    let query = |user: usize| Ask::get(&format!("/?user={user}"));
    let asks: [(_, &dyn Fn(usize) -> Ask); 2] = [(by_header, &header), (by_query, &query)];
    for (policy, ask) in asks {
        mesh.apply("traffic.yaml", &policy)?;
        mesh.soon("each user has one endpoint, and users have both", || {
            let mut all = BTreeSet::new();
            for user in 0..16 {
                let own = pods(&mesh, to, &ask(user), 4)?;
                ensure!(own.len() == 1, "user {user} moves: {own:?}");
                all.extend(own.into_keys());
            }
            ensure!(all.len() == 2, "{all:?}");
            Ok(())
        })?;
    }
    mesh.apply(
        "traffic.yaml",
        &rule("loadBalancer: {consistentHash: {useSourceIp: true}}"),
    )?;
    mesh.soon("the client has one endpoint", || {
        let own = pods(&mesh, to, &Ask::get("/"), 20)?;
        ensure!(own.len() == 1, "{own:?}");
        Ok(())
    })
}

#[test]
fn destination_rule_makes_the_cookie_that_it_hashes() -> Result<()> {
    let (mesh, to) = shop_with(&rule(
        "loadBalancer: {consistentHash: {httpCookie: {name: taste, path: /shop, ttl: 60s}}}",
    ))?;
    mesh.soon("a cookie is made, and leads to where it came from", || {
        let mut pods = BTreeSet::new();
        for _ in 0..16 {
            let first = mesh.ask("client", to, &Ask::get("/"))?;
            let cookie = first.header("set-cookie").unwrap_or_default();
            let (pair, attributes) = cookie.split_once("; ").unwrap_or_default();
            ensure!(
                pair.starts_with("taste=") && attributes == "Max-Age=60; Path=/shop; HttpOnly",
                "{cookie}"
            );
            let pod = Seen::in_answer(&first)?.pod;
            for again in answers(&mesh, to, &Ask::get("/").with("cookie", pair), 3)? {
                ensure!(Seen::in_answer(&again)?.pod == pod, "{again:?}");
                ensure!(again.header("set-cookie").is_none(), "{again:?}");
            }
            pods.insert(pod);
        }
        ensure!(pods.len() == 2, "{pods:?}");
        Ok(())
    })
}

/// What a client has to send to belong to the session of an answer.
type Token<'a> = &'a dyn Fn(&Response) -> Option<(&'static str, String)>;

#[test]
fn sessions_stay_at_their_endpoint() -> Result<()> {
    let route = |session: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: session\n  namespace: shop\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n  - sessionPersistence: \
             {session}\n    backendRefs: [{{name: echo-v1, port: 80, weight: 1}}, {{name: echo-v2, port: 80, weight: \
             1}}]\n"
        )
    };
    let (mesh, to) = shop_with(&route("{sessionName: seat, type: Cookie}"))?;
    let cookie = |answer: &Response| -> Option<(&str, String)> {
        let (pair, _) = answer.header("set-cookie")?.split_once(';')?;
        Some(("cookie", pair.to_owned()))
    };
    let header = |answer: &Response| Some(("x-seat", answer.header("x-seat")?.to_owned()));
    let carriers: [(&str, Token<'_>); 2] = [
        ("{sessionName: seat, type: Cookie}", &cookie),
        ("{sessionName: x-seat, type: Header}", &header),
    ];
    for (session, token) in carriers {
        mesh.apply("traffic.yaml", &route(session))?;
        mesh.soon(session, || {
            let mut pods = BTreeSet::new();
            for _ in 0..12 {
                let first = mesh.ask("client", to, &Ask::get("/"))?;
                let pod = Seen::in_answer(&first)?.pod;
                let (name, value) = token(&first).unwrap_or_default();
                ensure!(!value.is_empty(), "{first:?}");
                for again in answers(&mesh, to, &Ask::get("/").with(name, &value), 6)? {
                    ensure!(Seen::in_answer(&again)?.pod == pod, "{again:?}");
                }
                pods.insert(pod);
            }
            ensure!(pods.len() == 2, "{pods:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn destination_rule_limits_requests() -> Result<()> {
    let (mesh, _) = shop_with(&rule(
        "connectionPool: {http: {http2MaxRequests: 2, http1MaxPendingRequests: 1}}",
    ))?;
    let to = mesh.at("echo", 7070)?;
    let asks: Vec<Ask> = (0..12)
        .map(|_| Ask::get("/").wishing("delay=300"))
        .collect();
    mesh.soon("some of twelve at once are too many", || {
        let answers = mesh
            .pod("client")?
            .run(|| Ok(h2c::Connection::open(to)?.ask_at_once(&asks)))?;
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        let refused: Vec<&Response> = answers
            .iter()
            .filter(|answer| answer.status == 503)
            .collect();
        ensure!(
            !refused.is_empty() && refused.len() < 12,
            "{} refused",
            refused.len()
        );
        let overloaded = |answer: &&Response| answer.header("x-envoy-overloaded").is_some();
        ensure!(refused.iter().all(overloaded), "{refused:?}");
        Ok(())
    })?;
    mesh.counts("503", "UO")?;
    // What was in use is free again.
    mesh.seen("client", to, &Ask::get("/")).map(drop)
}

#[test]
fn destination_rule_limits_connections() -> Result<()> {
    let manifests =
        rule("connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 2}}");
    let (mesh, _) = shop_with(&manifests.replace("host: echo.", "host: echo-v1."))?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let slow = Ask::get("/").wishing("delay=200");
    mesh.soon("one has the connection, two wait for it", || {
        let before = mesh.workload("echo-v1")?.connections();
        let answers = at_once(&mesh, to, &slow, 8)?;
        let with = |status| {
            answers
                .iter()
                .filter(|answer| answer.status == status)
                .count()
        };
        let opened = mesh.workload("echo-v1")?.connections() - before;
        ensure!(
            with(200) >= 2 && with(503) >= 4,
            "{} are answered",
            with(200)
        );
        ensure!(with(200) + with(503) == 8, "{answers:?}");
        // One for each worker of the agent.
        ensure!(opened <= 2, "{opened} connections");
        Ok(())
    })
}

#[test]
fn destination_rule_limits_requests_per_connection() -> Result<()> {
    let manifests = rule("connectionPool: {http: {maxRequestsPerConnection: 2}}");
    let (mesh, _) = shop_with(&manifests.replace("host: echo.", "host: echo-v1."))?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    mesh.soon("every other request has a new connection", || {
        let before = mesh.workload("echo-v1")?.connections();
        answers(&mesh, to, &Ask::get("/"), 20)?;
        let opened = mesh.workload("echo-v1")?.connections() - before;
        // A request that comes before the last connection is seen to be free takes another one.
        ensure!((9..=13).contains(&opened), "{opened} connections");
        Ok(())
    })
}

#[test]
fn destination_rule_ejects_outliers() -> Result<()> {
    let (mesh, to) = shop_with(&rule(
        "{outlierDetection: {consecutive5xxErrors: 3, interval: 100ms, baseEjectionTime: 3s, maxEjectionPercent: 50}, \
         loadBalancer: {localityLbSetting: {enabled: false}}}",
    ))?;
    mesh.soon_at_layer7("client", to, true)?;
    let both = BTreeSet::from(["echo-v1".to_owned(), "echo-v2".to_owned()]);
    let used = || -> Result<BTreeSet<String>> {
        Ok(pods(&mesh, to, &Ask::get("/"), 20)?.into_keys().collect())
    };
    // Requests that fail at whichever endpoint gets them, until only one gets any.
    let failing = Ask::get("/").wishing("status=500");
    eventually(
        "one endpoint is left alone",
        Duration::from_secs(10),
        || {
            answers(&mesh, to, &failing, 10)?;
            let used = used()?;
            ensure!(used.len() == 1, "{used:?}");
            Ok(())
        },
    )?;
    // Half of two is one: the other one is kept however it answers.
    answers(&mesh, to, &failing, 10)?;
    ensure!(used()?.len() == 1);
    eventually("it comes back", Duration::from_secs(15), || {
        let used = used()?;
        ensure!(used == both, "{used:?}");
        Ok(())
    })
}

#[test]
fn destination_rule_ejects_endpoints_that_do_not_answer() -> Result<()> {
    let (mut mesh, to) = shop_with(&rule(
        "{outlierDetection: {consecutiveGatewayErrors: 2, consecutive5xxErrors: 0, interval: 100ms, baseEjectionTime: \
         30s, maxEjectionPercent: 50}, loadBalancer: {localityLbSetting: {enabled: false}}}",
    ))?;
    mesh.soon_at_layer7("client", to, true)?;
    // Errors of an application are none of a gateway.
    answers(&mesh, to, &Ask::get("/").wishing("status=500"), 20)?;
    let used = pods(&mesh, to, &Ask::get("/"), 20)?;
    ensure!(used.len() == 2, "{used:?}");
    // It stops to listen, and nobody has told the mesh.
    mesh.end_workload("echo-v2");
    eventually("the other one gets all", Duration::from_secs(10), || {
        let used = pods(&mesh, to, &Ask::get("/"), 20)?;
        ensure!(used.len() == 1, "{used:?}");
        Ok(())
    })
}

#[test]
fn destination_rule_limits_retries() -> Result<()> {
    few_retries("connectionPool: {http: {maxRetries: 1}}")
}

#[test]
fn a_retry_budget_limits_retries() -> Result<()> {
    few_retries("retryBudget: {percent: 0, minRetryConcurrency: 1}")
}

/// Of six requests at once that all fail, one may be tried again at a time.
fn few_retries(policy: &str) -> Result<()> {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: again\n  namespace: \
                 shop\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: echo}]\n  rules:\n  - retry: {codes: \
                 [503], attempts: 3, backoff: 10ms}\n    backendRefs: [{name: echo, port: 80}]\n---\n";
    let few = rule(policy);
    let (mesh, to) = shop_with(&[route, &few].concat())?;
    let failing = Ask::get("/").wishing("status=503,delay=100");
    mesh.soon("some give up sooner than others", || {
        let before = requests(&mesh)?;
        let answers = at_once(&mesh, to, &failing, 6)?;
        ensure!(
            answers.iter().all(|answer| answer.status == 503),
            "{answers:?}"
        );
        // All tries of all requests would be 24.
        let tries = requests(&mesh)? - before;
        ensure!((7..24).contains(&tries), "{tries} tries");
        Ok(())
    })?;
    mesh.counts("503", "UO")
}

/// How many requests the shop's endpoints have got.
fn requests(mesh: &EchoMesh) -> Result<usize> {
    let (one, two) = (mesh.workload("echo-v1")?, mesh.workload("echo-v2")?);
    Ok(one.requests() + two.requests())
}

#[test]
fn destination_rule_holds_for_bytes() -> Result<()> {
    let mut mesh = EchoMesh::shop()?;
    let ports = "  - {name: tcp, port: 9090, targetPort: 9090}\n";
    mesh.service_with("shop", "echo", "{}", "{app: echo}", ports)?;
    mesh.apply("traffic.yaml", &rule("loadBalancer: {simple: ROUND_ROBIN}"))?;
    // Says which it is, and stays until its client goes.
    let tell = |number: &'static [u8]| {
        move |mut stream: &TcpStream| {
            stream.write_all(number)?;
            net::read_to_end(stream).map(drop)
        }
    };
    let servers = [("echo-v1", b"1"), ("echo-v2", b"2")].map(|(pod, number)| {
        Server::start(mesh.pod(pod)?, Ipv6Addr::UNSPECIFIED, 9090, tell(number))
    });
    let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let to = mesh.at("echo", 9090)?;
    let reached = || {
        mesh.pod("client")?.run(|| {
            let connection = net::connect(to)?;
            let number = net::read_exactly(&connection, 1)?;
            Ok((connection, number))
        })
    };
    let numbers = || (0..8).map(|_| Ok(reached()?.1)).collect::<Result<Vec<_>>>();
    mesh.soon("connections take turns", || {
        let numbers = numbers()?;
        let alternate = numbers.windows(2).all(|two| two[0] != two[1]);
        ensure!(alternate, "{numbers:?}");
        Ok(())
    })?;
    mesh.apply(
        "traffic.yaml",
        &rule("loadBalancer: {consistentHash: {useSourceIp: true}}"),
    )?;
    mesh.soon("the client has one endpoint", || {
        let numbers: BTreeSet<_> = numbers()?.into_iter().collect();
        ensure!(numbers.len() == 1, "{numbers:?}");
        Ok(())
    })?;
    mesh.apply(
        "traffic.yaml",
        &rule("connectionPool: {tcp: {maxConnections: 2}}"),
    )?;
    // Once is enough: the places of those that went away are free a moment later.
    let third = "a third connection is one too many";
    eventually(third, Duration::from_secs(10), || {
        let held = (reached()?, reached()?);
        ensure!(reached().is_err(), "it is let in");
        drop(held);
        Ok(())
    })
}

#[test]
fn destination_rule_ends_a_silent_connect() -> Result<()> {
    let entry = |address: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: silent\n  namespace: shop\nspec:\n  \
             hosts: [silent.example.com]\n  addresses: [240.240.9.9]\n  ports: [{{number: 80, name: http, protocol: \
             HTTP}}]\n  resolution: STATIC\n  location: MESH_EXTERNAL\n  endpoints: [{{address: {address}}}]\n---\n"
        )
    };
    let soon = rule("connectionPool: {tcp: {connectTimeout: 200ms}}").replace(
        "host: echo.shop.svc.cluster.local",
        "host: silent.example.com",
    );
    // An address of node b's pods that none of them has: its node asks for it for seconds.
    let (mesh, _) = shop_with(&[&entry("10.244.2.250"), &*soon].concat())?;
    let to = SocketAddr::from(([240, 240, 9, 9], 80));
    mesh.soon("the agent knows the host", || {
        let config = mesh.lab.agent("a")?.get(15000, "/config_dump")?.text();
        ensure!(config.contains("silent.example.com"), "it does not");
        Ok(())
    })?;
    // One answer in time is enough: without the rule's limit each would take three times ten seconds.
    let patience = Duration::from_secs(20);
    eventually("the answer does not wait for the network", patience, || {
        let begun = Instant::now();
        let answer = mesh.ask("client", to, &Ask::get("/"))?;
        ensure!(answer.status == 503, "{answer:?}");
        let took = begun.elapsed();
        let tries = Duration::from_millis(3 * 200);
        ensure!((tries / 3..tries * 2).contains(&took), "{took:?}");
        Ok(())
    })
}
