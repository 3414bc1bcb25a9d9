//! Who may speak with whom, at L4: AuthorizationPolicy and PeerAuthentication, enforced on proven identities.

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::lab::{Lab, Pod, PodSpec, eventually};
use e2e::net;
use e2e::net::serve::{Server, echo, page};
use e2e::scenario::{Pair, echoes, errno_towards};

const PORT: u16 = 7000;
const OTHER_PORT: u16 = 7001;
/// How soon the issue promises that a change holds.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A mesh in which three callers of different rights meet one server.
struct Court {
    lab: Lab,
    /// `app/client`, on the server's own node and on the other one.
    clients: [Pod; 2],
    /// Another namespace, another account.
    stranger: Pod,
    /// Outside the mesh.
    outside: Pod,
    server: Pod,
    _servers: [Server; 2],
}

impl Court {
    fn new() -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let far = lab.pod("a", "client")?;
        let near = lab.add(&PodSpec::new("b", "client-near").as_account("client"))?;
        let stranger = lab.add(&PodSpec::new("a", "stranger").in_namespace("elsewhere"))?;
        let outside = lab.add(&PodSpec::new("a", "outside").uncaptured())?;
        let server = lab.add(&PodSpec::new("b", "server").with_label("tier", "back"))?;
        lab.start()?;
        let serve = |port| Server::start(&server, Ipv6Addr::UNSPECIFIED, port, echo);
        let servers = [serve(PORT)?, serve(OTHER_PORT)?];
        Ok(Self {
            lab,
            clients: [far, near],
            stranger,
            outside,
            server,
            _servers: servers,
        })
    }

    /// Replaces the policy and waits until both nodes have it.
    fn decree(&self, row: usize, policy: &str) -> Result<()> {
        let name = format!("row-{row}");
        let (namespace, body) = policy
            .split_once('\n')
            .context("namespace, then the spec")?;
        let spec: String = body
            .lines()
            .map(|line| format!("  {line}\n"))
            .collect::<Vec<_>>()
            .concat();
        let annotations = if namespace.ends_with(" dry-run") {
            "  annotations:\n    istio.io/dry-run: \"true\"\n"
        } else {
            ""
        };
        let namespace = namespace.trim_end_matches(" dry-run");
        self.lab.manifests().apply(
            "policy.yaml",
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  \
                 namespace: {namespace}\n{annotations}spec:\n{spec}"
            ),
        )?;
        for node in ["a", "b"] {
            eventually(
                &format!("node {node} has {name}"),
                Duration::from_secs(5),
                || {
                    let policies = self.lab.agent(node)?.config_dump()?["policies"].to_string();
                    ensure!(policies.contains(&format!("\"{name}\"")), "{policies}");
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    fn may(&self, pod: &Pod, port: u16) -> Result<bool> {
        let to = SocketAddr::new(self.server.v4(), port);
        pod.run(|| {
            match net::connect(to)
                .map_err(Into::into)
                .and_then(|stream| echoes(&stream, "let me in"))
            {
                Ok(()) => Ok(true),
                Err(error) => {
                    // A refusal is a reset or an end, not silence.
                    let text = format!("{error:#}");
                    ensure!(
                        !text.contains("temporarily") && !text.contains("timed out"),
                        "neither yes nor no: {text}"
                    );
                    Ok(false)
                }
            }
        })
    }
}

/// A policy and who may pass: client far, client near, stranger, outside; all on PORT, then client on the other port.
type Row = (&'static str, [bool; 5]);

/// The first line is the namespace; what follows is the spec.
const ROWS: [Row; 26] = [
    // No rule: ALLOW of nothing refuses all, DENY of nothing refuses none.
    ("app\naction: ALLOW", [false, false, false, false, false]),
    ("app\naction: DENY", [true, true, true, true, true]),
    ("app\n{}", [false, false, false, false, false]),
    // One empty rule matches everybody.
    (
        "app\naction: ALLOW\nrules:\n- {}",
        [true, true, true, true, true],
    ),
    (
        "app\naction: DENY\nrules:\n- {}",
        [false, false, false, false, false],
    ),
    // Principals: exact, prefix, suffix, presence.
    (
        "app\nrules:\n- from:\n  - source:\n      principals: [cluster.local/ns/app/sa/client]",
        [true, true, false, false, true],
    ),
    (
        "app\nrules:\n- from:\n  - source:\n      principals: [\"cluster.local/ns/app/*\"]",
        [true, true, false, false, true],
    ),
    (
        "app\nrules:\n- from:\n  - source:\n      principals: [\"*/sa/stranger\"]",
        [false, false, true, false, false],
    ),
    (
        "app\nrules:\n- from:\n  - source:\n      principals: [\"*\"]",
        [true, true, true, false, true],
    ),
    (
        "app\naction: DENY\nrules:\n- from:\n  - source:\n      principals: [cluster.local/ns/app/sa/client]",
        [false, false, true, true, false],
    ),
    // The not-form of principals holds for a peer without identity.
    (
        "app\nrules:\n- from:\n  - source:\n      notPrincipals: [cluster.local/ns/app/sa/client]",
        [false, false, true, true, false],
    ),
    // Namespaces and their not-form.
    (
        "app\nrules:\n- from:\n  - source:\n      namespaces: [elsewhere]",
        [false, false, true, false, false],
    ),
    (
        "app\naction: DENY\nrules:\n- from:\n  - source:\n      notNamespaces: [app]",
        [true, true, false, false, true],
    ),
    // Service accounts, with and without namespace.
    (
        "app\nrules:\n- from:\n  - source:\n      serviceAccounts: [app/client]",
        [true, true, false, false, true],
    ),
    (
        "app\nrules:\n- from:\n  - source:\n      serviceAccounts: [client]",
        [true, true, false, false, true],
    ),
    (
        "app\nrules:\n- from:\n  - source:\n      notServiceAccounts: [elsewhere/stranger]",
        [true, true, false, true, true],
    ),
    // Addresses: pods of node a, and all but them.
    (
        "app\nrules:\n- from:\n  - source:\n      ipBlocks: [10.244.1.0/24]",
        [true, false, true, true, true],
    ),
    (
        "app\nrules:\n- from:\n  - source:\n      notIpBlocks: [10.244.1.0/24]",
        [false, true, false, false, false],
    ),
    // Ports and their not-form.
    (
        "app\nrules:\n- to:\n  - operation:\n      ports: [\"7001\"]",
        [false, false, false, false, true],
    ),
    (
        "app\naction: DENY\nrules:\n- to:\n  - operation:\n      notPorts: [\"7000\"]",
        [true, true, true, true, false],
    ),
    // AND across from and to, OR across rules.
    (
        "app\nrules:\n- from:\n  - source:\n      namespaces: [elsewhere]\n  to:\n  - operation:\n      ports: \
         [\"7000\"]\n- from:\n  - source:\n      principals: [\"*/sa/client\"]\n  to:\n  - operation:\n      ports: \
         [\"7001\"]",
        [false, false, true, false, true],
    ),
    // Conditions.
    (
        "app\nrules:\n- when:\n  - key: source.namespace\n    values: [app]",
        [true, true, false, false, true],
    ),
    // A rule with an HTTP field allows nothing at L4, and denies with that field ignored.
    (
        "app\nrules:\n- to:\n  - operation:\n      methods: [GET]",
        [false, false, false, false, false],
    ),
    (
        "app\naction: DENY\nrules:\n- from:\n  - source:\n      namespaces: [elsewhere]\n  to:\n  - operation:\n      \
         methods: [POST]",
        [true, true, false, true, true],
    ),
    // The root namespace speaks for the whole mesh.
    (
        "istio-system\naction: DENY\nrules:\n- from:\n  - source:\n      namespaces: [elsewhere]",
        [true, true, false, true, true],
    ),
    // Evaluated, reported, never enforced.
    (
        "app dry-run\naction: DENY\nrules:\n- {}",
        [true, true, true, true, true],
    ),
];

#[test]
fn each_policy_row_allows_and_denies_whom_it_says() -> Result<()> {
    let court = Court::new()?;
    let [far, near] = &court.clients;
    let callers = [
        (far, PORT),
        (near, PORT),
        (&court.stranger, PORT),
        (&court.outside, PORT),
        (far, OTHER_PORT),
    ];
    for (row, (policy, expected)) in ROWS.iter().enumerate() {
        court.decree(row, policy)?;
        for ((pod, port), expected) in callers.iter().zip(expected) {
            let passes = court.may(pod, *port)?;
            let who = &pod.spec().name;
            ensure!(
                passes == *expected,
                "row {row}: {who} to port {port} passes: {passes}\n{policy}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_selector_limits_a_policy_to_the_pods_that_it_selects() -> Result<()> {
    let court = Court::new()?;
    let [far, _] = &court.clients;
    for (row, (tier, passes)) in [("back", false), ("front", true), ("back", false)]
        .iter()
        .enumerate()
    {
        let policy = format!(
            "app\nselector:\n  matchLabels:\n    tier: {tier}\naction: DENY\nrules:\n- {{}}"
        );
        court.decree(row, &policy)?;
        ensure!(court.may(far, PORT)? == *passes, "{tier}");
    }
    Ok(())
}

#[test]
fn deny_wins_over_allow() -> Result<()> {
    let court = Court::new()?;
    let [far, _] = &court.clients;
    let text = |name: &str, action: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: app\n\
             spec:\n  action: {action}\n  rules:\n  - {{}}\n"
        )
    };
    let both = format!(
        "{}---\n{}",
        text("everybody", "ALLOW"),
        text("nobody", "DENY")
    );
    court.lab.manifests().apply("policy.yaml", &both)?;
    eventually("the denial holds", AT_ONCE, || {
        ensure!(!court.may(far, PORT)?, "still allowed");
        Ok(())
    })?;
    court
        .lab
        .manifests()
        .apply("policy.yaml", &text("everybody", "ALLOW"))?;
    eventually("without it everybody may", AT_ONCE, || {
        ensure!(court.may(far, PORT)?, "still denied");
        Ok(())
    })
}

#[test]
fn a_change_closes_live_connections_within_a_second() -> Result<()> {
    let court = Court::new()?;
    let [far, near] = &court.clients;
    let connect = |pod: &Pod| {
        let to = SocketAddr::new(court.server.v4(), PORT);
        let stream = pod.run(|| Ok(net::connect(to)?))?;
        echoes(&stream, "while it is allowed")?;
        Ok::<_, anyhow::Error>(stream)
    };
    let doomed = [connect(far)?, connect(near)?];
    let spared = connect(&court.stranger)?;
    court.lab.manifests().apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: no-client\n  namespace: app\n\
         spec:\n  action: DENY\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/app/sa/client]\n",
    )?;
    end_within_a_second(&doomed)?;
    echoes(&spared, "whoever kept the right keeps the connection")
}

/// The connections end before a second has passed since now, and take no more bytes.
fn end_within_a_second(doomed: &[TcpStream]) -> Result<()> {
    let deadline = Instant::now() + AT_ONCE;
    for mut stream in doomed {
        let left = deadline.saturating_duration_since(Instant::now());
        // A timeout of nothing would be none at all.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match net::read_to_end(stream) {
            Ok(_) => {}
            Err(error) if format!("{error:#}").contains("reset") => {}
            Err(error) => bail!("it still lives: {error:#}"),
        }
        ensure!(
            stream
                .write_all(b"x")
                .and_then(|()| stream.write_all(b"y"))
                .is_err(),
            "it still takes bytes"
        );
    }
    Ok(())
}

#[test]
fn strict_ends_live_plaintext_within_a_second() -> Result<()> {
    let court = Court::new()?;
    let [far, _] = &court.clients;
    let connect = |pod: &Pod| {
        let to = SocketAddr::new(court.server.v4(), PORT);
        let stream = pod.run(|| Ok(net::connect(to)?))?;
        echoes(&stream, "while it is allowed")?;
        Ok::<_, anyhow::Error>(stream)
    };
    let (plain, spared) = (connect(&court.outside)?, connect(far)?);
    court.lab.manifests().apply(
        "peer-authentication.yaml",
        &peer_authentication("mtls:\n  mode: STRICT"),
    )?;
    end_within_a_second(&[plain])?;
    echoes(&spared, "mutual TLS satisfies STRICT")
}

#[test]
fn a_pod_that_a_policy_comes_to_select_loses_its_connections_within_a_second() -> Result<()> {
    let court = Court::new()?;
    let [far, _] = &court.clients;
    court.decree(
        0,
        "app\nselector:\n  matchLabels:\n    tier: front\naction: DENY\nrules:\n- {}",
    )?;
    let to = SocketAddr::new(court.server.v4(), PORT);
    let stream = far.run(|| Ok(net::connect(to)?))?;
    echoes(&stream, "a policy for others")?;
    let manifest = court.server.manifest();
    let (label, relabelled) = ("tier: \"back\"", "tier: \"front\"");
    ensure!(manifest.contains(label), "{manifest}");
    court
        .lab
        .manifests()
        .apply(&court.server.file(), &manifest.replace(label, relabelled))?;
    end_within_a_second(&[stream])
}

/// A PeerAuthentication in namespace `app`.
fn peer_authentication(spec: &str) -> String {
    peer_authentication_in("app", spec)
}

fn peer_authentication_in(namespace: &str, spec: &str) -> String {
    let spec: Vec<String> = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: of-{namespace}\n  namespace: \
         {namespace}\nspec:\n{}",
        spec.concat()
    )
}

