//! HTTP/2 and gRPC: streams are requests like any other, and trailers are part of the answer.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;

use ::http::{HeaderMap, Request, Response, StatusCode};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use socket2::{Domain, Socket, Type};
use tokio::task::{JoinHandle, spawn_local};

use super::application::listen;
use super::mesh::{Mesh, policy};
use super::{PATIENCE, on_both_backends};
use crate::http::{Body, Handover, Sender, Version, Wire, connect, serve};
use crate::model::{
    AppProtocol, Demands, HttpPolicyAction, HttpPolicyRule, OperationMatch, PathPattern,
    PortRoutes, StringMatch,
};
use crate::ring::{RecvBuf, Tcp};

/// A gRPC answer: a message of its server's name, and trailers.
struct Reply {
    name: Option<&'static str>,
    has_trailers: bool,
}

impl hyper::body::Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(name) = self.name.take() {
            let mut message = vec![0, 0, 0, 0, u8::try_from(name.len()).unwrap()];
            message.extend_from_slice(name.as_bytes());
            return std::task::Poll::Ready(Some(Ok(Frame::data(message.into()))));
        }
        if std::mem::take(&mut self.has_trailers) {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            return std::task::Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        std::task::Poll::Ready(None)
    }
}

/// A gRPC server that answers every call with its name once it has read the request.
fn grpc(address: SocketAddr, name: &'static str) -> JoinHandle<()> {
    let listener = listen(address);
    spawn_local(async move {
        loop {
            let tcp = listener.accept().await.unwrap();
            let service = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.headers()["te"], "trailers");
                let (_bytes, _trailers) = read(request.into_body()).await.unwrap();
                let mut response = Response::new(Reply {
                    name: Some(name),
                    has_trailers: true,
                });
                let kind = "application/grpc".parse().unwrap();
                drop(response.headers_mut().insert("content-type", kind));
                Ok::<_, Infallible>(response)
            });
            let wire = Wire::tcp(tcp, RecvBuf::default());
            let never = std::future::pending();
            drop(spawn_local(serve(
                wire,
                Version::Http2,
                service,
                Rc::<Handover>::default(),
                never,
            )));
        }
    })
}

async fn read(mut body: Incoming) -> Result<(Vec<u8>, Option<HeaderMap>), hyper::Error> {
    let (mut bytes, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(other) => trailers = other.into_trailers().ok(),
        }
    }
    Ok((bytes, trailers))
}

async fn dial(to: SocketAddr) -> Sender {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let tcp = Tcp::connect(socket.into(), to, PATIENCE).await.unwrap();
    connect(Wire::tcp(tcp, RecvBuf::default()), Version::Http2)
        .await
        .unwrap()
}

fn call(path: &str, body: &'static [u8]) -> Request<Body> {
    Request::post(format!("http://web{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(if body.is_empty() {
            Body::Empty
        } else {
            Body::Whole(Bytes::from_static(body))
        })
        .unwrap()
}

#[test]
fn calls_of_one_connection_are_spread_and_keep_their_trailers() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let servers = [
            grpc(mesh.server("one"), "one"),
            grpc(mesh.server("two"), "two"),
        ];
        let web = mesh.service("web", &["one", "two"]);
        mesh.bind("web", AppProtocol::Http2, PortRoutes::None);
        let mut client = dial(web).await;
        let mut seen = HashSet::new();
        for _ in 0..40 {
            let response = client
                .send(call("/shop.Cart/Add", b"\0\0\0\0\x02hi"))
                .await
                .unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let (bytes, trailers) = read(response.into_body()).await.unwrap();
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
            seen.insert(bytes.get(5..).unwrap().to_vec());
        }
        assert_eq!(seen.len(), 2, "one connection kept to one server");
        servers.iter().for_each(JoinHandle::abort);
    });
}

#[test]
fn a_denied_call_has_a_grpc_status() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let server = grpc(mesh.server("one"), "one");
        let web = mesh.service("web", &["one"]);
        let operation = OperationMatch {
            paths: vec![PathPattern::Text(StringMatch::Exact(
                "/shop.Cart/Drop".into(),
            ))],
            ..OperationMatch::default()
        };
        let rule = HttpPolicyRule {
            to: vec![operation],
            ..HttpPolicyRule::default()
        };
        let demands: Demands = policy(HttpPolicyAction::Deny, rule);
        mesh.demand("web", AppProtocol::Http2, PortRoutes::None, demands);
        let mut client = dial(web).await;
        let denied = client.send(call("/shop.Cart/Drop", b"")).await.unwrap();
        assert_eq!(
            (denied.status(), &denied.headers()["grpc-status"]),
            (StatusCode::OK, &"7".parse().unwrap())
        );
        let allowed = client.send(call("/shop.Cart/Add", b"")).await.unwrap();
        assert_eq!(
            read(allowed.into_body()).await.unwrap().1.unwrap()["grpc-status"],
            "0"
        );
        server.abort();
    });
}

#[test]
fn nobody_to_answer_is_unavailable() {
    on_both_backends(|| async {
        let mesh = Mesh::new();
        let web = mesh.service("web", &[]);
        mesh.bind("web", AppProtocol::Http2, PortRoutes::None);
        let response = dial(web)
            .await
            .send(call("/shop.Cart/Add", b""))
            .await
            .unwrap();
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
    });
}
