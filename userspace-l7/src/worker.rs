//! L7: one proxy thread. It owns its ring, its share of every pod's listeners, its tunnels and its copy of
//! the mesh; the control plane reaches it by commands only.

mod inbox;
mod journey;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{error, info, warn};

pub use crate::connections::{Carriage, Direction, LiveConnection};
use crate::held::{self, Desk};
use crate::hub::Hub;
use crate::inbound;
use crate::key_sets::KeySets;
use crate::model::{Snapshot, WorkloadUid};
use crate::names::Names;
use crate::pod::{Course, Follower, Openings, Phase, Pod, PodSockets, TakeDns, until_ended};
use crate::ring::{self, Backend, Listener, Tcp};
use crate::telemetry::{ChangeUnderWay, Metrics};
use crate::tls::Identities;
use crate::traffic::Traffic;

use inbox::{Command, Inbox, Publication};
use journey::{Carrying, Journey};

/// What every worker is given.
#[derive(Clone)]
pub struct Settings {
    /// How it waits for sockets.
    pub backend: Backend,
    /// The mesh to begin with.
    pub snapshot: Arc<Snapshot>,
    /// Identities of local pods, kept current by the agent.
    pub identities: Arc<Identities>,
    /// Keys of tokens, kept current by the agent.
    pub key_sets: Arc<KeySets>,
    /// Looks up names that clients ask for.
    pub names: Arc<dyn Names>,
    /// What traffic policies remember, for all workers together.
    pub traffic: Arc<Traffic>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Called with a pod whose listener stopped working, so that the agent makes it a new one.
    pub listener_lost: Arc<dyn Fn(&WorkloadUid) + Send + Sync>,
}

/// A pod that the worker shall serve: this worker's share of its listeners, and its sockets.
pub struct Attachment {
    /// The pod.
    pub uid: WorkloadUid,
    /// The cookie of its network namespace, by which [`Openings`] names it.
    pub netns: u64,
    /// Accepts what the pod's applications dialled; its connections' local address is the original
    /// destination.
    pub outbound: OwnedFd,
    /// Accepts plaintext for the pod; its connections' local address is the original destination.
    pub inbound: OwnedFd,
    /// Accepts HBONE for the pod.
    pub hbone: OwnedFd,
    /// Opens sockets where the pod lives.
    pub sockets: Arc<dyn PodSockets>,
    /// Takes the pod's DNS connections over TCP; without it they are carried like any other.
    pub dns: Option<Arc<TakeDns>>,
}

/// A running worker. Dropping it without [`Worker::drain`] ends its connections at once.
pub struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    thread: thread::JoinHandle<()>,
}

impl Worker {
    /// Starts the thread `culvert-worker-<index>`. Without `openings`, connections are accepted before their far
    /// side is known to answer.
    ///
    /// # Errors
    /// The thread could not be started. What goes wrong on it later is logged there, and ends it: see
    /// [`Worker::is_finished`].
    pub fn start(
        index: usize,
        settings: Settings,
        openings: Option<Box<dyn Openings>>,
    ) -> io::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let backend = settings.backend;
        let thread = thread::Builder::new()
            .name(format!("culvert-worker-{index}"))
            .spawn(move || {
                let work = run(index, settings, openings, Inbox::new(inbox));
                if let Err(error) = ring::run(backend, work) {
                    error!(worker = index, %error, "the worker stopped working");
                }
            })?;
        Ok(Self { commands, thread })
    }

    /// Gives the worker a new mesh, or one in place of those that it has not come to yet; it follows it when it lets go of
    /// `change`. Live connections that it forbids are ended.
    pub fn publish(&self, snapshot: Arc<Snapshot>, change: Option<Arc<ChangeUnderWay>>) {
        self.send(Command::Publish(Publication {
            snapshot,
            changes: change.into_iter().collect(),
        }));
    }

    /// Serves a pod, in place of an earlier attachment of the same one. Connections made through that go on.
    pub fn attach(&self, attachment: Attachment) {
        self.send(Command::Attach(Box::new(attachment)));
    }

    /// Lets a pod go that goes on without the mesh: closes its listeners, has its connections end after what they have
    /// under way where peers can be told, and ends what is left after `deadline`. The receiver resolves when all of
    /// them have ended; it fails if the worker has, or if the pod was attached again, whose connections then go on.
    pub fn part(&self, uid: WorkloadUid, deadline: Duration) -> oneshot::Receiver<()> {
        let (ended, done) = oneshot::channel();
        self.send(Command::Part(uid, deadline, ended));
        done
    }

    /// Stops serving a pod and ends its connections. The receiver resolves when all of them have ended, or
    /// fails if the worker has.
    pub fn detach(&self, uid: WorkloadUid) -> oneshot::Receiver<()> {
        let (ended, done) = oneshot::channel();
        self.send(Command::Detach(uid, ended));
        done
    }

    /// The connections that are alive now; none if the worker has stopped.
    pub async fn connections(&self) -> Vec<LiveConnection> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Connections(answer));
        answered.await.unwrap_or_default()
    }

    /// Resolves when no connection is alive; at once if the worker has stopped. New ones are taken meanwhile.
    ///
    /// Cancel safe: whoever stops waiting is forgotten.
    pub async fn idle(&self) {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Idle(answer));
        let _is_idle = answered.await;
    }

    /// Asks the worker to accept no more, and to end what is left after `deadline`.
    pub fn drain(&self, deadline: Duration) {
        self.send(Command::Drain(deadline));
    }

    /// Whether the thread has ended, which it does by itself only after a failure.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    fn send(&self, command: Command) {
        // A worker that has stopped needs no more commands; `is_finished` tells the agent.
        let _stopped = self.commands.send(command);
    }
}

