//! Layer 7 across nodes: a route that splits 90/10 and a policy, by two agents, by two Envoys, and by nobody.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{HTTP_PORT, Load, Measured, Server, cpu_time_us, spread};
use crate::envoy::Envoy;
use crate::lab::{Lab, Pod, PodSpec, eventually};
use crate::net::http::Ask;

/// Workers of each Envoy: as many as an agent has on the machines that this is for.
const ENVOY_WORKERS: usize = 2;
/// Address of the service that the mesh's client calls.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// What is asked of requests: the weights of two versions, and that they are GETs of the client.
const WEIGHTS: [u32; 2] = [90, 10];

/// Three clients on node a, each with two versions of a server on node b and something else between.
pub struct Layer7Bench {
    // Dropped before the lab, which removes their namespaces.
    envoys: [Envoy; 2],
    _servers: Vec<Server>,
    clients: [Pod; 3],
    direct_server: Pod,
    lab: Lab,
}

/// What a load did on the three ways, run by run.
#[derive(Clone, Debug, Default)]
pub struct Layer7Comparison {
    /// Without anything between.
    pub direct: Vec<Measured>,
    /// Through two Envoys, and their CPU microseconds per request.
    pub envoys: Vec<(Measured, f64)>,
    /// Through two agents, and their CPU microseconds per request.
    pub mesh: Vec<(Measured, f64)>,
}

impl Layer7Bench {
    /// Builds the lab and starts agents, Envoys and servers.
    ///
    /// # Errors
    /// If something does not come up, or does not refuse what its policy refuses.
    pub fn new() -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let outside = |node: &str, name: &str| PodSpec::new(node, name).uncaptured();
        let direct = lab.add(&outside("a", "direct-client"))?;
        let envoy_client = lab.add(&outside("a", "envoy-client"))?;
        let mesh_client = lab.pod("a", "mesh-client")?;
        let envoy_server = lab.add(&outside("b", "envoy-server"))?;
        let mut servers = Vec::new();
        let mut serve = |lab: &mut Lab, spec: PodSpec| {
            let pod = lab.add(&spec)?;
            servers.push(Server::nginx(&pod, lab.directory())?);
            Ok::<_, anyhow::Error>(pod)
        };
        let direct_server = serve(&mut lab, outside("b", "direct-server"))?;
        let behind_envoy = [
            serve(&mut lab, outside("b", "envoy-v1"))?,
            serve(&mut lab, outside("b", "envoy-v2"))?,
        ];
        for version in ["v1", "v2"] {
            let spec = PodSpec::new("b", &format!("mesh-{version}")).with_label("app", "server");
            serve(&mut lab, spec.with_label("version", version))?;
        }
        for pod in lab.pods() {
            // Else the generator's own port reuse is charged to the data plane.
            pod.netns().sysctl(&[
                ("net/ipv4/tcp_max_tw_buckets", "0"),
                ("net/ipv4/ip_local_port_range", "1024 65535"),
            ])?;
        }
        lab.manifests().apply("layer7.yaml", &manifests())?;
        lab.start()?;
        let backends = behind_envoy.map(|pod| SocketAddr::new(pod.v4(), HTTP_PORT));
        let client = envoy_client.identity();
        let authorizer =
            Envoy::authorizer(&lab, &envoy_server, &client, (&backends, ENVOY_WORKERS))?;
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HTTP_PORT);
        let split = (WEIGHTS.as_slice(), ENVOY_WORKERS);
        let router = Envoy::router(&lab, &envoy_client, local, &envoy_server, split)?;
        let bench = Self {
            envoys: [router, authorizer],
            _servers: servers,
            clients: [direct, envoy_client, mesh_client],
            direct_server,
            lab,
        };
        bench.does_what_it_measures()?;
        Ok(bench)
    }

    /// Both ways let a GET pass and refuse a POST.
    fn does_what_it_measures(&self) -> Result<()> {
        let [_, envoys, mesh] = &self.clients;
        for (client, address) in [(envoys, Ipv4Addr::LOCALHOST), (mesh, SERVICE)] {
            let to = SocketAddr::new(address.into(), HTTP_PORT);
            for (method, status) in [("GET", 200), ("POST", 403)] {
                let what = format!("{method} to {to}: {status}");
                eventually(&what, Duration::from_secs(5), || {
                    let answer = client.run(|| Ask::new(method, "/").send(to))?;
                    ensure!(answer.status == status, "{}", answer.status);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Runs a load on the three ways in turns, `rounds` times on each, for `time` each.
    ///
    /// # Errors
    /// If a run fails or a proxy is gone.
    pub fn compare(&self, load: Load, rounds: usize, time: Duration) -> Result<Layer7Comparison> {
        let [direct, envoys, mesh] = &self.clients;
        let mut comparison = Layer7Comparison::default();
        for _round in 0..rounds {
            let measured = load.run_to(direct, self.direct_server.v4(), time)?;
            comparison.direct.push(measured);
            let pids = [self.envoys[0].pid(), self.envoys[1].pid()];
            let local: IpAddr = Ipv4Addr::LOCALHOST.into();
            let run = || load.run_to(envoys, local, time);
            comparison.envoys.push(with_cpu(pids, run)?);
            let pids = [self.lab.agent("a")?.pid(), self.lab.agent("b")?.pid()];
            let run = || load.run_to(mesh, SERVICE.into(), time);
            comparison.mesh.push(with_cpu(pids, run)?);
        }
        Ok(comparison)
    }
}

/// Runs something and adds what processes spent on each of its requests.
fn with_cpu(pids: [u32; 2], run: impl FnOnce() -> Result<Measured>) -> Result<(Measured, f64)> {
    let spent = || pids.into_iter().map(cpu_time_us).sum::<Result<f64>>();
    let before = spent()?;
    let measured = run()?;
    Ok((measured, (spent()? - before) / measured.work))
}

/// The service with its versions, waypoint, route and policy.
fn manifests() -> String {
    let service = |name: &str, address: &str, selector: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: app\n  labels: \
             {{istio.io/use-waypoint: waypoint}}\nspec:\n  selector: {selector}\n  clusterIP: {address}\n  ports: \
             [{{name: http, port: {HTTP_PORT}, targetPort: {HTTP_PORT}}}]\n---\n"
        )
    };
    let [v1, v2] = WEIGHTS;
    [
        service("server", &SERVICE.to_string(), "{app: server}"),
        service("server-v1", "10.96.0.11", "{app: server, version: v1}"),
        service("server-v2", "10.96.0.12", "{app: server, version: v2}"),
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: waypoint\n  namespace: \
             app\nspec:\n  gatewayClassName: istio-waypoint\n  listeners: [{{name: mesh, port: 15008, protocol: \
             HBONE}}]\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: server\n  \
             namespace: app\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: server}}]\n  rules:\n  - \
             backendRefs: [{{name: server-v1, port: {HTTP_PORT}, weight: {v1}}}, {{name: server-v2, port: {HTTP_PORT}, \
             weight: {v2}}}]\n---\n"
        ),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: server\n  namespace: app\nspec:\n  \
         targetRefs: [{kind: Service, group: \"\", name: server}]\n  rules:\n  - from: [{source: {principals: \
         [cluster.local/ns/app/sa/mesh-client]}}]\n    to: [{operation: {methods: [GET]}}]\n"
            .to_owned(),
    ]
    .concat()
}

