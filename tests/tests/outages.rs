//! Outages: a part of the mesh is killed under traffic, a policy changes meanwhile, and the part comes back. Nothing crosses
//! the link in the clear, nobody is let in whom a policy refuses, and what was changed holds afterwards. The figures are those
//! of `docs/operations.md`.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::authority::{Mesh, hand_out_tokens};
use e2e::kubelet::{Nodes, SOON};
use e2e::kubernetes::{Definitions, Istiod};
use e2e::lab::{Driver, Pod, PodSpec, Sniffer, eventually};
use e2e::net::http::Ask;
use e2e::net::serve::{Server, page};
use e2e::traffic::{Connections, Outcome, Traffic};
use serde_json::{Value, json};

const PORT: u16 = 7000;
const SECRET: &str = "nobody on the link may read this";
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(10);
/// Answers before an outage, and after it.
const ENOUGH: usize = 50;
/// How soon what was away has to be followed again: the longest wait of an agent whose attempts failed for as long as
/// anything is away here, on two busy cores.
const BACK: Duration = Duration::from_secs(40);
/// The policy's key in the API server's store.
const POLICY_KEY: &str = "/registry/security.istio.io/authorizationpolicies/app/server";

/// Who may call the server.
fn policy(accounts: &[&str]) -> Value {
    let principal = |account: &&str| format!("cluster.local/ns/app/sa/{account}");
    let principals: Vec<_> = accounts.iter().map(principal).collect();
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "server", "namespace": "app" },
        "spec": {
            "selector": { "matchLabels": { "app": "server" } },
            "action": "ALLOW",
            "rules": [{ "from": [{ "source": { "principals": principals } }] }],
        },
    })
}

/// What the policy says from the beginning, and from the outage on.
const AT_FIRST: [&str; 2] = ["client", "guest"];
const LATER: [&str; 2] = ["client", "newcomer"];

/// A server on node b and, on node a, a client that it serves, a guest that it serves until the outage, and a visitor that
/// it never serves.
struct Shop {
    client: Pod,
    guest: Pod,
    visitor: Pod,
    to: SocketAddr,
    _page: Server,
}

impl Shop {
    /// With these two pods, which run. Agents do not yet.
    fn open(nodes: &mut Nodes, client: Pod, server: &Pod) -> Result<Self> {
        nodes.api.install(Definitions::Istio)?;
        let guest = neighbour(nodes, "guest")?;
        let visitor = neighbour(nodes, "visitor")?;
        nodes.api.apply(&policy(&AT_FIRST).to_string())?;
        let page = Server::start(server, Ipv6Addr::UNSPECIFIED, PORT, page(SECRET))?;
        Ok(Self {
            client,
            guest,
            visitor,
            to: SocketAddr::new(server.v4(), PORT),
            _page: page,
        })
    }

    /// With pods of its own.
    fn new(nodes: &mut Nodes) -> Result<Self> {
        let client = neighbour(nodes, "client")?;
        let server = nodes.create(PodSpec::new("b", "server"))?;
        nodes.run(&server, Driver::Cgroupfs)?;
        Self::open(nodes, client, &server)
    }

    /// Starts the agents, and waits until everybody is served who may be.
    fn start(&self, nodes: &mut Nodes) -> Result<()> {
        nodes.lab.start()?;
        eventually("the policy is in force", BACK, || {
            self.ask(&self.client).context("the client")?;
            self.ask(&self.guest).context("the guest")?;
            ensure!(self.ask(&self.visitor).is_err(), "the visitor is let in");
            Ok(())
        })
    }

    fn request() -> Ask {
        Ask::get("/").host("server").with("x-secret", SECRET)
    }

    fn ask(&self, pod: &Pod) -> Result<()> {
        let answer = pod.run(|| Self::request().send(self.to))?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    }

    fn asks(&self, pod: &Pod) -> Traffic {
        Traffic::paced(pod, self.to, Self::request(), Connections::New, PAUSE)
    }

