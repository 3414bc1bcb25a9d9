//! Kubernetes' own controllers, the real `kube-controller-manager`: what a cluster writes by itself beside what people do.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::ApiServer;
use super::process::Process;
use crate::lab::tool;

/// Those that touch what Culvert reads or is deployed as. Not the ones that expect a kubelet: they would taint nodes that
/// send no heartbeat, and take their pods away.
const CONTROLLERS: [&str; 8] = [
    "daemonset-controller",
    "deployment-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
];

/// Running controllers. Killed when dropped.
pub struct Controllers {
    process: Process,
}

impl Controllers {
    /// Starts them beside an API server, as its administrator.
    ///
    /// # Errors
    /// If they are not installed or cannot be started.
    pub fn beside(api: &ApiServer) -> Result<Self> {
        let kubeconfig = api.admin_kubeconfig();
        let authority = &api.credentials.authority;
        let mut command = Command::new(tool("kubernetes/kube-controller-manager")?);
        command.args([
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--root-ca-file={}", authority.display()),
            format!("--controllers={}", CONTROLLERS.join(",")),
        ]);
        // Nobody else is there to lead, and nobody asks it anything.
        command.args(["--leader-elect=false", "--secure-port=0"]);
        let log = api.directory.join("kube-controller-manager.log");
        let process = Process::start(&mut command, api.place.netns.as_deref(), log)?;
        Ok(Self { process })
    }

    /// What they have done, when a scenario waited for it in vain.
    ///
    /// # Errors
    /// The scenario's own, with the end of their log.
    pub fn explain<T>(&mut self, awaited: Result<T>) -> Result<T> {
        let ended = self.process.ended();
        awaited.with_context(|| {
            let how = ended.map_or_else(|| "they run".to_owned(), |how| how.to_string());
            format!(
                "the controllers ({how}) logged\n{}",
                self.process.log_tail()
            )
        })
    }
}
