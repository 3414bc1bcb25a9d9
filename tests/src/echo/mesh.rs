//! A mesh of echo workloads: namespaces, services, waypoints, and requests from pod to service.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Echo, Seen};
use crate::lab::{Lab, Pod, PodSpec, eventually};
use crate::net::http::{Ask, Conversation, Response};

/// How soon a changed manifest has to show in answers. What the product promises is less; this is for machines that
/// do something else besides.
const SOON: Duration = Duration::from_secs(5);
/// Answers in a row that make a change believed: enough to have met both nodes, each of which takes a change over by
/// itself.
const IN_A_ROW: usize = 8;

/// Service ports of [`EchoMesh::service`], as the Gateway API's conformance tests have them.
const PORTS: &str = "  - {name: http, port: 80, targetPort: 8080, appProtocol: http}
  - {name: http-alt, port: 8080, targetPort: 8080, appProtocol: http}
  - {name: https, port: 443, targetPort: 8443}
  - {name: tcp, port: 9090, targetPort: 9090}
  - {name: grpc, port: 7070, targetPort: 7070, appProtocol: kubernetes.io/h2c}
";
/// Ports on which echo workloads of a mesh speak HTTP.
const HTTP_PORTS: [u16; 2] = [8080, 7070];

/// A lab full of echo workloads.
pub struct EchoMesh {
    // Dropped before the lab, which removes their namespaces.
    echoes: BTreeMap<String, Echo>,
    services: BTreeMap<String, u8>,
    /// Everything else.
    pub lab: Lab,
}

/// A DestinationRule about a service of the shop, with this `trafficPolicy`.
pub fn destination_rule(service: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: {service}\n  namespace: \
         shop\nspec:\n  host: {service}.shop.svc.cluster.local\n  trafficPolicy:\n    {policy}\n"
    )
}

