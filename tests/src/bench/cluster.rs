//! The lab with the planes in it: for each a client, what it calls, and the processes whose cost is measured.

mod layer7;
mod peer;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::load::{GRPC_PORT, HTTP_PORT, STREAM_PORT, TCP_PORT};
use super::machine::family;
use super::plane::Plane;
use super::servers::Program;
use crate::envoy::Envoy;
use crate::lab::{Lab, Pod, PodSpec, eventually};
use crate::net::http::Ask;

/// Kubernetes namespace whose pods have their traffic encrypted within a node too.
const ENCRYPTED: &str = "encrypted";
/// Where Envoy takes what iptables redirects.
const REDIRECTED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15_001);

/// Every plane that is wanted, ready.
pub struct Cluster {
    // Programs go before the lab, which removes their namespaces.
    ends: Vec<End>,
    _servers: Vec<Program>,
    lab: Lab,
}

/// One plane's two ends.
pub(super) struct End {
    pub(super) plane: Plane,
    pub(super) client: Pod,
    /// Where iperf3's server is started.
    pub(super) server: Pod,
    /// What generators call.
    pub(super) address: IpAddr,
    /// What is behind the server's pod, where that is a proxy.
    backends: Vec<Pod>,
    /// Proxies besides agents.
    envoys: Vec<Envoy>,
    peers: Vec<Program>,
}

impl End {
    fn new(plane: &Plane, client: Pod, server: Pod) -> Self {
        Self {
            plane: plane.clone(),
            address: server.v4(),
            client,
            server,
            backends: Vec::new(),
            envoys: Vec::new(),
            peers: Vec::new(),
        }
    }
}

/// Pods of the planes, before anything runs in them.
struct Site<'a> {
    lab: &'a mut Lab,
    servers: Vec<Program>,
}

impl Site<'_> {
    /// A pod from which or to which load goes.
    fn pod(&mut self, spec: &PodSpec) -> Result<Pod> {
        let pod = self.lab.place(spec)?;
        // Else the generator's own port reuse is charged to the data plane.
        pod.netns().sysctl(&[
            ("net/ipv4/tcp_max_tw_buckets", "0"),
            ("net/ipv4/ip_local_port_range", "1024 65535"),
        ])?;
        Ok(pod)
    }

    /// The same, with all servers in it.
    fn server(&mut self, spec: &PodSpec) -> Result<Pod> {
        let pod = self.pod(spec)?;
        self.servers
            .push(Program::nginx(&pod, self.lab.directory())?);
        self.servers.push(Program::own(&pod)?);
        Ok(pod)
    }
}

impl Cluster {
    /// Builds the lab, starts agents, proxies and servers, and makes sure that each plane answers.
    ///
    /// # Errors
    /// If something does not come up, or does not do what it is measured for.
    pub fn new(planes: &[Plane]) -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        declare_namespaces(&lab)?;
        let mut site = Site {
            lab: &mut lab,
            servers: Vec::new(),
        };
        let mut ends = Vec::new();
        for plane in planes {
            ends.push(pods(&mut site, plane)?);
        }
        let servers = site.servers;
        lab.start()?;
        for end in &mut ends {
            let plane = end.plane.clone();
            match plane {
                Plane::Envoy => layer7::start_envoys(&lab, end)?,
                Plane::Iptables => redirect(&lab, end)?,
                Plane::Peer { command, .. } => peer::start(&lab, end, &command)?,
                _ => {}
            }
        }
        let cluster = Self {
            ends,
            _servers: servers,
            lab,
        };
        for end in &cluster.ends {
            cluster.does_what_it_measures(end)?;
        }
        Ok(cluster)
    }

    /// The ends of a plane.
    pub(super) fn end(&self, plane: &Plane) -> Result<&End> {
        let found = self.ends.iter().find(|end| end.plane == *plane);
        found.with_context(|| format!("plane {plane} was not built"))
    }

    /// The processes that a plane's cost is that of.
    pub(super) fn proxies(&self, end: &End) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        if end.plane.is_ours() {
            for node in ["a", "b"] {
                pids.push(self.lab.agent(node)?.pid());
            }
        }
        pids.extend(end.envoys.iter().map(Envoy::pid));
        for peer in &end.peers {
            pids.extend(family(peer.pid()));
        }
        Ok(pids)
    }

    /// Writes a policy that takes no right from the plane's client, and another one each time.
    pub(super) fn change_policy(&self, end: &End, turn: usize) -> Result<()> {
        let (server, client) = (end.server.spec(), end.client.spec());
        let app = server
            .labels
            .get("app")
            .context("a pod without the label `app`")?;
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: changing-{plane}\n  namespace: \
             {namespace}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  rules:\n  - from: [{{source: {{principals: \
             [cluster.local/ns/{from}/sa/{account}, cluster.local/ns/nobody/sa/turn-{turn}]}}}}]\n",
            namespace = server.namespace,
            from = client.namespace,
            account = client.service_account,
            plane = end.plane.name().to_lowercase(),
        );
        self.lab.manifests().apply(&policy_file(&end.plane), &text)
    }

    /// Takes that policy away again.
    pub(super) fn drop_policy(&self, end: &End) -> Result<()> {
        self.lab.manifests().delete(&policy_file(&end.plane))
    }

    /// Each plane answers; those of layer 7 refuse what their policy refuses, those that encrypt show no text on the
    /// link, and those that do not encrypt are not found encrypting.
    fn does_what_it_measures(&self, end: &End) -> Result<()> {
        const SECRET: &str = "a body of the size";
        let to = SocketAddr::new(end.address, HTTP_PORT);
        let expected: &[_] = if end.plane.is_layer7() {
            &[("GET", 200), ("POST", 403)]
        } else {
            &[("GET", 200)]
        };
        for (method, status) in expected {
            let what = format!("{}: {method} to {to}: {status}", end.plane);
            eventually(&what, Duration::from_secs(20), || {
                let answer = end.client.run(|| Ask::new(method, "/").send(to))?;
                ensure!(answer.status == *status, "{}", answer.status);
                Ok(())
            })?;
        }
        if end.plane.is_same_node() {
            return Ok(());
        }
        let sniffer = self.lab.sniff()?;
        end.client.run(|| Ask::new("GET", "/").send(to).map(drop))?;
        let traffic = sniffer.stop()?;
        let is_plain = traffic.contains(SECRET.as_bytes());
        let wants_plain = matches!(end.plane, Plane::None | Plane::Plain | Plane::Iptables);
        match (is_plain, wants_plain) {
            (true, false) => bail!("{} lets text cross the link unencrypted", end.plane),
            (false, true) => bail!("{} does not let text cross the link as it is", end.plane),
            _ => Ok(()),
        }
    }
}

