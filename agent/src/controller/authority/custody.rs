//! The Secret that the authority lives in, and the `ConfigMap` that its roots are published in: looked at by every
//! controller, changed only by the one that holds the Lease.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};
use tracing::{info, warn};
use userspace_l7::model::TrustDomain;

use super::issuer::Issuer;
use super::metrics::AuthorityMetrics;
use super::rotation::{Held, Step, step};
use crate::controller::lease::Term;
use crate::identity::{LocalCa, ROOTS};
use crate::sentence::sentence;
use crate::sources::{ApiWriter, Refusal};

/// Shortest and longest time between two looks.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How many looks late the slowest controller may be.
const LATE: u32 = 3;

/// Where it is kept.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) secret: String,
    pub(super) bundle: String,
}

/// Keeps the authority.
pub(super) struct Custodian {
    pub(super) api: ApiWriter,
    pub(super) place: Place,
    pub(super) trust_domain: TrustDomain,
    /// Whom the server proves to be.
    pub(super) names: Vec<String>,
    /// The longest life of a certificate.
    pub(super) longest: Duration,
    pub(super) term: watch::Receiver<Term>,
    pub(super) issuer: watch::Sender<Option<Arc<Issuer>>>,
    pub(super) metrics: AuthorityMetrics,
}

/// Why a look ended early.
enum Halt {
    /// Something is in the way, and was said.
    Trouble(String),
    /// The lease is not ours any more.
    Over,
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Trouble(format!("the API server {refusal}"))
    }
}

