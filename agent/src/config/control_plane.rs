//! Which of Istio's control planes the mesh's objects are for: it may have been installed under a revision's name.

use std::sync::Arc;

use clap::Args;

use crate::mesh::is_config_map;

/// The names that a revision of Istio's control plane has.
#[derive(Args, Clone, Debug)]
pub struct ControlPlaneArgs {
    /// `ConfigMap` of the root namespace that holds Istio's mesh configuration: `istio`, or `istio-REVISION`
    #[arg(long, default_value = "istio", value_name = "NAME", value_parser = mesh_config)]
    pub mesh_config: String,

    /// Revisions whose waypoints are ours, as the label `istio.io/rev` of a Gateway has them, separated by commas; those
    /// without it are `default`
    #[arg(
        long,
        default_value = "default",
        value_name = "REVISIONS",
        value_delimiter = ','
    )]
    pub revision: Vec<String>,
}

impl ControlPlaneArgs {
    /// Where the mesh's configuration is.
    pub fn mesh_config(&self) -> Arc<str> {
        self.mesh_config.as_str().into()
    }

    /// Whose waypoints are ours.
    pub fn revisions(&self) -> Arc<[String]> {
        self.revision.as_slice().into()
    }
}

fn mesh_config(text: &str) -> Result<String, String> {
    if is_config_map(text) {
        Ok(text.to_owned())
    } else {
        Err("write istio, or istio- and the name of a revision".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::mesh_config;

    #[test]
    fn only_what_istio_calls_its_configuration_is_taken_for_it() {
        for (name, is_one) in [
            ("istio", true),
            ("istio-1-24", true),
            ("istiod", false),
            ("mesh", false),
            ("", false),
        ] {
            assert_eq!(mesh_config(name).is_ok(), is_one, "{name}");
        }
    }
}
