//! Who gets which identity: an agent those of the pods on its own node, so that whoever is root on a node can be nobody
//! of another. Pure.

use userspace_l7::model::{InvalidSpiffeId, Snapshot, SpiffeId, TrustDomain, WorkloadUid};

use super::caller::{Account, Caller};

/// What WorkloadEntries and endpoints without a pod are not: their nodes are whatever somebody wrote.
const PODS: &str = "//Pod/";

/// What holds for all.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Whose pods may ask.
    pub(super) agents: Vec<Account>,
    /// The mesh's.
    pub(super) trust_domain: TrustDomain,
    /// Name of the cluster, in names of workloads.
    pub(super) cluster: String,
}

/// Which pods run where.
pub(super) trait Pods {
    /// The node of a pod.
    fn node_of(&self, namespace: &str, pod: &str) -> Option<String>;
    /// Whether a pod of this account runs on a node.
    fn runs_on(&self, node: &str, id: &SpiffeId) -> bool;
}

/// Why somebody does not get an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    /// Not an agent.
    #[error("service account {0} is no agent's: name it in --ca-agents if it is")]
    NotAnAgent(Account),
    /// A token that any process may hold.
    #[error("the token is not bound to a pod: mount a projected token")]
    Unbound,
    /// A pod that nobody knows here (yet).
    #[error("pod {0} is not known to run on a node")]
    NoNode(String),
    /// No identity in the request.
    #[error("the request names no identity")]
    NoIdentity,
    /// It is none of the mesh's shape.
    #[error(transparent)]
    Invalid(#[from] InvalidSpiffeId),
    /// It is another mesh's.
    #[error("trust domain {0} is not of this mesh")]
    TrustDomain(TrustDomain),
    /// Nothing of that name runs there.
    #[error("no pod of {id} runs on node {node}")]
    NotThere { id: SpiffeId, node: String },
}

/// What somebody gets: whom it may be, for the pods of which node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) id: SpiffeId,
    pub(super) node: String,
}

/// Decides about a request for `wanted`.
pub(super) fn grant(
    rules: &Rules,
    caller: &Caller,
    pods: &impl Pods,
    wanted: Option<&str>,
) -> Result<Grant, Denied> {
    if !rules.agents.contains(&caller.account) {
        return Err(Denied::NotAnAgent(caller.account.clone()));
    }
    let pod = caller.pod.as_deref().ok_or(Denied::Unbound)?;
    let namespace = &caller.account.namespace;
    let node = caller.node.clone();
    let node = node.or_else(|| pods.node_of(namespace, pod));
    let node = node.filter(|node| !node.is_empty());
    let node = node.ok_or_else(|| Denied::NoNode(format!("{namespace}/{pod}")))?;
    let id: SpiffeId = wanted.ok_or(Denied::NoIdentity)?.parse()?;
    if *id.trust_domain() != rules.trust_domain {
        return Err(Denied::TrustDomain(id.trust_domain().clone()));
    }
    if !pods.runs_on(&node, &id) {
        return Err(Denied::NotThere { id, node });
    }
    Ok(Grant { id, node })
}

/// The pods of a mesh as it is followed; those that have ended are not among them.
pub(super) struct Placed<'a> {
    pub(super) mesh: &'a Snapshot,
    pub(super) rules: &'a Rules,
}