    fn watch(&self, nodes: &Nodes) -> Result<Watch> {
        let watch = Watch {
            link: nodes.lab.sniff()?,
            client: self.asks(&self.client),
            visitor: self.asks(&self.visitor),
        };
        watch.goes_on()?;
        Ok(watch)
    }

    /// Waits until the guest is refused; how long it took from then.
    fn revoked(&self, since: Instant) -> Result<Duration> {
        eventually("the guest is refused", BACK, || {
            ensure!(self.ask(&self.guest).is_err(), "the guest is let in");
            Ok(since.elapsed())
        })
    }
}

/// A pod on node a that runs.
fn neighbour(nodes: &mut Nodes, name: &str) -> Result<Pod> {
    let pod = nodes.create(PodSpec::new("a", name))?;
    nodes.run(&pod, Driver::Systemd)?;
    Ok(pod)
}

/// Traffic before, during and after an outage, and what crosses the link.
struct Watch {
    link: Sniffer,
    client: Traffic,
    visitor: Traffic,
}

impl Watch {
    /// Waits for more of the client's requests to be answered.
    fn goes_on(&self) -> Result<()> {
        let before = self.client.good();
        eventually("the client is served", SOON, || {
            let more = self.client.good() - before;
            ensure!(more >= ENOUGH, "{more} times");
            Ok(())
        })
    }

    /// Ends it; what became of the client's requests.
    fn end(self) -> Result<Outcome> {
        self.goes_on()?;
        let (client, visitor) = (self.client.end(), self.visitor.end());
        let link = self.link.stop()?;
        ensure!(
            visitor.good == 0,
            "the visitor was let in {} times",
            visitor.good
        );
        ensure!(visitor.bad.len() > 10, "the visitor hardly asked");
        ensure!(
            !link.contains(SECRET.as_bytes()),
            "plaintext crossed the link"
        );
        ensure!(
            link.tls_records_to(15008) > ENOUGH,
            "hardly anything crossed it"
        );
        Ok(client)
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the figures of docs/operations.md, with --nocapture"
)]
fn tell(what: &str, away: Duration, client: &Outcome, further: &str) {
    let Outcome { good, bad, silence } = client;
    eprintln!(
        "{what}: away for {away:.1?}, {} of {} requests failed, none was answered for {silence:.1?} at most; {further}",
        bad.len(),
        good + bad.len(),
    );
}

/// Waits until a gauge of both agents is 0.
fn falls(nodes: &Nodes, gauge: &str) -> Result<()> {
    ["a", "b"].iter().try_for_each(|node| {
        let agent = nodes.lab.agent(node)?;
        eventually(&format!("{gauge} of {node} falls"), BACK, || {
            let value = agent.metric(gauge, &[])?;
            ensure!(value < 0.5, "{value}");
            Ok(())
        })
    })
}

#[test]
fn without_the_api_server_traffic_and_policies_stay_as_they_are() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let shop = Shop::new(&mut nodes)?;
    shop.start(&mut nodes)?;
    let words = [
        "get",
        "authorizationpolicy",
        "server",
        "-n",
        "app",
        "-o",
        "json",
    ];
    let mut changed: Value = serde_json::from_str(&nodes.api.kubectl(&words)?)?;
    changed["spec"] = policy(&LATER)["spec"].clone();
    changed["metadata"]["generation"] = json!(2);
    let metadata = changed["metadata"].as_object_mut();
    metadata.context("no metadata")?.remove("resourceVersion");

    let watch = shop.watch(&nodes)?;
    let killed = Instant::now();
    nodes.api.stop()?;
    falls(&nodes, "culvert_kubernetes_reachable")?;
    // The only way to change anything now.
    nodes.api.put([(POLICY_KEY.to_owned(), changed)])?;
    shop.ask(&shop.guest)
        .context("the guest, of whom agents know nothing else yet")?;
    nodes.api.start_again()?;
    let (back, away) = (Instant::now(), killed.elapsed());
    let revoked = shop.revoked(back)?;
    let guest = shop.asks(&shop.guest);
    follow_again(&nodes)?;
    let (client, guest) = (watch.end()?, guest.end());
    ensure!(guest.good == 0, "the guest was let in again");
    let further = format!("the change was in force {revoked:.1?} after it was ready");
    tell("API server", away, &client, &further);
    client.all_good()
}

