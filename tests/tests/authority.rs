//! Identities in a cluster without an istiod: agents ask the controllers for them, by tokens that a real API server has
//! bound to their pods, and get those of their own node's pods.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::authority::{self, Ask, Mesh, hand_out_tokens};
use e2e::kubelet::{Nodes, SOON};
use e2e::kubernetes::{Istiod, TokenSpec};
use e2e::lab::{Driver, PodSpec, eventually};
use e2e::net;
use e2e::net::http;
use e2e::net::serve::{Server, echo, page};
use e2e::scenario::echoes;
use e2e::traffic::{Connections, Traffic};

const PORT: u16 = 7000;
const SECRET: &str = "nobody on the link may read this";
/// Within this an agent has asked again after the longest waits of these scenarios.
const ASKED_AGAIN: Duration = Duration::from_secs(20);
/// The longest that an agent waits before it asks an authority again that has not answered for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(150);

#[test]
fn istiod_is_asked_as_ztunnel_asks_it() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let client = nodes.create(PodSpec::new("a", "client"))?;
    let server = nodes.create(PodSpec::new("b", "server"))?;
    nodes.run(&client, Driver::Systemd)?;
    nodes.run(&server, Driver::Cgroupfs)?;
    let istiod = Istiod::beside(&nodes.api)?;
    hand_out_tokens(&mut nodes)?;
    let options = istiod.authority_options();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    nodes.lab.agent_options(&options);
    let _server = Server::start(&server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    nodes.lab.start()?;
    let sniffer = nodes.lab.sniff()?;
    let to = SocketAddr::new(server.v4(), PORT);
    client.run(|| echoes(&net::connect(to)?, SECRET))?;
    let traffic = sniffer.stop()?;
    ensure!(
        !traffic.contains(SECRET.as_bytes()),
        "it crossed in the clear"
    );
    ensure!(traffic.tls_records_to(15008) > 0, "nothing went to 15008");
    for (node, pod) in [("a", &client), ("b", &server)] {
        let dump = nodes.lab.agent(node)?.config_dump()?;
        let held = &dump["certificates"];
        ensure!(held[0]["identity"] == pod.identity(), "{held}");
        ensure!(held[0]["state"] == "Available", "{held}");
    }
    Ok(())
}

