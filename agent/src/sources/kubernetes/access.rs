//! Which API server is ours, how we know it, and how it knows us.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use crate::sentence::sentence;

use super::api::Api;

/// A connection that is not made by then is not made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A watch is silent for a minute at a time: the kernel asks whether the other side still is there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Why no cluster can be followed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig is missing, or has no cluster and user in it.
    #[error("the kubeconfig {path} cannot be used ({why}): name one with a current context")]
    Kubeconfig {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// We are no pod, or a pod without a service account.
    #[error(
        "this process is no pod with a service account ({0}): name a cluster with --kubeconfig, or mount the token"
    )]
    NoPod(String),
    /// Certificates or keys in the configuration cannot be used.
    #[error("the way to the API server cannot be set up: {0}")]
    Setup(String),
    /// No thread or runtime.
    #[error("no thread can be had to follow the cluster with: {0}")]
    NoThread(io::Error),
}

/// The configuration of a client.
pub(super) struct Access(Config);

impl Access {
    /// Reads a kubeconfig, or what the kubelet gives a pod.
    pub(super) async fn find(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        let Some(path) = kubeconfig else {
            let config =
                Config::incluster().map_err(|error| ClusterError::NoPod(sentence(&error)))?;
            return Ok(Self(config));
        };
        let refused = |error: &dyn std::error::Error| ClusterError::Kubeconfig {
            path: path.display().to_string(),
            why: sentence(error),
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(|error| refused(&error))?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        Ok(Self(config.map_err(|error| refused(&error))?))
    }

    /// Reads the kubeconfig that a person's own tools read: the named one, else `$KUBECONFIG`, else `~/.kube/config`; of it
    /// the named context, else the current one. Where there is none, what the kubelet gives a pod.
    pub(super) async fn of_person(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
    ) -> Result<Self, ClusterError> {
        let shown = || match kubeconfig {
            Some(path) => path.display().to_string(),
            None => "of $KUBECONFIG or ~/.kube/config".to_owned(),
        };
        let refused = |error: &dyn std::error::Error| ClusterError::Kubeconfig {
            path: shown(),
            why: sentence(error),
        };
        let read = match kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let is_missing = |error: &KubeconfigError| match error {
            KubeconfigError::FindPath => true,
            KubeconfigError::ReadConfig(why, path) => {
                why.kind() == io::ErrorKind::NotFound && path.ends_with(".kube/config")
            }
            _ => false,
        };
        let read = match read {
            // Nobody said which cluster.
            Err(error) if kubeconfig.is_none() && context.is_none() && is_missing(&error) => {
                return Self::find(None).await;
            }
            read => read.map_err(|error| refused(&error))?,
        };
        let options = KubeConfigOptions {
            context: context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(read, &options).await;
        Ok(Self(config.map_err(|error| refused(&error))?))
    }

    /// The namespace that is meant where none is said.
    pub(super) fn namespace(&self) -> &str {
        let Self(config) = self;
        &config.default_namespace
    }

    /// A client, and the server's URL. Has to be called inside the runtime that the client shall run on.
    ///
    /// The stack is kube's own, less its log of each failed request (an outage is one sentence here) and its
    /// repetitions (see [`super::follow`]), and with keepalive.
    pub(super) fn client(&self) -> Result<(Client, Arc<str>), ClusterError> {
        let Self(config) = self;
        let setup = |error: kube::Error| ClusterError::Setup(sentence(&error));
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE / 3));
        connector.set_keepalive_retries(Some(3));
        connector.set_tcp_user_timeout(Some(KEEPALIVE * 2));
        let connector = config
            .rustls_https_connector_with_connector(connector)
            .map_err(setup)?;
        let http = HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(setup)?)
            .layer(config.extra_headers_layer().map_err(setup)?)
            .map_err(BoxError::from)
            .service(http);
        let client = Client::new(service, config.default_namespace.clone());
        let server = config.cluster_url.to_string();
        Ok((client, server.trim_end_matches('/').into()))
    }

    /// What reads with such a client.
    pub(super) fn api(&self) -> Result<Api, ClusterError> {
        let (client, server) = self.client()?;
        Ok(Api::new(client, server))
    }
}