/// Waits until both agents reach the API server.
fn follow_again(nodes: &Nodes) -> Result<()> {
    ["a", "b"].iter().try_for_each(|node| {
        let agent = nodes.lab.agent(node)?;
        eventually(&format!("agent {node} follows again"), BACK, || {
            let value = agent.metric("culvert_kubernetes_reachable", &[])?;
            ensure!(value > 0.5, "{value}");
            Ok(())
        })
    })
}

#[test]
fn without_istiod_traffic_and_policies_stay_as_they_are() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let shop = Shop::new(&mut nodes)?;
    nodes.api.install(Definitions::GatewayApi)?;
    let mut istiod = Istiod::beside(&nodes.api)?;
    hand_out_tokens(&mut nodes)?;
    let options = [istiod.agent_options(), istiod.authority_options()].concat();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    nodes.lab.agent_options(&options);
    shop.start(&mut nodes)?;

    let watch = shop.watch(&nodes)?;
    let killed = Instant::now();
    istiod.stop()?;
    falls(&nodes, "culvert_istiod_connected")?;
    nodes.api.apply(&policy(&LATER).to_string())?;
    shop.ask(&shop.guest)
        .context("the guest, whom nobody has refused yet")?;
    istiod.start_again()?;
    let (back, away) = (Instant::now(), killed.elapsed());
    let revoked = shop.revoked(back)?;
    let guest = shop.asks(&shop.guest);
    // One whose identity istiod has not issued before: it does again.
    let newcomer = neighbour(&mut nodes, "newcomer")?;
    // Nobody tells the agent of it; it looks for it.
    eventually("the newcomer is found", BACK, || nodes.captured(&newcomer))?;
    eventually("the newcomer is served", BACK, || shop.ask(&newcomer))?;
    let (client, guest) = (watch.end()?, guest.end());
    ensure!(guest.good == 0, "the guest was let in again");
    let further = format!("the change was in force {revoked:.1?} after it was ready");
    tell("istiod", away, &client, &further);
    client.all_good()
}

#[test]
fn without_a_controller_only_new_identities_wait() -> Result<()> {
    const LIFE: u32 = 3600;
    let mut mesh = Mesh::new(LIFE)?;
    let (client, server) = (mesh.client.clone(), mesh.server.clone());
    let shop = Shop::open(&mut mesh.nodes, client, &server)?;
    shop.start(&mut mesh.nodes)?;

    let watch = shop.watch(&mesh.nodes)?;
    let killed = Instant::now();
    mesh.take_controller()?.kill();
    // Policies do not come by way of it.
    mesh.nodes.api.apply(&policy(&LATER).to_string())?;
    let revoked = shop.revoked(Instant::now())?;
    let guest = shop.asks(&shop.guest);
    // Whoever has no identity yet gets none, and is no less captured.
    let newcomer = neighbour(&mut mesh.nodes, "newcomer")?;
    eventually("the newcomer is found", BACK, || {
        mesh.nodes.captured(&newcomer)
    })?;
    eventually("nobody certifies the newcomer", BACK, || {
        let log = mesh.nodes.lab.agent("a")?.log()?;
        let said = log.lines().any(|line| {
            line.contains("could not be issued") && line.contains(&newcomer.identity())
        });
        ensure!(said, "the agent does not say so");
        Ok(())
    })?;
    ensure!(shop.ask(&newcomer).is_err(), "somebody is let in as nobody");
    mesh.start_controller(LIFE)?;
    let (back, away) = (Instant::now(), killed.elapsed());
    let certified = eventually("the newcomer is served", BACK, || {
        shop.ask(&newcomer)?;
        Ok(back.elapsed())
    })?;
    let (client, guest) = (watch.end()?, guest.end());
    ensure!(guest.good == 0, "the guest was let in again");
    let further = format!(
        "a change meanwhile was in force after {revoked:.1?}, a new identity was there {certified:.1?} after it was ready"
    );
    tell("controller", away, &client, &further);
    client.all_good()
}

