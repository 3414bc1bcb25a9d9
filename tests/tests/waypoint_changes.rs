//! How soon changes are in force, on every worker, and that nothing is dropped for them.
//!
//! A machine that runs tests does other things besides, which make a change late and never early. So of several changes the
//! median counts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::echo::EchoMesh;
use e2e::lab::{Agent, Pod, eventually};
use e2e::net::http::{Ask, Conversation};
use e2e::traffic::{Connections, Outcome, Traffic};

/// More than one, on whatever machine.
const WORKERS: usize = 2;
/// Within this a change has to be in force.
const IN_FORCE: Duration = Duration::from_millis(50);

/// Waits until each worker of an agent follows the mesh that the agent knows.
fn every_worker_follows(agent: &Agent) -> Result<()> {
    let what = format!("every worker of node {} follows", agent.node());
    eventually(&what, Duration::from_secs(5), || {
        let known = agent.metric("culvert_snapshot_generation", &[])?;
        for worker in 0..WORKERS {
            let label = format!("worker=\"{worker}\"");
            let follows = agent.metric("culvert_worker_generation", &[&label])?;
            // Both are whole numbers.
            ensure!(
                (follows - known).abs() < 0.5,
                "worker {worker}: {follows}, not {known}"
            );
        }
        Ok(())
    })
}

/// Both agents have taken so many changes over, and have been in time with most of them: from the first news of the file until
/// the last of their workers followed.
///
/// The agent measures that itself: a client sees its own connection's worker only, and its own waiting besides.
fn every_worker_was_in_time(mesh: &EchoMesh, changes: u32) -> Result<()> {
    for node in ["a", "b"] {
        let agent = mesh.lab.agent(node)?;
        every_worker_follows(agent)?;
        let count = |metric: &str, labels: &[&str]| {
            agent.metric(&format!("culvert_change_duration_seconds_{metric}"), labels)
        };
        let in_time = count("bucket", &["le=\"0.05\""])?;
        let all = count("count", &[])?;
        ensure!(
            in_time > all / 2.0 && all >= f64::from(changes),
            "{in_time} of {all} changes were in time at node {node}, {} s each",
            count("sum", &[])? / all
        );
    }
    Ok(())
}

/// As seen by one client each, from before the file is written, changes were in force in time.
fn were_in_time(mut took: Vec<Duration>) -> Result<()> {
    took.sort_unstable();
    ensure!(took[took.len() / 2] < IN_FORCE, "they took {took:?}");
    Ok(())
}

/// A request that the application has begun to answer, and that goes on.
struct Begun(Conversation);

impl Begun {
    /// For what will be closed.
    fn request(client: &Pod, to: SocketAddr) -> Result<Self> {
        client.run(|| {
            let conversation = Conversation::open(to)?;
            conversation.write(
                b"POST /closed HTTP/1.1\r\nHost: echo\r\nX-Echo: stream\r\nTransfer-Encoding: chunked\r\n\r\n\
                  5\r\nfirst\r\n",
            )?;
            let mut begun = Self(conversation);
            let head = begun.read_until("first\r\n")?;
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            Ok(begun)
        })
    }

    /// Sends the rest, and has all of it back.
    fn end(&mut self) -> Result<()> {
        self.0.write(b"4\r\nlast\r\n0\r\n\r\n")?;
        let rest = self.read_until("0\r\n\r\n")?;
        ensure!(rest.contains("last"), "{rest}");
        Ok(())
    }

    fn read_until(&mut self, end: &str) -> Result<String> {
        let mut text = String::new();
        while !text.ends_with(end) {
            let byte = self.0.read(1);
            let byte = byte.with_context(|| format!("after {text:?}"))?;
            text.push_str(&String::from_utf8_lossy(&byte));
        }
        Ok(text)
    }
}

