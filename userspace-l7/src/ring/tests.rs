//! The sockets' contract, whatever carries them.

#![expect(clippy::cast_possible_truncation, reason = "test data is small")]

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

use super::probe::Completing;
use super::worker::run_on_ring;
use super::*;

mod exhaustion;
mod lifecycle;
mod transfer;

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs each case on epoll and on every kind of ring that `run` may have to step down to.
macro_rules! on_every_carrier {
    ($($case:ident),+ $(,)?) => {
        mod deferred_ring {
            $(#[test] fn $case() {
                super::super::on_ring(super::super::Completing::Deferred, super::$case());
            })+
        }
        mod cooperative_ring {
            $(#[test] fn $case() {
                super::super::on_ring(super::super::Completing::Cooperative, super::$case());
            })+
        }
        mod interrupting_ring {
            $(#[test] fn $case() {
                super::super::on_ring(super::super::Completing::Interrupting, super::$case());
            })+
        }
        mod epoll {
            $(#[test] fn $case() { super::super::on_epoll(super::$case()); })+
        }
    };
}
use on_every_carrier;

fn on_ring(completing: Completing, case: impl Future<Output = ()>) {
    let ring = completing.ring().expect("this kernel has the ring");
    run_on_ring(ring, in_time(case)).expect("the ring works here");
}

fn on_epoll(case: impl Future<Output = ()>) {
    run(Backend::Epoll, in_time(case)).expect("epoll works everywhere");
}

async fn in_time(case: impl Future<Output = ()>) {
    timeout(PATIENCE, case)
        .await
        .expect("the case ends in time");
}

fn listen(address: SocketAddr, backlog: i32) -> (Listener, SocketAddr) {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(backlog).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (Listener::from_fd(socket.into()).unwrap(), address)
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn tcp_socket() -> OwnedFd {
    Socket::new(Domain::IPV4, Type::STREAM, None)
        .unwrap()
        .into()
}

async fn connect(to: SocketAddr) -> io::Result<Tcp> {
    Tcp::connect(tcp_socket(), to, PATIENCE).await
}

/// Two ends of one connection.
async fn pair() -> (Tcp, Tcp) {
    let (listener, address) = listen(loopback(), 16);
    let (near, far) = tokio::join!(connect(address), listener.accept());
    (near.unwrap(), far.unwrap())
}

/// The byte that belongs at `position` of a stream made from `seed`.
fn pattern(seed: u64, position: u64) -> u8 {
    let mixed = (position / 8 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed.to_le_bytes()[(position % 8) as usize]
}

fn pattern_from(seed: u64, position: u64, len: usize) -> Vec<u8> {
    (position..)
        .take(len)
        .map(|position| pattern(seed, position))
        .collect()
}

/// Sends `total` patterned bytes in odd pieces, then ends the stream.
async fn send_pattern(tcp: &Tcp, seed: u64, total: u64) {
    let mut sent = 0;
    for step in 0u64.. {
        let piece = (1 + step * 7919 % 200_003).min(total - sent);
        if piece == 0 {
            break;
        }
        let (result, _) = tcp.send(pattern_from(seed, sent, piece as usize)).await;
        result.unwrap();
        sent += piece;
    }
    tcp.shutdown_write().unwrap();
}

/// Receives to the end of the stream; every byte must be the pattern's.
async fn expect_pattern(tcp: &Tcp, seed: u64, total: u64) {
    let mut received = 0;
    loop {
        let bytes = tcp.recv().await.unwrap();
        if bytes.is_empty() {
            break;
        }
        assert!(
            *bytes == *pattern_from(seed, received, bytes.len()),
            "wrong bytes after {received}"
        );
        received += bytes.len() as u64;
    }
    assert_eq!(received, total);
}

async fn send(tcp: &Tcp, bytes: &[u8]) {
    tcp.send(bytes.to_vec()).await.0.unwrap();
}

async fn finished<T>(task: JoinHandle<T>) -> T {
    task.await.expect("the task does not panic")
}