impl fmt::Display for Layer7Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let median = |values: Vec<f64>| spread(values.into_iter())[1];
        let rates =
            |runs: &[(Measured, f64)]| median(runs.iter().map(|(run, _)| run.rate).collect());
        let p99 = |runs: &[(Measured, f64)]| {
            median(runs.iter().filter_map(|(run, _)| run.p99_us).collect())
        };
        let cpu = |runs: &[(Measured, f64)]| median(runs.iter().map(|(_, cpu)| *cpu).collect());
        let direct = median(self.direct.iter().map(|run| run.rate).collect());
        writeln!(f, "direct   {direct:>9.0}/s")?;
        for (name, runs) in [("envoys", &self.envoys), ("culvert", &self.mesh)] {
            writeln!(
                f,
                "{name:<8} {:>9.0}/s  {:.2} of direct  cpu {:>6.1} us/request  p99 {:>7.0} us",
                rates(runs),
                rates(runs) / direct,
                cpu(runs),
                p99(runs),
            )?;
        }
        // Round by round, because what disturbs one round disturbs both.
        let rounds = self.mesh.iter().zip(&self.envoys);
        let [low, middle, high] = spread(rounds.map(|(mesh, envoys)| mesh.0.rate / envoys.0.rate));
        write!(
            f,
            "culvert to envoys: rate {middle:.2} ({low:.2}-{high:.2}), cpu {:.2}, p99 {:.2}",
            cpu(&self.mesh) / cpu(&self.envoys),
            p99(&self.mesh) / p99(&self.envoys),
        )
    }
}