#[test]
fn a_route_change_is_in_force_within_50_ms_and_drops_nothing() -> Result<()> {
    let mesh = EchoMesh::shop_with(&["--workers", &WORKERS.to_string()])?;
    let to = mesh.at("echo", 80)?;
    let route = |backend: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: echo\n  namespace: shop\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n  - backendRefs: [{{name: \
             {backend}, port: 80}}]\n"
        )
    };
    let pod_is = |pod: &str| {
        let seen = mesh.seen("client", to, &Ask::get("/"))?;
        ensure!(seen.pod == pod, "{} answers", seen.pod);
        Ok(())
    };
    mesh.apply("route.yaml", &route("echo-v1"))?;
    mesh.soon("the first route", || pod_is("echo-v1"))?;
    let client = mesh.pod("client")?;
    let traffic = [Connections::Kept, Connections::New]
        .map(|connections| Traffic::start(client, to, Ask::get("/"), connections));
    let mut took = Vec::new();
    for round in 0..6 {
        let backend = if round % 2 == 0 { "echo-v2" } else { "echo-v1" };
        // What has begun is answered by whom it began with.
        let mut in_flight = Begun::request(client, to)?;
        let begun = Instant::now();
        mesh.apply("route.yaml", &route(backend))?;
        eventually(backend, Duration::from_secs(5), || pod_is(backend))?;
        took.push(begun.elapsed());
        mesh.soon(backend, || pod_is(backend))?;
        in_flight.end()?;
    }
    were_in_time(took)?;
    every_worker_was_in_time(&mesh, 6)?;
    traffic
        .map(Traffic::end)
        .iter()
        .try_for_each(Outcome::all_good)
}

#[test]
fn a_policy_change_is_in_force_on_every_worker_within_50_ms_and_drops_nothing() -> Result<()> {
    const ROUNDS: u32 = 6;
    let mesh = EchoMesh::shop_with(&["--workers", &WORKERS.to_string()])?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    let policy = |path: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: closed\n  namespace: shop\n\
             spec:\n  targetRefs: [{{kind: Service, group: \"\", name: echo-v1}}]\n  action: DENY\n  rules: [{{to: \
             [{{operation: {{paths: [{path}]}}}}]}}]\n"
        )
    };
    mesh.apply("policy.yaml", &policy("/elsewhere"))?;
    let client = mesh.pod("client")?;
    let traffic = [Connections::Kept, Connections::New]
        .map(|connections| Traffic::start(client, to, Ask::get("/open"), connections));
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        let (path, status) = if round % 2 == 0 {
            ("/closed", 403)
        } else {
            ("/elsewhere", 200)
        };
        // Of those that are kept, each goes to a worker by chance.
        let mut kept = client.run(|| {
            (0..8)
                .map(|_| Conversation::open(to))
                .collect::<Result<Vec<_>>>()
        })?;
        // What has been allowed is answered, whatever is decided meanwhile.
        let mut in_flight = (status == 403)
            .then(|| Begun::request(client, to))
            .transpose()?;
        let is_in_force = |conversation: &mut Conversation| {
            let answer = conversation.ask(&Ask::get("/closed"))?;
            ensure!(answer.status == status, "{}", answer.status);
            Ok(())
        };
        let begun = Instant::now();
        mesh.apply("policy.yaml", &policy(path))?;
        let [first, others @ ..] = kept.as_mut_slice() else {
            anyhow::bail!("no connection");
        };
        eventually(path, Duration::from_secs(5), || is_in_force(first))?;
        took.push(begun.elapsed());
        for node in ["a", "b"] {
            every_worker_follows(mesh.lab.agent(node)?)?;
        }
        // From here on there is no waiting, whichever worker has the connection.
        others.iter_mut().try_for_each(is_in_force)?;
        in_flight.as_mut().map(Begun::end).transpose()?;
    }
    were_in_time(took)?;
    every_worker_was_in_time(&mesh, ROUNDS)?;
    traffic
        .map(Traffic::end)
        .iter()
        .try_for_each(Outcome::all_good)
}
