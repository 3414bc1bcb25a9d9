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
