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

#[test]
fn connections_go_on_when_their_pod_is_attached_again_and_end_with_it() {
    let snapshot = Snapshot::empty(MeshSettings {
        trust_domain: TrustDomain::new("td").unwrap(),
        cluster_domain: "cluster.local".into(),
        cluster: "k".into(),
        network: "".into(),
    });
    let story = async {
        let hub = Hub::new(
            Arc::new(snapshot),
            Arc::default(),
            (Arc::default(), Arc::new(Nameless)),
            Arc::default(),
            Arc::new(Metrics::new()),
        );
        let desk = Desk::new(Rc::new(hub));
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
