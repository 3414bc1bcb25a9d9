//! Which pods start while no agent answers, as an agent and `culvert cni` are told.

use std::collections::BTreeSet;

use clap::Args;

/// The flag that says it.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StartWithoutAgent {
    /// Namespaces whose pods start while no agent answers the CNI plugin, separated by commas: what the cluster needs
    /// before it can run an agent
    #[arg(
        long,
        value_name = "NAMESPACES",
        default_value = "kube-system",
        value_delimiter = ','
    )]
    pub cni_start_without_agent: Vec<String>,
}

impl StartWithoutAgent {
    /// The namespaces; none if the flag is empty.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let named = self.cni_start_without_agent.iter();
        named.filter(|name| !name.is_empty()).cloned().collect()
    }
}
