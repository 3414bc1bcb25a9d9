//! No descriptor leaks. One test alone in its process: it counts all that the process has open.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::task::spawn_local;
use tokio::time::timeout;
use userspace_l7::ring::{Backend, Listener, Tcp, run};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn descriptors_return_to_where_they_were() {
    for backend in [Backend::Uring, Backend::Epoll] {
        // The first runtime of a process opens a few descriptors for good.
        run(backend, async {}).unwrap();
        let before = open_descriptors();
        run(backend, async {
            timeout(PATIENCE, short_connections())
                .await
                .expect("short connections end in time");
            timeout(PATIENCE, unfinished_connects())
                .await
                .expect("connects end in time");
            timeout(PATIENCE, closed_listener())
                .await
                .expect("the listener closes in time");
        })
        .unwrap();
        assert_eq!(
            open_descriptors(),
            before,
            "{backend:?}: a worker's end closes everything"
        );
    }
}

/// A thousand connections, each left with a receive in flight at one end.
async fn short_connections() {
    let (listener, address) = listen(128);
    let before = open_descriptors();
    let server = spawn_local(async move {
        for _ in 0..1000 {
            let tcp = listener.accept().await.unwrap();
            spawn_local(async move {
                let bytes = tcp.recv().await.unwrap();
                tcp.send(bytes).await.0.unwrap();
                let more = timeout(Duration::ZERO, tcp.recv()).await;
                drop((tcp, more));
            });
        }
        listener
    });
    for round in 0..1000_u32 {
        let tcp = connect(address, PATIENCE).await.unwrap();
        tcp.send(round.to_be_bytes().to_vec()).await.0.unwrap();
        assert_eq!(&*tcp.recv().await.unwrap(), round.to_be_bytes());
    }
    let _listening = server.await.unwrap();
    settle(before).await;
}

/// Attempts that time out, and attempts whose future is dropped.
async fn unfinished_connects() {
    let (_listener, address) = listen(0);
    let mut queued = Vec::new();
    while let Ok(tcp) = connect(address, Duration::from_millis(200)).await {
        queued.push(tcp);
        assert!(queued.len() < 16, "the queue never fills");
    }
    let before = open_descriptors();
    for _ in 0..10 {
        assert!(connect(address, Duration::from_millis(1)).await.is_err());
        assert!(
            timeout(Duration::from_millis(1), connect(address, PATIENCE))
                .await
                .is_err()
        );
    }
    settle(before).await;
}

/// A listener closed under a pending accept, with connections in its queue.
async fn closed_listener() {
    let before = open_descriptors();
    let (listener, address) = listen(16);
    let queued = connect(address, PATIENCE).await.unwrap();
    drop(timeout(Duration::ZERO, listener.accept()).await);
    let accepted = listener.accept();
    tokio::select! {
        biased;
        accepted = accepted => drop(accepted),
        () = async { listener.close() } => {}
    }
    drop(queued);
    settle(before).await;
}

/// Waits until no more descriptors are open than `before`; the caller's deadline is the bound.
async fn settle(before: usize) {
    while open_descriptors() > before {
        tokio::task::yield_now().await;
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn listen(backlog: i32) -> (Listener, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    socket.listen(backlog).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (Listener::from_fd(socket.into()).unwrap(), address)
}

async fn connect(to: SocketAddr, within: Duration) -> io::Result<Tcp> {
    let socket: OwnedFd = Socket::new(Domain::IPV4, Type::STREAM, None)?.into();
    Tcp::connect(socket, to, within).await
}
