//! What the command line and the environment say of istiod, with ztunnel's names of variables.

use std::env;
use std::path::PathBuf;

use clap::Args;

use super::variables::{self, InvalidVariable, XDS_HEADER};
use crate::sources::{Asking, IstiodSettings, XdsAddress};

/// Where ztunnel's chart mounts what istiod is known by, and what we are.
const ROOT_CA: &str = "/var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "/var/run/secrets/tokens/istio-token";

/// istiod as the source of layer 4.
#[derive(Args, Clone, Debug)]
pub struct IstiodArgs {
    /// Takes workloads, services and policies of layer 4 from istiod at this address, such as
    /// `https://istiod.istio-system.svc:15012`; everything else stays with the other source. Variables `XDS_HEADER_<name>`
    /// are headers of these calls, `ISTIO_META_<key>` metadata of the node
    #[arg(long, value_name = "URL", env = "XDS_ADDRESS")]
    pub xds_address: Option<XdsAddress>,

    /// Certificates that vouch for istiod, in PEM; read anew for each connection
    #[arg(long, value_name = "FILE", env = "XDS_ROOT_CA", default_value = ROOT_CA)]
    pub xds_root_ca: PathBuf,

    /// Name that istiod's certificate has, where it is not the host of --xds-address
    #[arg(
        long,
        value_name = "NAME",
        env = "ALT_XDS_HOSTNAME",
        requires = "xds_address"
    )]
    pub xds_hostname: Option<String>,

    /// Token of the agent's service account for the audience istio-ca; read anew for each connection
    #[arg(long, value_name = "FILE", env = "AUTH_TOKEN", default_value = TOKEN)]
    pub xds_token: PathBuf,

    /// Name of the agent's own pod, as istiod is told it [default: the node's]
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub pod_name: Option<String>,

    /// Namespace of the agent's own pod, which has to be that of the token's account
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "POD_NAMESPACE",
        default_value = "culvert-system"
    )]
    pub pod_namespace: String,

    /// Address of the agent's own pod, as istiod is told it
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "INSTANCE_IP",
        default_value = "1.1.1.1"
    )]
    pub instance_ip: std::net::IpAddr,
}

impl IstiodArgs {
    /// How istiod is asked, if it is.
    ///
    /// # Errors
    /// [`InvalidVariable`]: an `XDS_HEADER_` or `ISTIO_META_` cannot be sent.
    pub fn settings(
        &self,
        node: &str,
        cluster: &str,
    ) -> Result<Option<IstiodSettings>, InvalidVariable> {
        let Some(address) = self.xds_address.clone() else {
            return Ok(None);
        };
        Ok(Some(IstiodSettings {
            address,
            hostname: self.xds_hostname.clone(),
            root_ca: self.xds_root_ca.clone(),
            token: self.xds_token.clone(),
            node: Asking {
                pod: self.pod_name.clone().unwrap_or_else(|| node.to_owned()),
                namespace: self.pod_namespace.clone(),
                address: self.instance_ip.to_string(),
                node: node.to_owned(),
                cluster: cluster.to_owned(),
                metadata: variables::metadata(env::vars_os())?,
            },
            headers: variables::headers(XDS_HEADER, env::vars_os())?,
        }))
    }
}
