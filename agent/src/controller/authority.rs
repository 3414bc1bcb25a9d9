//! The mesh's certificate authority, for clusters without an istiod: serves Istio's certificate service to agents.
//!
//! ```text
//!  Secret ─▶ custody ─▶ issuer ──────────────────────────────┐
//!    rotation (pure)      └─ roots ─▶ ConfigMap ─▶ agents    ▼
//!  agent ─ TLS ─▶ server ─▶ desk ─ caller, grant, request (pure) ─▶ certificate
//! ```
//!
//! Every controller serves; only the one that holds the Lease changes anything (ADR 0018).

mod caller;
mod custody;
mod desk;
mod grant;
mod issuer;
mod metrics;
mod request;
mod rotation;
mod server;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use userspace_l7::model::{Snapshot, TrustDomain};

use self::caller::Account;
use self::custody::{Custodian, Place};
use self::desk::Desk;
use self::grant::Rules;
use super::lease::Term;
use crate::sources::ApiWriter;

pub use self::metrics::AuthorityMetrics;

/// How the authority is served.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    /// Port of every address.
    pub port: u16,
    /// Namespace of Secret and `ConfigMap`.
    pub namespace: String,
    /// The Secret that holds it.
    pub secret: String,
    /// The `ConfigMap` that its roots are published in.
    pub bundle: String,
    /// DNS names that its server proves to be.
    pub names: Vec<String>,
    /// Audience that tokens have to be for.
    pub audience: String,
    /// Namespaces and names of the service accounts that may ask.
    pub agents: Vec<(String, String)>,
    /// Longest life of a certificate.
    pub longest: Duration,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Name of the cluster, in names of workloads.
    pub cluster: String,
}

/// An authority that is served. Dropping it ends that.
pub(super) struct Authority {
    _tasks: JoinSet<()>,
    ready: watch::Receiver<bool>,
}

impl Authority {
    /// Begins to serve, within a tokio runtime. Agents may have the identities of what `mesh` says runs on their nodes.
    ///
    /// # Errors
    /// The port is somebody else's.
    pub(super) fn start(
        api: &ApiWriter,
        settings: AuthoritySettings,
        (term, mesh): (watch::Receiver<Term>, watch::Receiver<Arc<Snapshot>>),
        metrics: &AuthorityMetrics,
    ) -> io::Result<Self> {
        let listener = server::listen(settings.port)?;
        let issuer = watch::Sender::new(None);
        let (seen, mut heard) = (issuer.subscribe(), issuer.subscribe());
        let agents = settings.agents.into_iter();
        let desk = Desk {
            api: api.clone(),
            rules: Rules {
                agents: agents
                    .map(|(namespace, name)| Account { namespace, name })
                    .collect(),
                trust_domain: settings.trust_domain.clone(),
                cluster: settings.cluster,
            },
            audience: settings.audience,
            longest: settings.longest,
            issuer: seen,
            mesh,
            metrics: metrics.clone(),
            reviews: desk::reviews(),
            strangers: desk::Strangers::default(),
        };
        let custodian = Custodian {
            api: api.clone(),
            place: Place {
                namespace: settings.namespace,
                secret: settings.secret,
                bundle: settings.bundle,
            },
            trust_domain: settings.trust_domain,
            names: settings.names,
            longest: settings.longest,
            term,
            issuer,
            metrics: metrics.clone(),
        };
        let (is_ready, ready) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(custodian.run());
        tasks.spawn(server::serve(listener, Arc::new(desk)));
        tasks.spawn(async move {
            // The custodian lives as long as this does.
            if heard.wait_for(Option::is_some).await.is_ok() {
                is_ready.send_replace(true);
            }
        });
        Ok(Self {
            _tasks: tasks,
            ready,
        })
    }

    /// Whether it has a root to issue with.
    pub(super) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }
}