impl Pods for Placed<'_> {
    fn node_of(&self, namespace: &str, pod: &str) -> Option<String> {
        let cluster = &self.rules.cluster;
        let uid = WorkloadUid::new(format!("{cluster}{PODS}{namespace}/{pod}"));
        let workload = self.mesh.workloads.get(&uid)?;
        Some(workload.node.to_string())
    }

    fn runs_on(&self, node: &str, id: &SpiffeId) -> bool {
        self.mesh.workloads.values().any(|workload| {
            *workload.node == *node
                && *workload.service_account == *id.service_account()
                && *workload.namespace == *id.namespace()
                && workload.uid.as_str().contains(PODS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pods as `namespace/name account node`.
    struct Table(&'static [(&'static str, &'static str, &'static str)]);

    impl Pods for Table {
        fn node_of(&self, namespace: &str, pod: &str) -> Option<String> {
            let name = format!("{namespace}/{pod}");
            let found = self.0.iter().find(|(own, _, _)| *own == name)?;
            Some(found.2.to_owned())
        }

        fn runs_on(&self, node: &str, id: &SpiffeId) -> bool {
            self.0.iter().any(|(name, account, at)| {
                name.split('/').next() == Some(id.namespace())
                    && *account == id.service_account()
                    && *at == node
            })
        }
    }

    const HERE: Table = Table(&[
        ("culvert-system/agent-1", "culvert-agent", "n1"),
        ("culvert-system/agent-2", "culvert-agent", "n2"),
        ("culvert-system/agent-3", "culvert-agent", ""),
        ("shop/web", "web", "n1"),
        ("shop/db", "db", "n2"),
    ]);

    fn account(text: &str) -> Account {
        let (namespace, name) = text.split_once('/').unwrap();
        Account {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of requests")]
    fn an_agent_gets_the_identities_of_its_own_nodes_pods() {
        let rules = Rules {
            agents: vec![account("culvert-system/culvert-agent")],
            trust_domain: TrustDomain::new("cluster.local").unwrap(),
            cluster: "Kubernetes".to_owned(),
        };
        let decide = |who: &str, pod: Option<&str>, node: Option<&str>, wanted: Option<&str>| {
            let caller = Caller {
                account: account(who),
                pod: pod.map(str::to_owned),
                node: node.map(str::to_owned),
            };
            match grant(&rules, &caller, &HERE, wanted) {
                Ok(grant) => format!("{} on {}", grant.id.principal(), grant.node),
                Err(denied) => denied.to_string(),
            }
        };
        let agent = "culvert-system/culvert-agent";
        let web = Some("spiffe://cluster.local/ns/shop/sa/web");
        let db = Some("spiffe://cluster.local/ns/shop/sa/db");
        let none = "no pod of spiffe://cluster.local/ns/shop/sa";
        for (who, pod, node, wanted, expected) in [
            // The token says the node, or the pod is looked up.
            (
                agent,
                Some("agent-1"),
                Some("n1"),
                web,
                "cluster.local/ns/shop/sa/web on n1",
            ),
            (
                agent,
                Some("agent-1"),
                None,
                web,
                "cluster.local/ns/shop/sa/web on n1",
            ),
            (
                agent,
                Some("agent-2"),
                None,
                db,
                "cluster.local/ns/shop/sa/db on n2",
            ),
            // Of the other node.
            (
                agent,
                Some("agent-1"),
                None,
                db,
                &format!("{none}/db runs on node n1"),
            ),
            (
                agent,
                Some("agent-2"),
                Some("n2"),
                web,
                &format!("{none}/web runs on node n2"),
            ),
            // The token's word goes before what was heard of a pod of its name.
            (
                agent,
                Some("agent-1"),
                Some("n2"),
                web,
                &format!("{none}/web runs on node n2"),
            ),
            // Nobody's.
            (
                agent,
                Some("agent-1"),
                None,
                Some("spiffe://cluster.local/ns/shop/sa/admin"),
                &format!("{none}/admin runs on node n1"),
            ),
            (
                agent,
                Some("agent-1"),
                None,
                Some("spiffe://other/ns/shop/sa/web"),
                "trust domain other is not of this mesh",
            ),
            (
                agent,
                Some("agent-1"),
                None,
                None,
                "the request names no identity",
            ),
            // Not placed, not there.
            (
                agent,
                Some("agent-3"),
                None,
                web,
                "pod culvert-system/agent-3 is not known to run on a node",
            ),
            (
                agent,
                Some("agent-9"),
                None,
                web,
                "pod culvert-system/agent-9 is not known to run on a node",
            ),
            (
                agent,
                Some("agent-9"),
                Some(""),
                web,
                "pod culvert-system/agent-9 is not known to run on a node",
            ),
            // Not bound, not an agent.
            (
                agent,
                None,
                Some("n1"),
                web,
                "the token is not bound to a pod: mount a projected token",
            ),
            (
                "shop/web",
                Some("web"),
                Some("n1"),
                web,
                "service account shop/web is no agent's: name it in --ca-agents if it is",
            ),
        ] {
            assert_eq!(
                decide(who, pod, node, wanted),
                expected,
                "{who} {pod:?} {wanted:?}"
            );
        }
        let odd = decide(agent, Some("agent-1"), None, Some("web"));
        assert!(odd.contains("is not a SPIFFE ID"), "{odd}");
    }
}
