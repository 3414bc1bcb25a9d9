//! Where mesh objects come from: a directory of manifests, or a cluster's API; and istiod, which announces layer 4. Knows
//! files and their lines, servers and their answers; what the objects mean is the business of [`crate::mesh`].

mod istiod;
mod kubernetes;
mod manifests;
mod mesh_config;
mod problem;
mod update;
mod watch;
mod yaml;

pub use istiod::{
    Asking, InvalidXdsAddress, IstiodCondition, IstiodConditions, IstiodTrouble, IstiodWatch,
    Settings as IstiodSettings, TypeCondition, XdsAddress,
};
pub use kubernetes::{
    ApiWriter, Cause, Cluster, ClusterCondition, ClusterError, Conditions, Held, Holdings,
    KindCondition, KubernetesWatch, Phase, Refusal, Since, Trouble, object_path,
};
pub use manifests::Manifests;
#[cfg(fuzzing)]
pub use manifests::read_bytes;
pub use problem::{OneLine, Place, Position, Problem, Problems, Severity};
pub use update::{Input, Update};
pub use watch::ManifestWatch;

/// The documents of a YAML text as the agent itself reads them; `None` if it is no YAML.
pub(crate) fn documents(text: &str) -> Option<Vec<serde_json::Value>> {
    let nodes = yaml::parse(text).ok()?;
    Some(nodes.iter().map(yaml::Node::to_json).collect())
}

/// What tests of other modules may use.
#[cfg(test)]
pub(crate) mod for_test {
    use serde_json::Value;

    /// The documents of a YAML text that is known to be valid.
    #[track_caller]
    pub(crate) fn documents(text: &str) -> Vec<Value> {
        let nodes = super::yaml::parse(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        nodes.iter().map(super::yaml::Node::to_json).collect()
    }
}
