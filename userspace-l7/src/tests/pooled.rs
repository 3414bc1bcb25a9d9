//! Connections that wait for their next request.

use std::rc::Rc;

use ::http::Request;
use tokio::task::yield_now;

use super::application::Talk;
use super::on_both_backends;
use super::serving::pair;
use crate::http::{Body, Keeping, Lease, Pool, PoolKey, Version, Wire, connect};
use crate::model::{Opening, WorkloadUid};
use crate::ring::RecvBuf;

fn key() -> Rc<PoolKey> {
    Rc::new(PoolKey {
        pod: WorkloadUid::new("pod"),
        destination: ([127, 0, 0, 1], 80).into(),
        workload: None,
        is_tunnelled: false,
        service: None,
        group: None,
        client: None,
        opening: Opening::default(),
    })
}

/// A connection of `pool`, and its server.
async fn connected(pool: &Pool, key: &Rc<PoolKey>) -> (Lease, Talk) {
    let (client, server) = pair().await;
    let wire = Wire::tcp(client, RecvBuf::default());
    let sender = connect(wire, Version::Http1).await.unwrap();
    let lease = pool.adopt(key, sender, Keeping::default());
    (lease, Talk::new(server))
}

/// Gives a connection back whose request is not answered yet, lets `meanwhile` happen, and answers then.
async fn give_back_early(mut lease: Lease, server: &mut Talk, meanwhile: impl FnOnce()) {
    let request = Request::get("/").header("host", "web").body(Body::Empty);
    let answer = lease.send(request.unwrap());
    lease.give_back();
    let _head = server.hear("\r\n\r\n").await;
    meanwhile();
    server
        .say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(answer.await.unwrap().status(), 200);
}

#[test]
fn a_connection_comes_back_after_its_request() {
    on_both_backends(|| async {
        let (pool, key) = (Pool::default(), key());
        let (lease, mut server) = connected(&pool, &key).await;
        give_back_early(lease, &mut server, || {}).await;
        while pool
            .take(&key, Version::Http1, Keeping::default())
            .is_none()
        {
            yield_now().await;
        }
    });
}

#[test]
fn no_connection_of_a_pod_that_is_gone_comes_back() {
    on_both_backends(|| async {
        let (pool, key) = (Pool::default(), key());
        let (lease, mut server) = connected(&pool, &key).await;
        give_back_early(lease, &mut server, || pool.forget(|one| one.pod == key.pod)).await;
        assert_eq!(server.hear("nothing").await, "", "it stays open");
        // Nor does it come to another one that is under the same name.
        let (lease, mut server) = connected(&pool, &key).await;
        let (_later, _other) = {
            pool.close(&key);
            connected(&pool, &key).await
        };
        give_back_early(lease, &mut server, || {}).await;
        assert_eq!(server.hear("nothing").await, "", "it stays open");
        assert!(
            pool.take(&key, Version::Http1, Keeping::default())
                .is_none()
        );
    });
}