async fn run(
    index: usize,
    settings: Settings,
    openings: Option<Box<dyn Openings>>,
    mut inbox: Inbox,
) {
    let Settings {
        snapshot,
        identities,
        key_sets,
        names,
        traffic,
        metrics,
        listener_lost,
        ..
    } = settings;
    let known = (key_sets, names);
    let hub = Rc::new(Hub::new(snapshot, identities, known, traffic, metrics));
    let desk = Desk::new(Rc::clone(&hub));
    if let Some(openings) = openings {
        spawn(Rc::clone(&desk).attend(openings));
    }
    let mut pods = HashMap::<WorkloadUid, Served>::new();
    while let Some(command) = inbox.next().await {
        match command {
            Command::Publish(publication) => follow(&hub, index, publication),
            Command::Attach(attachment) => {
                let uid = attachment.uid.clone();
                match Served::start(&desk, &hub, *attachment, &listener_lost) {
                    Ok(mut served) => {
                        if let Some(earlier) = pods.remove(&uid) {
                            served.succeed(earlier);
                        }
                        pods.insert(uid, served);
                    }
                    Err(error) => {
                        warn!(workload = %uid, %error, "cannot serve the pod's listeners");
                        listener_lost(&uid);
                    }
                }
            }
            Command::Part(uid, deadline, ended) => match pods.get_mut(&uid) {
                Some(served) => served.part(deadline, ended),
                // Whoever asked may have gone away.
                None => drop(ended.send(())),
            },
            Command::Detach(uid, ended) => {
                hub.requests.forget(|key| key.pod == uid);
                hub.tunnels.forget(&uid);
                let served = pods.remove(&uid);
                let hub = Rc::clone(&hub);
                spawn(async move {
                    if let Some(served) = served {
                        served.end().await;
                        // What its last requests have left behind.
                        hub.requests.forget(|key| key.pod == uid);
                    }
                    // Whoever asked may have gone away.
                    let _gone = ended.send(());
                });
            }
            Command::Connections(answer) => {
                // Whoever asked may have gone away.
                let _gone = answer.send(hub.connections.list());
            }
            Command::Idle(answer) => spawn(tell_once_idle(Rc::clone(&hub), answer)),
            Command::Drain(deadline) => {
                drain(&hub, &mut pods, deadline).await;
                return;
            }
        }
    }
}

fn follow(hub: &Hub, index: usize, publication: Publication) {
    let Publication { snapshot, changes } = publication;
    let generation = snapshot.generation;
    let refused = hub.publish(snapshot);
    hub.metrics.follow(index, generation);
    drop(changes);
    if refused > 0 {
        info!(
            connections = refused,
            "connections lost their right by a policy change"
        );
    }
}

async fn tell_once_idle(hub: Rc<Hub>, mut answer: oneshot::Sender<()>) {
    tokio::select! {
        () = hub.connections.until_empty() => drop(answer.send(())),
        () = answer.closed() => {}
    }
}

/// How long after the last connection was brought here listeners stay open: those in their queues, and those whose handshake is
/// not over, are taken rather than reset.
const LAST_CALL: Duration = Duration::from_millis(250);

async fn drain(hub: &Hub, pods: &mut HashMap<WorkloadUid, Served>, deadline: Duration) {
    let until = Instant::now() + deadline;
    tokio::time::sleep(LAST_CALL.min(deadline)).await;
    for course in pods.values().flat_map(Served::courses) {
        course.advance(Phase::Parting);
    }
    hub.tunnels.drain();
    // Tunnels without a connection, too: a request that was on its way when the client was told is still served.
    let left = async {
        for served in pods.values() {
            served.until_left().await;
        }
    };
    if tokio::time::timeout_at(until, left).await.is_err() {
        info!(
            connections = hub.connections.len(),
            "ending connections that outlived the drain time"
        );
    }
    for (_uid, served) in pods.drain() {
        served.end().await;
    }
}

/// A pod being served: dropping it ends its tasks.
struct Served {
    course: Course,
    /// Of earlier attachments whose connections go on.
    earlier: Vec<Course>,
    netns: u64,
    desk: Rc<Desk>,
    /// Its parting, if it is to end.
    parting: Option<AbortHandle>,
}

