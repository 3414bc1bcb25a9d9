//! Agents' pods as a cluster has them: objects in an API server, and the tokens that the kubelet would mount.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::ApiServer;

/// Namespace of what is deployed of our own.
const NAMESPACE: &str = "culvert-system";

/// For whom a token is.
#[derive(Clone, Copy, Debug)]
pub struct TokenSpec<'a> {
    /// Namespace of account and pod.
    pub namespace: &'a str,
    /// The service account.
    pub account: &'a str,
    /// The pod that it is bound to, if it is to one.
    pub pod: Option<&'a str>,
    /// Who takes it.
    pub audience: &'a str,
}

impl ApiServer {
    /// Creates the object of an agent's pod on a node, ready, as the `DaemonSet` would.
    ///
    /// # Errors
    /// If the server refuses it.
    pub fn agent_pod(&self, name: &str, node: &str, address: &str) -> Result<()> {
        self.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  labels: \
             {{app.kubernetes.io/name: culvert-agent, istio.io/dataplane-mode: none}}\nspec:\n  nodeName: {node}\n  \
             serviceAccountName: culvert-agent\n  hostNetwork: true\n  containers: [{{name: agent, image: lab}}]\n\
             status:\n  phase: Running\n  podIP: {address}\n  podIPs: [{{ip: {address}}}]\n  conditions: [{{type: \
             Ready, status: \"True\"}}]\n"
        ))
    }

    /// Writes a new token of a service account into a file, as the kubelet renews it there.
    ///
    /// # Errors
    /// If there is no such account or pod.
    pub fn write_token(&self, spec: TokenSpec<'_>, file: &Path) -> Result<()> {
        let TokenSpec {
            namespace,
            account,
            pod,
            audience,
        } = spec;
        let mut words = vec!["create", "token", account, "-n", namespace];
        words.extend(["--duration", "1h", "--audience", audience]);
        let uid;
        if let Some(pod) = pod {
            uid = self.pod_uid(namespace, pod)?;
            words.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod]);
            words.extend(["--bound-object-uid", &uid]);
        }
        let token = self.kubectl(&words)?;
        let draft = file.with_extension("draft");
        fs::write(&draft, token.trim()).context("cannot write a token")?;
        fs::rename(&draft, file).context("cannot write a token")
    }

    /// The UID that the server has given a pod.
    ///
    /// # Errors
    /// If there is none.
    pub fn pod_uid(&self, namespace: &str, pod: &str) -> Result<String> {
        let path = "jsonpath={.metadata.uid}";
        self.kubectl(&["get", "pod", pod, "-n", namespace, "-o", path])
    }

    /// A token for the mesh's authority, of the agent's pod on a node, in a file.
    ///
    /// # Errors
    /// As [`ApiServer::write_token`].
    pub fn agent_token(&self, directory: &Path, node: &str) -> Result<PathBuf> {
        let file = directory.join(format!("token-{node}"));
        let pod = format!("culvert-agent-{node}");
        let spec = TokenSpec {
            namespace: NAMESPACE,
            account: "culvert-agent",
            pod: Some(&pod),
            audience: "istio-ca",
        };
        self.write_token(spec, &file)?;
        Ok(file)
    }
}
