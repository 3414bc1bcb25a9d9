//! A cluster's API as the source of mesh objects: every kind is listed, then watched, on a thread of its own.
//!
//! ```text
//!  installed (CRDs) ─▶ follow (one per kind) ─ News ─▶ Cluster ─ Update ─▶ the mesh
//!                        │ list, watch, resume             └─ condition ─▶ status, metrics, log
//!                        └─▶ api (requests) ─▶ access (who we are, whom we trust)
//! ```
//!
//! Nothing is handed on before every kind has been listed once: half a mesh has policies missing. From then on an
//! API that cannot be reached changes nothing: the last state stays, and the condition says since when.

mod access;
mod api;
mod cluster;
mod collection;
mod condition;
mod follow;
mod held;
#[cfg(test)]
mod tests;
mod trim;
mod writer;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use self::access::Access;
use self::api::Api;
use self::collection::{Collection, Topic};
use self::follow::{Follower, Installed, News};
use super::Update;
use crate::mesh::ObjectKey;

pub use self::access::ClusterError;
pub use self::api::{Cause, Trouble};
pub use self::cluster::Cluster;
pub use self::condition::{ClusterCondition, KindCondition, Phase, Since};
pub use self::held::{Held, Holdings};
pub use self::writer::{ApiWriter, Refusal, object_path};

/// Quiet time after which a burst of changes counts as over.
const QUIET: Duration = Duration::from_millis(30);
/// Longest wait for a burst to end: a policy has to hold within a second.
const PATIENCE: Duration = Duration::from_millis(400);
/// Objects on their way from the connections to the state: each is a whole one, so they are few.
const IN_FLIGHT: usize = 64;

/// Who is told of the source's condition; nothing before the source has begun.
pub type Conditions = watch::Sender<Option<Arc<ClusterCondition>>>;

/// What is followed, and how its state begins.
type Beginning = (Vec<Collection>, fn(Arc<str>, &[Collection]) -> Cluster);

/// A cluster that is followed. Dropping it ends the following.
#[derive(Debug)]
pub struct KubernetesWatch {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl KubernetesWatch {
    /// Follows the cluster that a kubeconfig names, or else the one that this process is a pod of, with the mesh's
    /// configuration in the `ConfigMap` of that name. `take` is called from the following thread, for the first time once
    /// every kind has been listed.
    ///
    /// # Errors
    /// It is not said which cluster, or how to be known to it; or no thread can be had. Not that the cluster does not
    /// answer: it may come.
    pub fn start(
        (kubeconfig, mesh_config): (Option<&Path>, &str),
        conditions: Conditions,
        take: impl FnMut(Update, &Cluster) + Send + 'static,
    ) -> Result<Self, ClusterError> {
        let collections = collection::all(mesh_config);
        Self::begin(kubeconfig, (collections, Cluster::new), conditions, take)
    }

    /// As [`KubernetesWatch::start`], and keeps what the server holds of each object besides, also of those without effect.
    /// `take` is called for news of that, too, with an update that has no changes.
    ///
    /// # Errors
    /// As [`KubernetesWatch::start`].
    pub fn start_holding(
        (kubeconfig, mesh_config): (Option<&Path>, &str),
        conditions: Conditions,
        take: impl FnMut(Update, &Cluster) + Send + 'static,
    ) -> Result<Self, ClusterError> {
        let mut collections = collection::all(mesh_config);
        collections.extend(collection::idle());
        Self::begin(
            kubeconfig,
            (collections, Cluster::holding),
            conditions,
            take,
        )
    }