fn policy_file(plane: &Plane) -> String {
    format!("changing-{plane}.yaml")
}

fn declare_namespaces(lab: &Lab) -> Result<()> {
    let captured = |name: &str, annotations: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{istio.io/dataplane-mode: ambient}}\n{annotations}"
        )
    };
    let encrypted = "  annotations: {culvert.dev/same-node: encrypted}\n";
    lab.manifests()
        .apply("namespace-app.yaml", &captured("app", ""))?;
    lab.manifests()
        .apply("namespace-encrypted.yaml", &captured(ENCRYPTED, encrypted))
}

/// Makes a plane's pods, named after it.
fn pods(site: &mut Site<'_>, plane: &Plane) -> Result<End> {
    let name = |role: &str| format!("{}-{role}", plane.name().to_lowercase());
    let spec = |node: &str, role: &str| PodSpec::new(node, &name(role));
    let far = if plane.is_same_node() { "a" } else { "b" };
    let (client, server) = match plane {
        Plane::L7 => return layer7::pods(site, plane),
        Plane::Envoy => return layer7::pods_of_envoys(site, plane),
        Plane::L4 | Plane::SameNode => (spec("a", "client"), spec(far, "server")),
        Plane::SameNodeEncrypted => (
            spec("a", "client").in_namespace(ENCRYPTED),
            spec(far, "server").in_namespace(ENCRYPTED),
        ),
        Plane::Plain => (spec("a", "client"), spec(far, "server").uncaptured()),
        Plane::None | Plane::NoneSameNode | Plane::Iptables | Plane::Peer { .. } => (
            spec("a", "client").uncaptured(),
            spec(far, "server").uncaptured(),
        ),
    };
    let (client, server) = (site.pod(&client)?, site.server(&server)?);
    Ok(End::new(plane, client, server))
}

/// Has iptables send what the client's pod opens to Envoy, which relays it to where it was going.
fn redirect(lab: &Lab, end: &mut End) -> Result<()> {
    end.envoys.push(Envoy::relay(lab, &end.client, REDIRECTED)?);
    let port = REDIRECTED.port().to_string();
    // What Envoy itself opens bears a mark.
    let mark = Envoy::RELAY_MARK.to_string();
    let rule = [
        "-t",
        "nat",
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "!",
        "-o",
        "lo",
        "-m",
        "mark",
        "!",
        "--mark",
        &mark,
        "-j",
        "REDIRECT",
        "--to-ports",
        &port,
    ];
    let mut command = Command::new("iptables");
    let output = end.client.enter(command.args(rule))?.output();
    let output = output.context("iptables is missing: `apt-get install iptables`")?;
    ensure!(
        output.status.success(),
        "iptables: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Ports that a peer has to carry.
pub(super) const CARRIED: [u16; 4] = [HTTP_PORT, GRPC_PORT, TCP_PORT, STREAM_PORT];