#[test]
fn agents_ask_for_their_pods_identities_and_carry_traffic_with_them() -> Result<()> {
    let mut mesh = Mesh::new(3600)?;
    let _server = Server::start(&mesh.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    mesh.nodes.lab.start()?;
    let sniffer = mesh.nodes.lab.sniff()?;
    let to = SocketAddr::new(mesh.server.v4(), PORT);
    mesh.client.run(|| echoes(&net::connect(to)?, SECRET))?;
    let traffic = sniffer.stop()?;
    ensure!(
        !traffic.contains(SECRET.as_bytes()),
        "it crossed in the clear"
    );
    ensure!(traffic.tls_records_to(15008) > 0, "nothing went to 15008");
    // Each agent holds its own pod's identity and no other.
    for (node, pod) in [("a", &mesh.client), ("b", &mesh.server)] {
        let held = mesh.serials(node)?;
        let names: Vec<&str> = held.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(names == [pod.identity()], "{names:?}");
        // Who got what is written down where it was issued.
        let log = mesh.controller()?.log()?;
        let said = format!("identity={} node={node}", pod.identity());
        let lines = log
            .lines()
            .filter(|line| line.contains("certificate issued"));
        let (lines, serial) = (lines.filter(|line| line.contains(&said)), &held[0].1);
        ensure!(
            lines.clone().any(|line| line.contains(serial.as_str())),
            "{log}"
        );
    }
    let log = mesh.controller()?.log()?;
    ensure!(!log.contains("PRIVATE KEY"), "a key was logged");
    let issued = mesh
        .controller()?
        .metric("culvert_authority_requests_total", &["outcome=\"issued\""])?;
    ensure!(issued > 1.5, "{issued}");
    Ok(())
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of requests")]
fn whoever_is_no_agent_of_that_node_is_refused() -> Result<()> {
    let mesh = Mesh::new(3600)?;
    let api = &mesh.nodes.api;
    let directory = mesh.nodes.lab.directory().to_owned();
    let token = |name: &str, spec: TokenSpec<'_>| -> Result<String> {
        let file = directory.join(name);
        api.write_token(spec, &file)?;
        Ok(std::fs::read_to_string(&file)?)
    };
    let agent = TokenSpec {
        namespace: "culvert-system",
        account: "culvert-agent",
        pod: Some("culvert-agent-a"),
        audience: "istio-ca",
    };
    api.kubectl(&["create", "serviceaccount", "client", "-n", "app"])?;
    let good = token("good", agent)?;
    let unbound = token("unbound", TokenSpec { pod: None, ..agent })?;
    let audience = "https://kubernetes.default.svc";
    let elsewhere = token("elsewhere", TokenSpec { audience, ..agent })?;
    let pod = TokenSpec {
        namespace: "app",
        account: "client",
        pod: Some("client"),
        audience: "istio-ca",
    };
    let pod = token("pod", pod)?;
    let (client, server) = (mesh.client.identity(), mesh.server.identity());
    let csr = authority::csr(&client)?;
    let other = authority::csr(&server)?;
    let own = Some(client.as_str());
    for (token, identity, csr, status, words) in [
        (Some(good.as_str()), own, &csr, 0, ""),
        // A pod of the other node; nobody's; another mesh's; nobody in particular.
        (
            Some(&good),
            Some(server.as_str()),
            &other,
            7,
            "no pod of spiffe://cluster.local/ns/app/sa/server runs on node a",
        ),
        (
            Some(&good),
            Some("spiffe://cluster.local/ns/app/sa/admin"),
            &csr,
            7,
            "runs on node a",
        ),
        (
            Some(&good),
            Some("spiffe://other/ns/app/sa/client"),
            &csr,
            7,
            "trust domain other",
        ),
        (Some(&good), None, &csr, 3, "names no identity"),
        (Some(&good), Some("client"), &csr, 3, "is not a SPIFFE ID"),
        // Requests that are not what they say.
        (Some(&good), own, &other, 3, "names somebody else"),
        (
            Some(&good),
            own,
            &"nonsense".to_owned(),
            3,
            "cannot be read",
        ),
        // Tokens: none, no token, not bound, for somebody else, of somebody else.
        (None, own, &csr, 16, "no bearer token"),
        (Some("nonsense"), own, &csr, 16, "does not take the token"),
        (Some(&unbound), own, &csr, 7, "not bound to a pod"),
        (Some(&elsewhere), own, &csr, 16, ""),
        (
            Some(&pod),
            own,
            &csr,
            7,
            "service account app/client is no agent's",
        ),
    ] {
        let seconds = 60;
        let answer = mesh.ask(&Ask {
            token,
            identity,
            seconds,
            csr,
        })?;
        ensure!(answer.status == status, "{identity:?}: {answer:?}");
        ensure!(answer.message.contains(words), "{identity:?}: {answer:?}");
        ensure!(answer.chain.is_empty() == (status != 0), "{answer:?}");
    }
    // The pod of a token is gone: so is what it was good for.
    let words = ["delete", "pod", "culvert-agent-a", "-n", "culvert-system"];
    api.kubectl(&[&words[..], &["--force", "--grace-period=0"]].concat())?;
    let gone = eventually(
        "the token of a pod that is gone is refused",
        ASKED_AGAIN,
        || {
            let answer = mesh.ask(&Ask {
                token: Some(&good),
                identity: own,
                seconds: 60,
                csr: &csr,
            })?;
            ensure!(answer.status == 16, "{answer:?}");
            Ok(answer)
        },
    )?;
    ensure!(gone.chain.is_empty(), "{gone:?}");
    let log = mesh.controller()?.log()?;
    for said in [
        "certificate refused",
        r#"account="culvert-system/culvert-agent""#,
    ] {
        ensure!(log.contains(said), "no `{said}` in {log}");
    }
    ensure!(!log.contains(good.as_str()), "a token was logged");
    Ok(())
}

#[test]
fn certificates_outlive_the_authority_and_are_renewed_when_it_is_back() -> Result<()> {
    const LIFE: u32 = 140;
    let mut mesh = Mesh::new(LIFE)?;
    let _server = Server::start(&mesh.server, Ipv6Addr::UNSPECIFIED, PORT, page("hello"))?;
    mesh.nodes.lab.start()?;
    let to = SocketAddr::new(mesh.server.v4(), PORT);
    let ask = http::Ask::get("/").host("server");
    let traffic = Traffic::start(&mesh.client, to, ask, Connections::New);
    mesh.take_controller()?.kill();
    let before = mesh.serials("a")?;
    // Half of their life, and some attempts.
    eventually("renewal fails", Duration::from_secs(95), || {
        let log = mesh.nodes.lab.agent("a")?.log()?;
        ensure!(log.contains("could not be issued"), "it does not");
        Ok(())
    })?;
    ensure!(mesh.serials("a")? == before, "it is another certificate");
    mesh.start_controller(LIFE)?;
    // Attempts are further apart each time, and a controller needs some seconds to start.
    mesh.renewed("a", &before, LONGEST_PAUSE + ASKED_AGAIN)?;
    traffic.end().all_good()
}

/// The mesh trusts nothing but what the controllers hold: a Secret that somebody deletes comes back as it was.
#[test]
fn a_deleted_secret_comes_back_as_it_was() -> Result<()> {
    let mesh = Mesh::new(3600)?;
    let roots = eventually("the roots are published", ASKED_AGAIN, || mesh.published())?;
    let secret = |part: &str| {
        let shown = format!("-o=jsonpath={{{part}}}");
        let words = ["get", "secret", "culvert-ca", "-n", "culvert-system"];
        mesh.nodes.api.kubectl(&[&words[..], &[&shown]].concat())
    };
    let (uid, held) = (secret(".metadata.uid")?, secret(".data")?);
    let made = secret(".metadata.annotations")?;
    ensure!(made.contains("made-by-controller"), "{made}");
    let words = ["delete", "secret", "culvert-ca", "-n", "culvert-system"];
    mesh.nodes.api.kubectl(&words)?;
    eventually("the Secret is back", ASKED_AGAIN, || {
        ensure!(secret(".metadata.uid")? != uid, "it was not deleted");
        Ok(())
    })?;
    ensure!(secret(".data")? == held, "another authority was made");
    ensure!(secret(".metadata.annotations")? == made, "its past is lost");
    ensure!(mesh.published()? == roots, "other roots are published");
    Ok(())
}

/// A root is trusted before anything is signed by it, and until nothing is any more.
#[test]
fn the_root_is_replaced_without_a_failed_connection() -> Result<()> {
    let mut mesh = Mesh::new(10)?;
    let _server = Server::start(&mesh.server, Ipv6Addr::UNSPECIFIED, PORT, page("hello"))?;
    mesh.nodes.lab.start()?;
    let to = SocketAddr::new(mesh.server.v4(), PORT);
    let ask = http::Ask::get("/").host("server");
    let traffic = Traffic::start(&mesh.client, to, ask, Connections::New);
    let first = mesh.published()?;
    let count = |roots: &str| roots.matches("BEGIN CERTIFICATE").count();
    ensure!(count(&first) == 1, "{first}");
    let words = ["annotate", "secret", "culvert-ca", "-n", "culvert-system"];
    let wish = ["culvert.dev/rotate-root=1"];
    mesh.nodes.api.kubectl(&[&words[..], &wish].concat())?;
    let both = eventually("both roots are published", ASKED_AGAIN, || {
        let roots = mesh.published()?;
        ensure!(
            count(&roots) == 2 && roots.contains(first.trim()),
            "{roots}"
        );
        Ok(roots)
    })?;
    mesh.mount_roots()?;
    // Each phase lasts as long as any certificate that was issued before it.
    let last = eventually("only the new root is left", Duration::from_secs(60), || {
        let roots = mesh.published()?;
        ensure!(count(&roots) == 1 && roots != first, "{roots}");
        Ok(roots)
    })?;
    ensure!(both.contains(last.trim()), "another root was published");
    mesh.mount_roots()?;
    let before = mesh.serials("a")?;
    mesh.renewed("a", &before, ASKED_AGAIN)?;
    traffic.end().all_good()
}

/// The one of two controllers that changes the root dies between two of its steps: the other one goes on from there.
#[test]
fn the_root_is_replaced_though_the_leader_dies_on_the_way() -> Result<()> {
    const LIFE: u32 = 10;
    let mut mesh = Mesh::new(LIFE)?;
    eventually("the first controller leads", ASKED_AGAIN, || {
        ensure!(mesh.controller()?.leads()?, "it does not");
        Ok(())
    })?;
    let (_home, second) = mesh.second_controller(LIFE)?;
    let _server = Server::start(&mesh.server, Ipv6Addr::UNSPECIFIED, PORT, page("hello"))?;
    mesh.nodes.lab.start()?;
    let to = SocketAddr::new(mesh.server.v4(), PORT);
    let ask = http::Ask::get("/").host("server");
    let traffic = Traffic::start(&mesh.client, to, ask, Connections::New);
    let first = mesh.published()?;
    let count = |roots: &str| roots.matches("BEGIN CERTIFICATE").count();
    ensure!(count(&first) == 1, "{first}");
    let words = ["annotate", "secret", "culvert-ca", "-n", "culvert-system"];
    let wish = ["culvert.dev/rotate-root=1"];
    mesh.nodes.api.kubectl(&[&words[..], &wish].concat())?;
    let both = eventually("both roots are published", ASKED_AGAIN, || {
        let roots = mesh.published()?;
        ensure!(count(&roots) == 2, "{roots}");
        Ok(roots)
    })?;
    mesh.mount_roots()?;

    ensure!(!second.leads()?, "both lead");
    mesh.take_controller()?.kill();
    // As the kubelet says of a pod whose container has ended.
    mesh.nodes
        .api
        .apply(&mesh.home().manifest_as(false, false))?;
    eventually("the second one leads", ASKED_AGAIN, || {
        ensure!(second.leads()?, "it does not");
        Ok(())
    })?;
    // Not one root more: what was begun is brought to its end.
    let last = eventually("only the new root is left", Duration::from_secs(90), || {
        let roots = mesh.published()?;
        ensure!(count(&roots) == 1 && roots != first, "{roots}");
        Ok(roots)
    })?;
    ensure!(both.contains(last.trim()), "another root was published");
    mesh.mount_roots()?;
    let before = mesh.serials("b")?;
    mesh.renewed("b", &before, ASKED_AGAIN)?;
    traffic.end().all_good()?;
    second.stop()
}

/// Nodes may begin with a taint, ours or the one of Istio's installations: it goes when the node's agent is ready.
#[test]
fn a_nodes_taint_goes_when_its_agent_is_ready() -> Result<()> {
    let mesh = Mesh::new(3600)?;
    let api = &mesh.nodes.api;
    let taints = |node: &str| -> Result<String> {
        api.kubectl(&["get", "node", node, "-o", "jsonpath={.spec.taints[*].key}"])
    };
    for node in ["a", "b"] {
        let words = [
            "culvert.dev/agent-not-ready=:NoSchedule",
            "cni.istio.io/not-ready=:NoExecute",
            "dedicated=db:NoSchedule",
        ];
        api.kubectl(&[&["taint", "node", node][..], &words].concat())?;
    }
    // As when a node comes back: it has an agent of another name.
    let address = mesh.nodes.lab.node("b")?.v4().to_string();
    api.agent_pod("culvert-agent-later", "b", &address)?;
    eventually("the taints of node b are gone", SOON, || {
        // Others' stay, the API server's own for a node that no kubelet has spoken for among them.
        let left = taints("b")?;
        let ours = left.contains("culvert.dev") || left.contains("cni.istio.io");
        ensure!(!ours && left.contains("dedicated"), "{left}");
        Ok(())
    })?;
    eventually("it is told", SOON, || {
        let words = ["get", "events.events.k8s.io", "-n", "default", "-o", "wide"];
        let events = api.kubectl(&words)?;
        ensure!(
            events.contains("AgentReady") && events.contains("node/b"),
            "{events}"
        );
        Ok(())
    })
}
