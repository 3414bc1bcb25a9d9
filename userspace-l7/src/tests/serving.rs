//! One connection that is served: how it ends in order, and what it may hold of ours.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{Request, Response};
use bytes::Bytes;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};

use super::application::{Ended, Talk, field};
use super::{PATIENCE, on_both_backends};
use crate::http::{Body, Handover, Version, Wire, serve};
use crate::ring::{Listener, RecvBuf, Tcp};

/// The two ends of a connection.
pub(super) async fn pair() -> (Tcp, Tcp) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(1).unwrap();
    let to = socket.local_addr().unwrap().as_socket().unwrap();
    let listener = Listener::from_fd(socket.into()).unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let client = Tcp::connect(socket.into(), to, PATIENCE).await.unwrap();
    (client, listener.accept().await.unwrap())
}

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";

/// An HTTP/1.1 connection whose requests are answered after a moment, and who tells it that it is to end.
async fn http1() -> (Talk, oneshot::Sender<()>, JoinHandle<Instant>) {
    let (client, server) = pair().await;
    let (part, parting) = oneshot::channel();
    let service = service_fn(|_request: Request<Incoming>| async {
        sleep(Duration::from_millis(20)).await;
        Ok::<_, Infallible>(Response::new(Body::Whole(Bytes::from_static(b"ok"))))
    });
    let task = spawn_local(async move {
        let wire = Wire::tcp(server, RecvBuf::default());
        let parting = async { parting.await.unwrap_or_default() };
        let handover = Rc::<Handover>::default();
        serve(wire, Version::Http1, service, handover, parting)
            .await
            .unwrap();
        Instant::now()
    });
    (Talk::new(client), part, task)
}

#[test]
fn an_answer_to_a_request_that_was_under_way_says_that_it_is_the_last() {
    on_both_backends(|| async {
        let (mut talk, part, served) = http1().await;
        talk.say(GET).await;
        let (head, _body) = talk.message().await;
        assert_eq!(field(&head, "connection"), None, "{head}");
        talk.say(GET).await;
        sleep(Duration::from_millis(5)).await;
        part.send(()).unwrap();
        let (head, body) = talk.message().await;
        assert_eq!(
            (field(&head, "connection"), body.as_str()),
            (Some("close"), "ok")
        );
        assert_eq!(talk.ends().await, Ended::InOrder);
        drop(talk);
        let _at = served.await.unwrap();
    });
}

#[test]
fn an_idle_connection_still_takes_a_request_that_was_on_its_way() {
    on_both_backends(|| async {
        let (mut talk, part, served) = http1().await;
        talk.say(GET).await;
        let _answer = talk.message().await;
        part.send(()).unwrap();
        // As late as another node may be told.
        sleep(Duration::from_millis(50)).await;
        talk.say(GET).await;
        let (head, body) = talk.message().await;
        assert_eq!(
            (field(&head, "connection"), body.as_str()),
            (Some("close"), "ok")
        );
        assert_eq!(talk.ends().await, Ended::InOrder);
        drop(talk);
        let _at = served.await.unwrap();
    });
}

#[test]
fn an_idle_connection_that_takes_no_more_requests_is_closed_a_moment_later() {
    on_both_backends(|| async {
        let (mut talk, part, served) = http1().await;
        talk.say(GET).await;
        let _answer = talk.message().await;
        let told = Instant::now();
        part.send(()).unwrap();
        assert_eq!(talk.ends().await, Ended::InOrder);
        drop(talk);
        let waited = served.await.unwrap() - told;
        assert!(waited >= Duration::from_millis(250), "{waited:?}");
        assert!(waited < Duration::from_secs(2), "{waited:?}");
    });
}

/// A body without an end, which counts what was taken of it.
struct Endless(Rc<Cell<usize>>);

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = Bytes::from_static(&[0; 16 << 10]);
        self.0.set(self.0.get() + piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

/// The beginning of an HTTP/2 connection whose client gives every window that there is, and asks `streams` times.
fn greedy(streams: u32) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE of 2^31 - 1, and a WINDOW_UPDATE of the connection to the same.
    bytes.extend_from_slice(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff]);
    bytes.extend_from_slice(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0, 0]);
    for stream in (1..).step_by(2).take(streams as usize) {
        // GET, http, /, and `web` as the authority.
        let head = [0x82, 0x86, 0x84, 0x41, 3, b'w', b'e', b'b'];
        let length = u8::try_from(head.len()).unwrap();
        bytes.extend_from_slice(&[0, 0, length, 1, 0b101]);
        bytes.extend_from_slice(&u32::to_be_bytes(stream));
        bytes.extend_from_slice(&head);
    }
    bytes
}

#[test]
fn a_client_that_stops_reading_makes_us_hold_little_for_each_stream() {
    const STREAMS: u32 = 32;
    /// What the two sockets may hold, with the kernel's doubling.
    const SOCKETS: usize = 1 << 20;
    on_both_backends(|| async {
        let (client, server) = pair().await;
        SockRef::from(&client)
            .set_recv_buffer_size(64 << 10)
            .unwrap();
        SockRef::from(&server)
            .set_send_buffer_size(64 << 10)
            .unwrap();
        let taken = Rc::<Cell<usize>>::default();
        let body = Rc::clone(&taken);
        let service = service_fn(move |_request: Request<Incoming>| {
            let body = Endless(Rc::clone(&body));
            async { Ok::<_, Infallible>(Response::new(body)) }
        });
        let wire = Wire::tcp(server, RecvBuf::default());
        let (handover, never) = (Rc::<Handover>::default(), std::future::pending());
        let task = spawn_local(serve(wire, Version::Http2, service, handover, never));
        let (sent, _bytes) = client.send(greedy(STREAMS)).await;
        sent.unwrap();
        // Until nothing more is taken.
        let mut before = 0;
        while taken.get() == 0 || taken.get() > before {
            before = taken.get();
            sleep(Duration::from_millis(100)).await;
        }
        // One piece more than what may wait: a piece is not cut.
        let bound = STREAMS as usize * (64 + 16) * 1024 + SOCKETS;
        assert!(
            taken.get() <= bound,
            "{} bytes, more than {bound}",
            taken.get()
        );
        task.abort();
    });
}
