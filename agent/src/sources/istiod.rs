//! istiod as the source of layer 4: workloads, services and policies over delta ADS, as ztunnel gets them.
//!
//! ```text
//!  connection (TLS, token, gRPC) ◀─▶ subscription (one per type; pure) ─▶ translate (pure) ─▶ Announcement ─▶ the mesh
//!                                        └─ condition ─▶ status, metrics, log
//! ```
//!
//! Nothing is handed on before both types have been told once: half a mesh has policies missing. From then on an istiod
//! that cannot be reached changes nothing: the last state stays, and the condition says since when. The next connection
//! begins with what is known.

mod address;
mod condition;
mod connection;
mod messages;
mod subscription;
mod translate;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::header::HeaderMap;
use jiff::Timestamp;
use tokio::runtime;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use self::connection::{Connection, Ended};
use self::messages::{Node, Struct, Value};
use self::subscription::Subscription;
use self::translate::Defaults;
use crate::mesh::Announcement;

pub use self::address::{InvalidXdsAddress, XdsAddress};
pub use self::condition::{IstiodCondition, IstiodTrouble, TypeCondition};

/// Waits after failures: doubled each time, up to the longest, and each of a random length around that.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// A connection that ends sooner than this was none.
const BRIEF: Duration = Duration::from_secs(1);

/// Who is told of istiod's condition; nothing before it is followed.
pub type IstiodConditions = watch::Sender<Option<Arc<IstiodCondition>>>;

/// Where istiod is, and who asks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it is.
    pub address: XdsAddress,
    /// The name that it proves to have, where that is not its address's.
    pub hostname: Option<String>,
    /// File with the certificates that vouch for it, in PEM.
    pub root_ca: PathBuf,
    /// File with the token that vouches for us.
    pub token: PathBuf,
    /// Who we are.
    pub node: Asking,
    /// Headers of the operator's, for whoever passes the calls on. The agent's own go before them.
    pub headers: HeaderMap,
}

/// Who asks istiod, as ztunnel would say it.
#[derive(Clone, Debug)]
pub struct Asking {
    /// Name of our pod.
    pub pod: String,
    /// Its namespace, which istiod compares with the token's.
    pub namespace: String,
    /// Address of our pod.
    pub address: String,
    /// Node that it runs on.
    pub node: String,
    /// Cluster that the node is in.
    pub cluster: String,
    /// What else the operator says of the node, by key; it goes before what the agent says under the same one, as in
    /// ztunnel.
    pub metadata: BTreeMap<String, String>,
}

impl Asking {
    /// As Envoy's protocol names a client; istiod knows node proxies by the first word.
    fn node(&self) -> Node {
        let Self {
            pod,
            namespace,
            address,
            node,
            cluster,
            metadata,
        } = self;
        let own = [
            ("NAME", pod),
            ("NAMESPACE", namespace),
            ("INSTANCE_IPS", address),
            ("NODE_NAME", node),
            ("CLUSTER_ID", cluster),
        ];
        let text = |text: &String| Value {
            text: Some(text.clone()),
        };
        let own = own.map(|(key, value)| (key.to_owned(), text(value)));
        let said = metadata
            .iter()
            .map(|(key, value)| (key.clone(), text(value)));
        Node {
            id: format!("ztunnel~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(Struct {
                fields: own.into_iter().chain(said).collect(),
            }),
        }
    }
}