impl Custodian {
    /// Keeps it until the issuer is nobody's any more.
    pub(super) async fn run(mut self) {
        let pause = (self.longest / 8).clamp(LOOK.0, LOOK.1);
        let overlap = self.longest + pause * LATE;
        let (mut held, mut complaint) = (None::<Held>, None::<String>);
        loop {
            self.term.mark_unchanged();
            let acted = match self.look(&mut held, overlap).await {
                Ok(acted) => {
                    complaint = None;
                    acted
                }
                Err(Halt::Over) => false,
                Err(Halt::Trouble(why)) => {
                    if complaint.as_ref() != Some(&why) {
                        warn!(error = %why, "the mesh's authority is not as it should be");
                        complaint = Some(why);
                    }
                    false
                }
            };
            if acted {
                continue;
            }
            tokio::select! {
                () = sleep(pause) => {}
                changed = self.term.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes over what the Secret holds, and does what is due if that is ours to do; whether anything was done.
    async fn look(&self, held: &mut Option<Held>, overlap: Duration) -> Result<bool, Halt> {
        let path = self.path("secrets", &self.place.secret);
        let secret = match self.api.get(&path).await {
            Ok(secret) => secret,
            Err(refusal) if refusal.status == Some(404) => {
                if self.term().is_err() {
                    return Err(Halt::Trouble(format!(
                        "Secret {}/{} is not there: the controller that holds the Lease makes it",
                        self.place.namespace, self.place.secret
                    )));
                }
                self.create(held.as_ref()).await?;
                return Ok(true);
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let found = Held::read(&secret).map_err(|lacks| {
            Halt::Trouble(format!(
                "Secret {}/{} lacks {lacks}: add it, or delete the Secret to have an authority made (what was in force, if anything was)",
                self.place.namespace, self.place.secret
            ))
        })?;
        let issuer = self.take(held.as_ref(), &found)?;
        *held = Some(found.clone());
        if self.term().is_err() {
            return Ok(false);
        }
        let path = self.path("configmaps", &self.place.bundle);
        let bundle = match self.api.get(&path).await {
            Ok(bundle) => Some(bundle),
            Err(refusal) if refusal.status == Some(404) => None,
            Err(refusal) => return Err(refusal.into()),
        };
        let published = bundle.as_ref().and_then(|map| map["data"][ROOTS].as_str());
        let now = Timestamp::now();
        let due = step(
            &found,
            issuer.signer(),
            published.map(str::as_bytes),
            (now, overlap),
        );
        self.act(due, (secret, found), bundle, now).await
    }

    /// Signs with what was found from now on, if it is something else.
    fn take(&self, held: Option<&Held>, found: &Held) -> Result<Arc<Issuer>, Halt> {
        let now = SystemTime::now();
        let current = self.issuer.borrow().clone();
        if let (Some(current), Some(held)) = (current, held)
            && held.files == found.files
            && current.is_fresh(now)
        {
            return Ok(current);
        }
        let place = format!("Secret {}/{}", self.place.namespace, self.place.secret);
        let about = (Path::new(&place), &self.trust_domain, &*self.names);
        let issuer = Issuer::new(&found.files, about, now)
            .map_err(|error| Halt::Trouble(sentence(&error)))?;
        let issuer = Arc::new(issuer);
        if held.is_none_or(|held| held.files != found.files) {
            let until = issuer.signer().not_after;
            info!(%until, "this controller issues the mesh's identities");
        }
        self.metrics.root_ends(issuer.signer().not_after);
        self.issuer.send_replace(Some(Arc::clone(&issuer)));
        Ok(issuer)
    }

    async fn act(
        &self,
        due: Step,
        (mut secret, held): (Value, Held),
        bundle: Option<Value>,
        now: Timestamp,
    ) -> Result<bool, Halt> {
        let next = match due {
            Step::Rest => return Ok(false),
            Step::NotOurs => {
                return Err(Halt::Trouble(
                    "the authority's certificate is not its own root: who brought it has to rotate it".to_owned(),
                ));
            }
            Step::Publish => {
                self.publish(bundle, &held).await?;
                return Ok(true);
            }
            Step::Begin => held.begun(self.make()?, now),
            Step::Promote => held.promoted(now),
            Step::Retire => held.retired(),
        };
        next.write(&mut secret);
        let path = self.path("secrets", &self.place.secret);
        match self.within_term(self.api.replace(&path, &secret)).await? {
            Ok(_secret) => info!(step = ?due, "the mesh's root is rotated"),
            // Somebody else was quicker: look again.
            Err(refusal) if refusal.status == Some(409) => return Ok(false),
            Err(refusal) => return Err(refusal.into()),
        }
        Ok(true)
    }

    /// Writes the Secret that is not there: of what is in force, because the mesh trusts nothing else, or of an authority
    /// that is made.
    async fn create(&self, held: Option<&Held>) -> Result<(), Halt> {
        let mut secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": { "name": self.place.secret, "namespace": self.place.namespace },
        });
        let what = if let Some(held) = held {
            held.write(&mut secret);
            "the Secret of the mesh's authority was gone, and is written anew as it was"
        } else {
            Held::made(self.make()?).write(&mut secret);
            "an authority of the mesh was made"
        };
        let path = self.collection("secrets");
        match self.within_term(self.api.create(&path, &secret)).await? {
            Ok(_secret) => info!(secret = self.place.secret, "{what}"),
            Err(refusal) if refusal.status == Some(409) => {}
            Err(refusal) => return Err(refusal.into()),
        }
        Ok(())
    }

    async fn publish(&self, bundle: Option<Value>, held: &Held) -> Result<(), Halt> {
        let roots = String::from_utf8_lossy(&held.files.roots).into_owned();
        let done = if let Some(mut bundle) = bundle {
            bundle["data"][ROOTS] = roots.into();
            let path = self.path("configmaps", &self.place.bundle);
            self.within_term(self.api.replace(&path, &bundle)).await?
        } else {
            let bundle = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": { "name": self.place.bundle, "namespace": self.place.namespace },
                "data": { ROOTS: roots },
            });
            let path = self.collection("configmaps");
            self.within_term(self.api.create(&path, &bundle)).await?
        };
        match done {
            Ok(_bundle) => info!(
                configmap = self.place.bundle,
                "the mesh's roots are published"
            ),
            Err(refusal) if refusal.status == Some(409) => {}
            Err(refusal) => return Err(refusal.into()),
        }
        Ok(())
    }

    fn make(&self) -> Result<crate::identity::CaFiles, Halt> {
        LocalCa::make(&self.trust_domain, SystemTime::now())
            .map_err(|error| Halt::Trouble(sentence(&error)))
    }

    fn collection(&self, resource: &str) -> String {
        format!("/api/v1/namespaces/{}/{resource}", self.place.namespace)
    }

    fn path(&self, resource: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(resource))
    }

    /// Until when we may write.
    fn term(&self) -> Result<Instant, Halt> {
        let until = *self.term.borrow();
        until
            .filter(|until| Instant::now() < *until)
            .ok_or(Halt::Over)
    }

    /// Makes a request, unless it is not ours to make. Given up when the term ends.
    async fn within_term<T>(&self, request: impl Future<Output = T>) -> Result<T, Halt> {
        let until = self.term()?;
        timeout_at(until.into(), request)
            .await
            .map_err(|_elapsed| Halt::Over)
    }
}