    fn begin(
        kubeconfig: Option<&Path>,
        (collections, cluster): Beginning,
        conditions: Conditions,
        take: impl FnMut(Update, &Cluster) + Send + 'static,
    ) -> Result<Self, ClusterError> {
        let no_thread = |error: io::Error| ClusterError::NoThread(error);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(no_thread)?;
        let access = runtime.block_on(Access::find(kubeconfig))?;
        let api = {
            // The client puts a task of its own on the runtime.
            let _inside = runtime.enter();
            access.api()?
        };
        let (stop, stopped) = oneshot::channel();
        let cluster = cluster(api.server(), &collections);
        let following = move || {
            run(
                &runtime,
                &api,
                (collections, cluster),
                conditions,
                take,
                stopped,
            );
        };
        let thread = thread::Builder::new()
            .name("kubernetes".to_owned())
            .spawn(following)
            .map_err(no_thread)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for KubernetesWatch {
    fn drop(&mut self) {
        // Either is gone only if the thread has ended already.
        let _told = self.stop.take().map(|stop| stop.send(()));
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn run(
    runtime: &Runtime,
    api: &Api,
    (collections, cluster): (Vec<Collection>, Cluster),
    conditions: Conditions,
    take: impl FnMut(Update, &Cluster),
    stopped: oneshot::Receiver<()>,
) {
    let (installed, known) = watch::channel(Installed::default());
    let (tell, news) = mpsc::channel(IN_FLIGHT);
    let recovered = watch::Sender::new(());
    let follow = |collection| {
        let (api, known) = (api.clone(), known.clone());
        let follower = Follower::new(api, collection, known, recovered.clone(), tell.clone());
        tokio::spawn(follower.run()).abort_handle()
    };
    runtime.block_on(async {
        for collection in collections {
            let _lives_with_the_runtime = follow(collection);
        }
        let mut desk = Desk {
            cluster,
            follow,
            followed: BTreeMap::new(),
            installed,
            conditions,
            take,
            told: None,
        };
        desk.serve(news, stopped).await;
    });
}

/// Where news arrive, and are handed on in bursts.
struct Desk<T, F> {
    cluster: Cluster,
    /// Begins to follow one collection.
    follow: F,
    /// Objects that others name, with who follows each.
    followed: BTreeMap<ObjectKey, AbortHandle>,
    installed: watch::Sender<Installed>,
    conditions: Conditions,
    take: T,
    /// The condition that was told last.
    told: Option<Arc<ClusterCondition>>,
}

impl<T, F> Desk<T, F>
where
    T: FnMut(Update, &Cluster),
    F: Fn(Collection) -> AbortHandle,
{
    async fn serve(
        &mut self,
        mut news: mpsc::Receiver<(Topic, News)>,
        stopped: impl Future<Output = Result<(), oneshot::error::RecvError>>,
    ) {
        tokio::pin!(stopped);
        let mut burst: Option<Burst> = None;
        self.tell();
        loop {
            let over = async {
                match &burst {
                    Some(burst) => sleep_until(burst.ends()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut stopped => return,
                () = over => {
                    self.hand_on(burst.take());
                }
                one = news.recv() => {
                    let Some((topic, news)) = one else { return };
                    self.hear(topic, news);
                    burst = Some(Burst::with_another(burst));
                }
            }
        }
    }

    fn hear(&mut self, topic: Topic, news: News) {
        match topic {
            Topic::Kind(kind) => self.cluster.take(&kind, news, Timestamp::now()),
            // What was still on its way when nobody named it any more says nothing.
            Topic::Named(key) if !self.followed.contains_key(&key) => {}
            Topic::Named(key) => self.cluster.take_named(&key, news, Timestamp::now()),
            Topic::Definitions => {
                self.installed
                    .send_if_modified(|installed| installed.take(&news));
                self.cluster.take_definitions(&news, Timestamp::now());
            }
        }
    }

    fn hand_on(&mut self, burst: Option<Burst>) {
        self.follow_named();
        if let Some(update) = self.cluster.update() {
            let noticed = burst.map(|burst| burst.began.into_std());
            (self.take)(Update { noticed, ..update }, &self.cluster);
        }
        self.tell();
    }

    /// Follows what others name now, and no longer what nobody names.
    fn follow_named(&mut self) {
        let names = self.cluster.names();
        let gone: Vec<_> = self
            .followed
            .keys()
            .filter(|key| !names.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            if let Some(follower) = self.followed.remove(&key) {
                follower.abort();
            }
            self.cluster.forget(&key);
        }
        for key in names {
            if let Entry::Vacant(place) = self.followed.entry(key)
                && let Some(collection) = Collection::of_one(place.key())
            {
                place.insert((self.follow)(collection));
            }
        }
    }

    /// Shows the condition, and logs what is new of it.
    fn tell(&mut self) {
        let now = Arc::new(self.cluster.condition());
        if self.told.as_ref() == Some(&now) {
            return;
        }
        for said in now.news(self.told.as_deref()) {
            if said.is_bad {
                warn!(server = %now.server, "{}", said.sentence);
            } else {
                info!(server = %now.server, "{}", said.sentence);
            }
        }
        self.told = Some(Arc::clone(&now));
        self.conditions.send_replace(Some(now));
    }
}

/// Changes that belong together.
#[derive(Clone, Copy)]
struct Burst {
    began: Instant,
    latest: Instant,
}

impl Burst {
    fn with_another(before: Option<Self>) -> Self {
        let latest = Instant::now();
        let began = before.map_or(latest, |burst| burst.began);
        Self { began, latest }
    }

    fn ends(&self) -> Instant {
        (self.latest + QUIET).min(self.began + PATIENCE)
    }
}