/// Kills the agent of a node: nothing passes, and from its successor's first moment on what was changed meanwhile holds.
fn without_the_agent_of(node: &str) -> Result<()> {
    let mut nodes = Nodes::new()?;
    let shop = Shop::new(&mut nodes)?;
    shop.start(&mut nodes)?;

    let watch = shop.watch(&nodes)?;
    let killed = Instant::now();
    nodes.lab.take_agent(node)?.kill()?;
    let guest = shop.asks(&shop.guest);
    nodes.api.apply(&policy(&LATER).to_string())?;
    ensure!(
        shop.ask(&shop.client).is_err(),
        "the server was reached without the agent"
    );
    let started = Instant::now();
    nodes.lab.start_agent(node)?;
    eventually("the client is served again", BACK, || {
        shop.ask(&shop.client)
    })?;
    let (served, away) = (started.elapsed(), killed.elapsed());
    nodes.lab.agent(node)?.wait_ready()?;
    let (client, guest) = (watch.end()?, guest.end());
    ensure!(guest.good == 0, "the guest was let in {} times", guest.good);
    ensure!(guest.bad.len() > 10, "the guest hardly asked");
    ensure!(
        !client.bad.is_empty(),
        "no request failed without the agent"
    );
    let further = format!("served {served:.1?} after the start of the next one");
    tell(&format!("agent of node {node}"), away, &client, &further);
    ensure!(client.silence < away + SOON, "{:?}", client.silence);
    Ok(())
}

/// Two at once: the agent has nobody to tell it what holds, so nothing does, and nobody passes.
#[test]
fn an_agent_that_starts_without_the_api_server_lets_nobody_pass() -> Result<()> {
    let mut nodes = Nodes::new()?;
    let shop = Shop::new(&mut nodes)?;
    shop.start(&mut nodes)?;

    let watch = shop.watch(&nodes)?;
    let killed = Instant::now();
    nodes.api.stop()?;
    nodes.lab.take_agent("b")?.kill()?;
    let guest = shop.asks(&shop.guest);
    nodes.lab.start_agent("b")?;
    eventually("it says whom it waits for", SOON, || {
        let told = nodes.lab.node("b")?.culvert(&["status"])?;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        ensure!(told.contains("cannot be reached"), "{told}");
        Ok(())
    })?;
    let ready = nodes.lab.agent("b")?.get(15021, "/healthz/ready")?;
    ensure!(ready.status != 200, "it is ready and knows nothing");
    ensure!(shop.ask(&shop.client).is_err(), "somebody passes");
    let guest = guest.end();
    ensure!(guest.good == 0, "the guest passed {} times", guest.good);
    nodes.api.start_again()?;
    let back = Instant::now();
    eventually("the client is served again", BACK, || {
        shop.ask(&shop.client)
    })?;
    let (served, away) = (back.elapsed(), killed.elapsed());
    let client = watch.end()?;
    let further = format!("served {served:.1?} after the API server was ready");
    tell("API server and agent of node b", away, &client, &further);
    Ok(())
}

#[test]
fn without_the_clients_agent_nothing_passes() -> Result<()> {
    without_the_agent_of("a")
}

#[test]
fn without_the_servers_agent_nothing_passes() -> Result<()> {
    without_the_agent_of("b")
}