#[test]
fn the_narrowest_peer_authentication_counts() -> Result<()> {
    const MODES: [Option<&str>; 3] = [None, Some("STRICT"), Some("PERMISSIVE")];
    let court = Court::new()?;
    for mesh in MODES {
        for namespace in MODES {
            let levels = [("istio-system", mesh), ("app", namespace)];
            let documents = levels.iter().filter_map(|(place, mode)| {
                let spec = format!("mtls:\n  mode: {}", (*mode)?);
                Some(peer_authentication_in(place, &spec))
            });
            let text = documents.collect::<Vec<_>>().join("---\n");
            court
                .lab
                .manifests()
                .apply("peer-authentication.yaml", &text)?;
            let takes_plaintext = namespace.or(mesh) != Some("STRICT");
            eventually(
                &format!("mesh {mesh:?}, namespace {namespace:?}"),
                AT_ONCE * 2,
                || {
                    let passes = court.may(&court.outside, PORT)?;
                    ensure!(passes == takes_plaintext, "plaintext passes: {passes}");
                    Ok(())
                },
            )?;
        }
    }
    Ok(())
}

#[test]
fn strict_refuses_plaintext_and_permissive_takes_it() -> Result<()> {
    let court = Court::new()?;
    let [far, _] = &court.clients;
    ensure!(
        court.may(&court.outside, PORT)?,
        "without any PeerAuthentication plaintext is taken"
    );
    // Mode, port-level exception (only with a selector), who of the outside gets in on either port.
    let rows = [
        ("mtls:\n  mode: STRICT", [false, false]),
        ("mtls:\n  mode: PERMISSIVE", [true, true]),
        ("mtls:\n  mode: STRICT", [false, false]),
        // DISABLE means nothing to a mesh that always speaks mutual TLS between its own.
        ("mtls:\n  mode: DISABLE", [true, true]),
        (
            "selector:\n  matchLabels:\n    app: server\nmtls:\n  mode: STRICT\nportLevelMtls:\n  7001:\n    mode: PERMISSIVE",
            [false, true],
        ),
        (
            "selector:\n  matchLabels:\n    app: server\nmtls:\n  mode: PERMISSIVE\nportLevelMtls:\n  7001:\n    mode: STRICT",
            [true, false],
        ),
    ];
    for (spec, expected) in rows {
        court
            .lab
            .manifests()
            .apply("peer-authentication.yaml", &peer_authentication(spec))?;
        for (port, expected) in [PORT, OTHER_PORT].into_iter().zip(expected) {
            eventually(spec, AT_ONCE * 2, || {
                ensure!(
                    court.may(&court.outside, port)? == expected,
                    "outside to {port}: not {expected}"
                );
                Ok(())
            })?;
            ensure!(
                court.may(far, port)?,
                "whoever comes with mutual TLS always passes: {spec}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_probe_from_the_node_passes_under_strict() -> Result<()> {
    let court = Court::new()?;
    court.lab.manifests().apply(
        "peer-authentication.yaml",
        &peer_authentication("mtls:\n  mode: STRICT"),
    )?;
    eventually("STRICT holds", AT_ONCE * 2, || {
        ensure!(!court.may(&court.outside, PORT)?, "plaintext still passes");
        Ok(())
    })?;
    let _http = Server::start(&court.server, Ipv6Addr::UNSPECIFIED, 8080, page("healthy"))?;
    let node = court.lab.node("b")?;
    for address in [court.server.v4(), court.server.v6()] {
        node.netns().run(|| {
            let answer = net::http::get(SocketAddr::new(address, 8080), "probe", "/healthz")?;
            ensure!(
                answer.status == 200 && answer.text() == "healthy",
                "{answer:?}"
            );
            // And a probe of a port where nothing listens fails as it should.
            let closed = errno_towards(SocketAddr::new(address, 4))?;
            ensure!(
                closed == libc::ECONNREFUSED,
                "{}",
                std::io::Error::from_raw_os_error(closed)
            );
            Ok(())
        })?;
    }
    // The other node is no kubelet of this pod.
    let far_node = court.lab.node("a")?;
    let to = SocketAddr::new(court.server.v4(), 8080);
    let refused = far_node
        .netns()
        .run(|| Ok(net::http::get(to, "probe", "/healthz").is_err()))?;
    ensure!(refused, "a probe from another node passed under STRICT");
    Ok(())
}

#[test]
fn a_refusal_names_its_policy_in_log_and_metrics() -> Result<()> {
    let pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), PORT, echo)?;
    pair.lab.manifests().apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody-at-all\n  namespace: app\n\
         spec:\n  action: DENY\n  rules:\n  - {}\n",
    )?;
    let passes = || {
        pair.client
            .run(|| echoes(&net::connect(server.address())?, "let me in"))
            .is_ok()
    };
    eventually("the policy holds", AT_ONCE, || {
        ensure!(!passes(), "still allowed");
        Ok(())
    })?;
    // The one before may have been ended by the policy rather than refused.
    ensure!(!passes(), "a refusal stays one");
    eventually("the log says why", Duration::from_secs(5), || {
        let log = pair.lab.agent("b")?.log()?;
        ensure!(log.contains("nobody-at-all"), "not a word of the policy");
        Ok(())
    })?;
    // At either end: the server's node judged, the client's was told.
    for (node, reporter) in [("b", "destination"), ("a", "source")] {
        let labels = [
            format!("reporter=\"{reporter}\""),
            "response_flags=\"DENY\"".to_owned(),
        ];
        let labels = labels.each_ref().map(String::as_str);
        let counted = pair
            .lab
            .agent(node)?
            .metric("culvert_connections_refused_total", &labels)?;
        ensure!(counted >= 1.0, "node {node} counts {counted}");
    }
    Ok(())
}
