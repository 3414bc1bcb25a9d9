//! A pod: a namespace with addresses, and the Kubernetes object that says so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;

use super::netns::Netns;
use super::node::Node;

/// What a pod shall be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Node that it runs on.
    pub node: String,
    /// Kubernetes namespace; it is created, captured, if there is none.
    pub namespace: String,
    /// Its name, unique in the lab.
    pub name: String,
    /// The UID that an API server would give it; none as in a directory.
    pub uid: Option<String>,
    /// Service account, which is its identity in the mesh.
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Named container ports.
    pub ports: BTreeMap<String, u16>,
    /// Whether the mesh captures it.
    pub captured: bool,
}

impl PodSpec {
    /// A captured pod of namespace `app`, its service account and `app` label its name.
    pub fn new(node: &str, name: &str) -> Self {
        Self {
            node: node.to_owned(),
            namespace: "app".to_owned(),
            name: name.to_owned(),
            uid: None,
            service_account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ports: BTreeMap::new(),
            captured: true,
        }
    }

    /// In another Kubernetes namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Known by a UID.
    #[must_use]
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// With another service account.
    #[must_use]
    pub fn as_account(mut self, service_account: &str) -> Self {
        service_account.clone_into(&mut self.service_account);
        self
    }

    /// With a label more, or another value of one.
    #[must_use]
    pub fn with_label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With a named container port.
    #[must_use]
    pub fn with_port(mut self, name: &str, port: u16) -> Self {
        self.ports.insert(name.to_owned(), port);
        self
    }

    /// Outside the mesh.
    #[must_use]
    pub fn uncaptured(mut self) -> Self {
        self.captured = false;
        self
    }
}

/// A pod that exists. Clones are the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    spec: Arc<PodSpec>,
    netns: Arc<Netns>,
    node_address: IpAddr,
    addresses: [IpAddr; 2],
}

impl Pod {
    pub(crate) fn new(lab: &str, spec: &PodSpec, node: &Node) -> Result<Self> {
        let netns = Netns::new(format!("{lab}-{}", spec.name))?;
        let addresses = node.plug(&netns)?;
        let spec = Arc::new(spec.clone());
        Ok(Self {
            spec,
            netns: Arc::new(netns),
            node_address: node.v4(),
            addresses,
        })
    }

    /// What it was made from.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> IpAddr {
        self.addresses[0]
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> IpAddr {
        self.addresses[1]
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// Runs a closure inside the pod.
    ///
    /// # Errors
    /// What the closure returns.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns.run(body)
    }

    /// Prepares a program to be started inside the pod.
    ///
    /// # Errors
    /// If the pod is gone.
    pub fn enter<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        self.netns.enter(command)
    }

    /// The SPIFFE ID that the mesh gives it.
    pub fn identity(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.spec.namespace, self.spec.service_account
        )
    }

    /// The manifest's file name.
    pub fn file(&self) -> String {
        format!("pod-{}.yaml", self.spec.name)
    }

    /// The pod as Kubernetes would show it.
    pub fn manifest(&self) -> String {
        self.manifest_as(self.spec.captured, true)
    }

    /// The pod as Kubernetes would show it with another capture or readiness.
    pub fn manifest_as(&self, captured: bool, ready: bool) -> String {
        let PodSpec {
            node,
            namespace,
            name,
            uid,
            service_account,
            labels,
            ports,
            ..
        } = &*self.spec;
        let mut text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
        );
        if let Some(uid) = uid {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  uid: {uid}");
        }
        text.push_str("  labels:\n");
        for (label, value) in labels {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "    {label}: \"{value}\"");
        }
        if captured {
            let _ = writeln!(
                text,
                "  annotations:\n    culvert.dev/netns: {}",
                self.netns.path().display()
            );
        }
        let _ = writeln!(
            text,
            "spec:\n  nodeName: {node}\n  serviceAccountName: {service_account}"
        );
        let _ = writeln!(text, "  containers:\n  - name: app\n    image: lab");
        if !ports.is_empty() {
            text.push_str("    ports:\n");
        }
        for (port, number) in ports {
            let _ = writeln!(text, "    - name: {port}\n      containerPort: {number}");
        }
        let ready = if ready { "True" } else { "False" };
        let [v4, v6] = self.addresses;
        let _ = writeln!(
            text,
            "status:\n  phase: Running\n  hostIP: {}\n  podIP: {v4}\n  podIPs:\n  - ip: {v4}\n  - ip: \"{v6}\"\n  \
             conditions:\n  - type: Ready\n    status: \"{ready}\"",
            self.node_address
        );
        text
    }
}