impl EchoMesh {
    /// A lab without pods.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn new() -> Result<Self> {
        Ok(Self {
            echoes: BTreeMap::new(),
            services: BTreeMap::new(),
            lab: Lab::two_nodes()?,
        })
    }

    /// A shop behind a waypoint, running: pods `echo-v1` on node b and `echo-v2` on node a of namespace `shop`, which
    /// is bound to its waypoint `waypoint`; services `echo`, `echo-v1` and `echo-v2`; and in namespace `clients`, which
    /// is bound to nothing, pods `client` and `stranger` on node a and `outside`, which is not captured, on node b.
    ///
    /// # Errors
    /// If it cannot be built or an agent is not in time.
    pub fn shop() -> Result<Self> {
        Self::shop_with(&[])
    }

    /// The same, with options for both agents.
    ///
    /// # Errors
    /// If it cannot be built or an agent is not in time.
    pub fn shop_with(options: &[&str]) -> Result<Self> {
        let mut mesh = Self::new()?;
        mesh.lab.agent_options(options);
        mesh.namespace("shop", &[("istio.io/use-waypoint", "waypoint")])?;
        mesh.namespace("clients", &[])?;
        for (node, name, version) in [("b", "echo-v1", "v1"), ("a", "echo-v2", "v2")] {
            let spec = PodSpec::new(node, name).in_namespace("shop");
            let spec = spec.with_label("app", "echo").as_account("echo");
            mesh.echo(&spec.with_label("version", version))?;
            mesh.service(
                "shop",
                name,
                "{}",
                &format!("{{app: echo, version: {version}}}"),
            )?;
        }
        mesh.service("shop", "echo", "{}", "{app: echo}")?;
        for client in ["client", "stranger"] {
            mesh.lab
                .place(&PodSpec::new("a", client).in_namespace("clients"))?;
        }
        let outside = PodSpec::new("b", "outside").in_namespace("clients");
        mesh.lab.place(&outside.uncaptured())?;
        mesh.waypoint("shop", "waypoint", "{}", "")?;
        mesh.start()?;
        Ok(mesh)
    }

    /// Makes a pod of the shop on node b its waypoint, for clients that were told where that is: a Service of the
    /// waypoint's name, and the pod behind it. With it a pod `envoy` of namespace `clients` on node a, which is not
    /// captured, for such a client.
    ///
    /// # Errors
    /// If a pod cannot be made, or an agent is not in time.
    pub fn waypoint_pod(&mut self) -> Result<(Pod, Pod)> {
        let spec = PodSpec::new("b", "waypoint").in_namespace("shop");
        let waypoint = self.lab.place(&spec.with_label("app", "waypoint"))?;
        let ports = "  - {name: mesh, port: 15008, targetPort: 15008}\n";
        self.service_with("shop", "waypoint", "{}", "{app: waypoint}", ports)?;
        let spec = PodSpec::new("a", "envoy").in_namespace("clients");
        let client = self.lab.place(&spec.uncaptured())?;
        self.lab.agent("b")?.wait_ready()?;
        Ok((waypoint, client))
    }

    /// Declares a captured namespace with labels of its own, or changes its labels.
    ///
    /// # Errors
    /// If its manifest cannot be written.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let mut text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    \
             istio.io/dataplane-mode: ambient\n"
        );
        for (label, value) in labels {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "    {label}: \"{value}\"");
        }
        self.apply(&format!("namespace-{name}.yaml"), &text)
    }

    /// Adds a pod that runs an echo workload, to a namespace that is declared.
    ///
    /// # Errors
    /// If the pod cannot be made or a port cannot be opened.
    pub fn echo(&mut self, spec: &PodSpec) -> Result<Pod> {
        let pod = self.lab.place(spec)?;
        let echo = Echo::start(&pod, &HTTP_PORTS)?;
        self.echoes.insert(spec.name.clone(), echo);
        Ok(pod)
    }

    /// Adds a service of both address families, with the ports of the Gateway API's conformance tests; `selector` is
    /// `{app: echo}`. A second time it changes the service, which keeps its addresses.
    ///
    /// # Errors
    /// If its manifest cannot be written.
    pub fn service(
        &mut self,
        namespace: &str,
        name: &str,
        labels: &str,
        selector: &str,
    ) -> Result<()> {
        self.service_with(namespace, name, labels, selector, PORTS)
    }

    /// The same with other ports, a YAML list indented by two.
    ///
    /// # Errors
    /// If its manifest cannot be written.
    pub fn service_with(
        &mut self,
        namespace: &str,
        name: &str,
        labels: &str,
        selector: &str,
        ports: &str,
    ) -> Result<()> {
        // 1 is the API server's in every cluster.
        let next = u8::try_from(self.services.len() + 10).context("too many services")?;
        let number = *self.services.entry(name.to_owned()).or_insert(next);
        let [v4, v6] = addresses(number);
        self.apply(
            &format!("service-{name}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {labels}\n\
                 spec:\n  selector: {selector}\n  clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  ports:\n{ports}"
            ),
        )
    }

    /// Adds a waypoint: `labels` is `{istio.io/waypoint-for: service}`, `listener` more keys of its listener.
    ///
    /// # Errors
    /// If its manifest cannot be written.
    pub fn waypoint(
        &self,
        namespace: &str,
        name: &str,
        labels: &str,
        listener: &str,
    ) -> Result<()> {
        self.apply(
            &format!("waypoint-{namespace}-{name}.yaml"),
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: {name}\n  namespace: \
                 {namespace}\n  labels: {labels}\nspec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  - name: \
                 mesh\n    port: 15008\n    protocol: HBONE\n{listener}"
            ),
        )
    }

    /// Starts both agents and waits until they are ready.
    ///
    /// # Errors
    /// If an agent is not in time, or refuses a manifest.
    pub fn start(&mut self) -> Result<()> {
        self.lab.start()?;
        let problems = self
            .lab
            .agent("a")?
            .metric("culvert_manifest_problems", &[])?;
        ensure!(problems == 0.0, "{problems} manifests are refused");
        Ok(())
    }

    /// Creates or replaces a manifest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        self.lab.manifests().apply(file, text)
    }

    /// A pod by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let found = self.lab.pods().iter().find(|pod| pod.spec().name == name);
        found.with_context(|| format!("no pod {name}"))
    }

    /// An echo workload by its pod's name.
    ///
    /// # Errors
    /// If there is none.
    pub fn workload(&self, name: &str) -> Result<&Echo> {
        let found = self.echoes.get(name);
        found.with_context(|| format!("no echo workload {name}"))
    }

    /// Ends an echo workload; its pod stays.
    pub fn end_workload(&mut self, name: &str) {
        self.echoes.remove(name);
    }

    /// Starts the echo workload of a pod again.
    ///
    /// # Errors
    /// If a port cannot be opened.
    pub fn restart_workload(&mut self, name: &str) -> Result<()> {
        // First the old one goes, which holds the ports.
        self.echoes.remove(name);
        let echo = Echo::start(self.pod(name)?, &HTTP_PORTS)?;
        self.echoes.insert(name.to_owned(), echo);
        Ok(())
    }

    /// A service's IPv4 address with a port.
    ///
    /// # Errors
    /// If there is no such service.
    pub fn at(&self, service: &str, port: u16) -> Result<SocketAddr> {
        self.at_family(service, port, 0)
    }

    /// A service's IPv6 address with a port.
    ///
    /// # Errors
    /// If there is no such service.
    pub fn at_v6(&self, service: &str, port: u16) -> Result<SocketAddr> {
        self.at_family(service, port, 1)
    }

    fn at_family(&self, service: &str, port: u16, family: usize) -> Result<SocketAddr> {
        let number = self.services.get(service);
        let number = number.with_context(|| format!("no service {service}"))?;
        Ok(SocketAddr::new(addresses(*number)[family], port))
    }

    /// A request from a pod, over a connection of its own.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn ask(&self, from: &str, to: SocketAddr, ask: &Ask) -> Result<Response> {
        self.pod(from)?.run(|| ask.send(to))
    }

    /// How often each status is answered to `times` requests of one connection.
    ///
    /// # Errors
    /// If an answer is missing.
    pub fn statuses(
        &self,
        from: &str,
        to: SocketAddr,
        ask: &Ask,
        times: usize,
    ) -> Result<BTreeMap<u16, usize>> {
        self.pod(from)?.run(|| {
            let mut conversation = Conversation::open(to)?;
            let mut statuses = BTreeMap::new();
            for _ in 0..times {
                let answer = conversation.ask(ask)?;
                *statuses.entry(answer.status).or_default() += 1;
            }
            Ok(statuses)
        })
    }

    /// A request that an echo workload has to answer with 200: what it saw.
    ///
    /// # Errors
    /// If the answer is another.
    pub fn seen(&self, from: &str, to: SocketAddr, ask: &Ask) -> Result<Seen> {
        let answer = self.ask(from, to, ask)?;
        let status = answer.status;
        ensure!(status == 200, "{status}: {}", answer.text());
        Seen::in_answer(&answer)
    }

    /// Waits until requests from a pod are treated one by one, or are no longer: a proxy that sees requests gives them
    /// an `x-request-id`.
    ///
    /// # Errors
    /// If they are not, in time.
    pub fn soon_at_layer7(&self, from: &str, to: SocketAddr, expected: bool) -> Result<()> {
        let what = format!("requests from {from} to {to} are seen: {expected}");
        self.soon(&what, || {
            let seen = self.seen(from, to, &Ask::get("/"))?;
            let has_id = seen.header("x-request-id").is_some();
            ensure!(has_id == expected, "{:?}", seen.headers);
            Ok(())
        })
    }

    /// Waits until something holds several times in a row.
    ///
    /// # Errors
    /// If it does not, in time; says why it did not last.
    pub fn soon(&self, what: &str, claim: impl Fn() -> Result<()>) -> Result<()> {
        eventually(what, SOON, || (0..IN_A_ROW).try_for_each(|_| claim()))
    }

    /// Waits until a request from a pod is answered with a status.
    ///
    /// # Errors
    /// If it is not, in time.
    pub fn soon_answers(
        &self,
        from: &str,
        to: SocketAddr,
        ask: &Ask,
        status: u16,
    ) -> Result<Response> {
        let what = format!("{} {} from {from}: {status}", ask.method, ask.target);
        let mut last = None;
        eventually(&what, SOON, || {
            (0..IN_A_ROW).try_for_each(|_| {
                let answer = self.ask(from, to, ask)?;
                answers(&answer, status)?;
                last = Some(answer);
                Ok(())
            })
        })?;
        last.context("no answer")
    }

    /// Waits until node a, the client's, has counted requests that ended with this status and flag.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn counts(&self, status: &str, flag: &str) -> Result<()> {
        let labels = [
            "reporter=\"waypoint\"".to_owned(),
            format!("response_code=\"{status}\""),
            format!("response_flags=\"{flag}\""),
        ];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        self.soon(&format!("requests are counted with {flag}"), || {
            let agent = self.lab.agent("a")?;
            let count = agent.metric("istio_requests_total", &labels)?;
            ensure!(count > 0.0, "{count}");
            Ok(())
        })
    }
}

fn answers(answer: &Response, status: u16) -> Result<()> {
    let got = answer.status;
    ensure!(
        got == status,
        "{got} {:?} {}",
        answer.headers,
        answer.text()
    );
    Ok(())
}

fn addresses(number: u8) -> [IpAddr; 2] {
    let v4 = Ipv4Addr::new(10, 96, 0, number);
    let v6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into());
    [v4.into(), v6.into()]
}