/// An istiod that is followed. Dropping it ends the following.
#[derive(Debug)]
pub struct IstiodWatch {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl IstiodWatch {
    /// Follows istiod. `take` is called from the following thread, for the first time once everything has been told.
    ///
    /// # Errors
    /// No thread can be had. Not that istiod does not answer: it may come.
    pub fn start(
        settings: Settings,
        conditions: IstiodConditions,
        take: impl FnMut(Vec<Announcement>) + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let mut desk = Desk::new(settings, conditions, take);
        let following = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = desk.serve() => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new()
            .name("istiod".to_owned())
            .spawn(following)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for IstiodWatch {
    fn drop(&mut self) {
        // Either is gone only if the thread has ended already.
        let _told = self.stop.take().map(|stop| stop.send(()));
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// Where answers arrive, and are handed on.
struct Desk<T> {
    settings: Settings,
    defaults: Defaults,
    subscriptions: [Subscription; 2],
    /// What is not handed on yet, because not everything has been told.
    held: Vec<Announcement>,
    /// Whether anything has been handed on.
    begun: bool,
    trouble: Option<IstiodTrouble>,
    failures: u64,
    refusals: u64,
    conditions: IstiodConditions,
    take: T,
}

impl<T: FnMut(Vec<Announcement>)> Desk<T> {
    fn new(settings: Settings, conditions: IstiodConditions, take: T) -> Self {
        let defaults = Defaults {
            cluster: settings.node.cluster.as_str().into(),
        };
        Self {
            settings,
            defaults,
            subscriptions: [translate::ADDRESS, translate::AUTHORIZATION].map(Subscription::new),
            held: Vec::new(),
            begun: false,
            trouble: None,
            failures: 0,
            refusals: 0,
            conditions,
            take,
        }
    }

    /// Follows for good.
    async fn serve(&mut self) {
        self.tell();
        let mut wait = SHORTEST_WAIT;
        loop {
            let began = Instant::now();
            let Err(end) = self.converse().await;
            if began.elapsed() > BRIEF {
                wait = SHORTEST_WAIT;
            }
            self.note_end(&end);
            sleep(wait.mul_f64(rand::random_range(0.5..1.5))).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// One connection from its beginning to its end.
    async fn converse(&mut self) -> Result<std::convert::Infallible, Ended> {
        let node = self.settings.node.node();
        let first = self
            .subscriptions
            .each_ref()
            .map(|one| one.ask(node.clone()));
        let mut connection = Connection::open(&self.settings, &first).await?;
        loop {
            let response = connection.receive().await?;
            let asked = self
                .subscriptions
                .iter_mut()
                .find(|one| one.type_url() == response.type_url);
            // What was not asked for is not answered.
            let Some(subscription) = asked else { continue };
            let taken = subscription.take(response, &self.defaults);
            self.refusals += taken.refusals;
            if taken.refusals > 0 {
                let detail = taken.answer.error_detail.as_ref();
                let why = detail.map_or("", |detail| &*detail.message);
                warn!(istiod = %self.settings.address.authority(), "resources of istiod are refused: {why}");
            }
            connection.send(&taken.answer).await?;
            self.hand_on(taken.announcements);
        }
    }

    fn hand_on(&mut self, announcements: Vec<Announcement>) {
        let had_trouble = self.trouble.take().is_some();
        if had_trouble {
            info!(istiod = %self.settings.address.authority(), "istiod answers again");
        }
        self.held.extend(announcements);
        let whole = self.subscriptions.iter().all(Subscription::has_begun);
        // An empty mesh is news, too, once.
        if whole && !(self.begun && self.held.is_empty()) {
            self.begun = true;
            (self.take)(std::mem::take(&mut self.held));
        }
        self.tell();
    }

    /// Notes that there is no connection any more.
    fn note_end(&mut self, end: &Ended) {
        if end.is_routine {
            return;
        }
        self.failures += 1;
        let is_new = self
            .trouble
            .as_ref()
            .is_none_or(|trouble| trouble.message != end.message);
        if is_new {
            warn!(istiod = %self.settings.address.authority(), "istiod {end}; the last state stays in force");
        }
        let since = self.trouble.take().map(|trouble| trouble.since);
        self.trouble = Some(IstiodTrouble {
            since: since.unwrap_or_else(Timestamp::now),
            message: end.message.clone(),
        });
        self.tell();
    }

    /// Shows the condition.
    fn tell(&self) {
        let of_type = |one: &Subscription| TypeCondition {
            name: one.type_url().trim_start_matches("type.googleapis.com/"),
            resources: one.len(),
            begun: one.has_begun(),
            refused: one.refusals().collect(),
        };
        let condition = IstiodCondition {
            address: format!("https://{}", self.settings.address.authority()).into(),
            types: self.subscriptions.iter().map(of_type).collect(),
            trouble: self.trouble.clone(),
            failures: self.failures,
            refusals: self.refusals,
        };
        self.conditions.send_replace(Some(Arc::new(condition)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Asking;

    #[test]
    fn what_the_operator_says_of_the_node_goes_before_what_the_agent_says() {
        let said = [("NODE_NAME", "other"), ("ZONE", "b")];
        let said = said.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let asking = Asking {
            pod: "agent-1".to_owned(),
            namespace: "culvert-system".to_owned(),
            address: "10.0.0.1".to_owned(),
            node: "n".to_owned(),
            cluster: "c".to_owned(),
            metadata: BTreeMap::from(said),
        };
        let node = asking.node();
        assert_eq!(
            node.id,
            "ztunnel~10.0.0.1~agent-1.culvert-system~culvert-system.svc.cluster.local"
        );
        let fields = node.metadata.unwrap().fields;
        let read: Vec<_> = fields
            .iter()
            .map(|(key, value)| (&**key, value.text.as_deref().unwrap_or_default()))
            .collect();
        assert_eq!(
            read,
            [
                ("CLUSTER_ID", "c"),
                ("INSTANCE_IPS", "10.0.0.1"),
                ("NAME", "agent-1"),
                ("NAMESPACE", "culvert-system"),
                ("NODE_NAME", "other"),
                ("ZONE", "b"),
            ]
        );
    }
}
