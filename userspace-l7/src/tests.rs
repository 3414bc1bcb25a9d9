//! Journeys from end to end in one thread: pods are loopback addresses, applications are scripts, and
//! everything between them is real.

mod any_head;
mod application;
mod bodies;
mod correctness;
mod doubt;
mod http;
mod http2;
mod judging;
mod mesh;
mod pooled;
mod serving;

use std::future::Future;
use std::time::Duration;

pub(crate) use self::any_head::any_head;
use crate::ring::{Backend, run};

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn on_both_backends<F: Future<Output = ()>>(case: impl Fn() -> F) {
    for backend in [Backend::Uring, Backend::Epoll] {
        run(backend, async {
            tokio::time::timeout(PATIENCE, case()).await.unwrap();
        })
        .unwrap();
    }
}
