//! Who issues a node's identities: a CA in a directory, or one that is asked.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper::Uri;

use super::variables::{self, CA_HEADER, InvalidVariable};
use crate::identity::{RemoteSettings, RootSource};

/// Who issues identities.
#[derive(Args, Clone, Debug)]
pub struct AuthorityArgs {
    /// Directory of the local CA, with the file names of Istio's `cacerts`; absent files are created
    /// [default: `ca` in the run directory]
    #[arg(long, value_name = "DIR", conflicts_with = "ca_address")]
    pub ca_dir: Option<PathBuf>,

    /// Asks this authority for identities rather than a local CA: istiod, istio-csr or `culvert controller`. Variables
    /// `CA_HEADER_<name>` are headers of these calls
    #[arg(long, value_name = "https://HOST:PORT", env = "CA_ADDRESS", value_parser = address)]
    pub ca_address: Option<Uri>,

    /// Whose certificate the authority's server has to show: a file, PEM, or `SYSTEM`
    #[arg(
        long,
        value_name = "FILE",
        env = "CA_ROOT_CA",
        requires = "ca_address",
        default_value = "./var/run/secrets/istio/root-cert.pem"
    )]
    pub ca_root: RootSource,

    /// File with the token that the authority is shown, read for each request
    #[arg(
        long,
        value_name = "FILE",
        requires = "ca_address",
        default_value = "./var/run/secrets/tokens/istio-token"
    )]
    pub ca_token: PathBuf,

    /// Whom the authority's server has to prove to be [default: the host of --ca-address]
    #[arg(
        long,
        value_name = "NAME",
        env = "ALT_CA_HOSTNAME",
        requires = "ca_address"
    )]
    pub ca_hostname: Option<String>,

    /// Lifetime of identities in seconds: issued by the local CA, or asked of another, which may give less
    #[arg(long, default_value_t = 24 * 60 * 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub svid_ttl: u64,
}

/// Who issues identities.
#[derive(Clone, Debug)]
pub enum Authority {
    /// A CA in this directory.
    Local(PathBuf),
    /// One that is asked.
    Remote(Box<RemoteSettings>),
}

impl AuthorityArgs {
    /// Who issues identities, for an agent with this run directory in this cluster.
    ///
    /// # Errors
    /// [`InvalidVariable`]: a `CA_HEADER_` cannot be sent.
    pub fn authority(&self, run_dir: &Path, cluster: &str) -> Result<Authority, InvalidVariable> {
        let Some(address) = self.ca_address.clone() else {
            return Ok(Authority::Local(self.directory(run_dir)));
        };
        Ok(Authority::Remote(Box::new(RemoteSettings {
            address,
            server_name: self.ca_hostname.clone(),
            root: self.ca_root.clone(),
            token: self.ca_token.clone(),
            cluster: cluster.to_owned(),
            lifetime: self.lifetime(),
            headers: variables::headers(CA_HEADER, env::vars_os())?,
        })))
    }

    /// Directory of the local CA, for an agent with this run directory; not used where another is asked.
    pub fn directory(&self, run_dir: &Path) -> PathBuf {
        let default = || run_dir.join("ca");
        self.ca_dir.clone().unwrap_or_else(default)
    }

    /// Lifetime of identities.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(self.svid_ttl)
    }
}

fn address(text: &str) -> Result<Uri, String> {
    let rule = "write https://HOST:PORT, such as https://istiod.istio-system.svc:15012";
    let uri: Uri = text.parse().map_err(|_invalid| rule.to_owned())?;
    let is_plain = uri.scheme_str() == Some("https")
        && uri.host().is_some()
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none();
    is_plain.then_some(uri).ok_or_else(|| rule.to_owned())
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn an_authority_is_a_host_that_speaks_tls() {
        for (text, is_one) in [
            ("https://istiod.istio-system.svc:15012", true),
            ("https://10.0.0.1:15012/", true),
            ("http://istiod.istio-system.svc:15012", false),
            ("istiod.istio-system.svc:15012", false),
            ("https://istiod:15012/some/path", false),
            ("", false),
        ] {
            assert_eq!(address(text).is_ok(), is_one, "{text}");
        }
    }
}
