//! A pod that is attached again.

use std::future::pending;

use super::*;
use crate::model::{MeshSettings, TrustDomain};
use crate::names::Nameless;

fn served(desk: &Rc<Desk>, netns: u64) -> Served {
    Served {
        course: Course::new(),
        earlier: Vec::new(),
        netns,
        desk: Rc::clone(desk),
        parting: None,
    }
}

fn hub() -> Rc<Hub> {
    let snapshot = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    let metrics = Arc::new(Metrics::new());
    let snapshot = Arc::new(snapshot);
    let keys_and_names = (Arc::default(), Arc::new(Nameless) as _);
    let hub = Hub::new(
        snapshot,
        Arc::default(),
        keys_and_names,
        Arc::default(),
        metrics,
    );
    Rc::new(hub)
}

#[test]
fn connections_go_on_when_their_pod_is_attached_again_and_end_with_it() {
    let story = async {
        let desk = Desk::new(hub());
        let mut served_now = served(&desk, 1);
        let connections: Vec<_> = (0..3)
            .map(|_| {
                let travel = until_ended(served_now.course.follow(), pending());
                let connection = tokio::task::spawn_local(travel);
                let mut again = served(&desk, 1);
                again.succeed(std::mem::replace(&mut served_now, served(&desk, 1)));
                served_now = again;
                connection
            })
            .collect();
        tokio::task::yield_now().await;
        let ended = |connections: &[tokio::task::JoinHandle<()>]| {
            connections.iter().filter(|task| task.is_finished()).count()
        };
        assert_eq!(ended(&connections), 0);
        served_now.end().await;
        tokio::task::yield_now().await;
        assert_eq!(ended(&connections), 3);
    };
    ring::run(Backend::Epoll, story).unwrap();
}

/// A pod with a request under way that is answered when the test says so, and bytes that never end.
struct Busy {
    served: Served,
    answer: oneshot::Sender<()>,
    request: tokio::task::JoinHandle<()>,
    bytes: tokio::task::JoinHandle<()>,
}

impl Busy {
    fn new(desk: &Rc<Desk>) -> Self {
        let served = served(desk, 1);
        let (answer, answered) = oneshot::channel();
        let parting = served.course.outlook().parting();
        let request = until_ended(served.course.follow(), async move {
            parting.await;
            answered.await.unwrap();
        });
        let bytes = until_ended(served.course.follow(), pending());
        Self {
            request: tokio::task::spawn_local(request),
            bytes: tokio::task::spawn_local(bytes),
            served,
            answer,
        }
    }
}

#[test]
fn what_a_pod_has_under_way_when_it_leaves_has_its_time_and_no_more() {
    const DEADLINE: Duration = Duration::from_millis(200);
    let story = async {
        let desk = Desk::new(hub());
        let mut busy = Busy::new(&desk);
        let (ended, mut left) = oneshot::channel();
        let begun = Instant::now();
        busy.served.part(DEADLINE, ended);
        busy.answer.send(()).unwrap();
        busy.request.await.unwrap();
        assert!(!busy.bytes.is_finished() && left.try_recv().is_err());
        left.await.unwrap();
        assert!(begun.elapsed() >= DEADLINE);
        busy.bytes.await.unwrap();
    };
    ring::run(Backend::Epoll, story).unwrap();
}

#[test]
fn a_pod_that_comes_back_while_it_leaves_keeps_its_connections() {
    let story = async {
        let desk = Desk::new(hub());
        let mut busy = Busy::new(&desk);
        let (ended, left) = oneshot::channel();
        busy.served.part(Duration::from_secs(60), ended);
        tokio::task::yield_now().await;
        let mut again = served(&desk, 1);
        again.succeed(busy.served);
        assert!(left.await.is_err(), "it has not left");
        assert!(!busy.request.is_finished() && !busy.bytes.is_finished());
        again.end().await;
        busy.bytes.await.unwrap();
    };
    ring::run(Backend::Epoll, story).unwrap();
}

#[test]
fn a_worker_that_drains_waits_for_tunnels_that_no_connection_is_in() {
    const DEADLINE: Duration = Duration::from_secs(60);
    let story = async {
        let hub = hub();
        let desk = Desk::new(Rc::clone(&hub));
        let served = served(&desk, 1);
        let (last_request, arrives) = oneshot::channel();
        let tunnel = until_ended(served.course.follow(), async move {
            arrives.await.unwrap();
        });
        let tunnel = tokio::task::spawn_local(tunnel);
        let mut pods = HashMap::from([(WorkloadUid::new("pod"), served)]);
        let draining = tokio::task::spawn_local(async move {
            drain(&hub, &mut pods, DEADLINE).await;
        });
        tokio::time::sleep(LAST_CALL * 2).await;
        assert!(!draining.is_finished(), "the tunnel was cut");
        last_request.send(()).unwrap();
        draining.await.unwrap();
        tunnel.await.unwrap();
    };
    ring::run(Backend::Epoll, story).unwrap();
}