impl Served {
    fn start(
        desk: &Rc<Desk>,
        hub: &Rc<Hub>,
        attachment: Attachment,
        listener_lost: &Arc<dyn Fn(&WorkloadUid) + Send + Sync>,
    ) -> io::Result<Self> {
        let Attachment {
            uid,
            netns,
            outbound,
            inbound,
            hbone,
            sockets,
            dns,
        } = attachment;
        let course = Course::new();
        let pod = Pod {
            uid,
            netns,
            sockets,
            dns,
            outlook: course.outlook(),
        };
        let door = |listener| -> io::Result<Door> {
            Ok(Door {
                listener: Listener::from_fd(listener)?,
                hub: Rc::clone(hub),
                pod: pod.clone(),
                follower: course.follow(),
                lost: Arc::clone(listener_lost),
            })
        };
        let (outbound, inbound, hbone) = (door(outbound)?, door(inbound)?, door(hbone)?);
        desk.welcome(pod, course.clone());
        let outbound_desk = Rc::clone(desk);
        spawn(outbound.open(move |hub, pod, tcp| {
            let desk = Rc::clone(&outbound_desk);
            let under_way = hub.connections.accepted();
            async move {
                let carrying = held::serve(&desk, &pod, tcp).await;
                drop(under_way);
                carrying
            }
        }));
        spawn(inbound.open(|hub, pod, tcp| {
            let under_way = hub.connections.accepted();
            async move {
                let carrying = inbound::serve_plain(&hub, &pod, tcp).await;
                drop(under_way);
                carrying
            }
        }));
        spawn(hbone.open(|hub, pod, tcp| async move {
            inbound::serve_hbone(&hub, &pod, tcp).await;
            None
        }));
        let desk = Rc::clone(desk);
        Ok(Self {
            course,
            earlier: Vec::new(),
            netns,
            desk,
            parting: None,
        })
    }

    /// Takes the place of an earlier attachment of the same pod, whose connections go on.
    fn succeed(&mut self, earlier: Self) {
        earlier.course.advance(Phase::Closing);
        if let Some(parting) = &earlier.parting {
            parting.abort();
        }
        if earlier.netns != self.netns {
            earlier.desk.forget(earlier.netns);
        }
        self.earlier = earlier.earlier;
        self.earlier.push(earlier.course);
        self.earlier.retain(|course| !course.is_left());
    }

    /// Ends in good order, and says so unless another attachment takes its place before that.
    fn part(&mut self, deadline: Duration, ended: oneshot::Sender<()>) {
        let courses: Vec<_> = self.courses().cloned().collect();
        let parting = tokio::task::spawn_local(async move {
            for course in &courses {
                course.advance(Phase::Parting);
            }
            let left = async {
                for course in &courses {
                    course.until_left().await;
                }
            };
            let _in_time = tokio::time::timeout(deadline, left).await;
            for course in &courses {
                course.advance(Phase::Ended);
                course.until_left().await;
            }
            // Whoever asked may have gone away.
            let _gone = ended.send(());
        });
        self.parting = Some(parting.abort_handle());
    }

    /// Ends every connection, and resolves when the last task is gone.
    async fn end(self) {
        self.desk.forget(self.netns);
        for course in self.courses() {
            course.advance(Phase::Ended);
        }
        self.until_left().await;
    }

    /// Resolves when the last task is gone.
    async fn until_left(&self) {
        for course in self.courses() {
            course.until_left().await;
        }
    }

    fn courses(&self) -> impl Iterator<Item = &Course> {
        self.earlier.iter().chain([&self.course])
    }
}

/// A listener and what its connections need.
struct Door {
    listener: Listener,
    hub: Rc<Hub>,
    pod: Pod,
    follower: Follower,
    lost: Arc<dyn Fn(&WorkloadUid) + Send + Sync>,
}

impl Door {
    /// Accepts until the pod's phase moves on, giving each connection a task that ends with the pod.
    async fn open<J, F>(self, opening: J)
    where
        J: Fn(Rc<Hub>, Pod, Tcp) -> F + 'static,
        F: Future<Output = Option<Carrying>> + 'static,
    {
        let Self {
            listener,
            hub,
            pod,
            follower,
            lost,
        } = self;
        let time = hub.metrics.workload_time(&pod.uid);
        loop {
            let accepted = tokio::select! {
                biased;
                () = follower.reached(Phase::Closing) => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(tcp) => {
                    let travel = Journey::new(opening(Rc::clone(&hub), pod.clone(), tcp));
                    spawn(time.meter(until_ended(follower.clone(), travel)));
                }
                Err(error) if ring::is_passing(&error) => {
                    warn!(workload = %pod.uid, %error, "cannot accept for a moment");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => {
                    warn!(workload = %pod.uid, %error, "the listener stopped working");
                    lost(&pod.uid);
                    break;
                }
            }
        }
        listener.close();
    }
}

/// Pause after the process ran out of descriptors or memory: long enough not to spin, short enough to be
/// there when some are free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn spawn(task: impl Future<Output = ()> + 'static) {
    // Tasks end by themselves or with their pod; a panic in one is reported by the runtime and stays there.
    drop(tokio::task::spawn_local(task));
}

#[cfg(test)]
mod tests;
