//! The machine against the h2 crate, in memory, in both roles.

use std::collections::HashMap;
use std::future::poll_fn;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};

use super::*;

/// Runs a case on a thread of its own kind; a hang is a failure.
fn run(case: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let limit = std::time::Duration::from_secs(60);
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(limit, case).await.unwrap();
    });
}

/// One stream's payload in the hands of our side.
#[derive(Default)]
struct Pending {
    outgoing: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    is_finished: bool,
    end: Option<Taken>,
}

/// Moves bytes between a machine and `io` until the peer closes; `act` looks after the streams in between. Reads
/// are of sizes that change all the time.
async fn drive(
    mut io: DuplexStream,
    machine: &mut Machine,
    mut act: impl FnMut(&mut Machine, &mut Vec<u8>) -> bool,
) {
    let mut out = Vec::new();
    let mut buffer = vec![0; 40_000];
    let mut size = 1;
    loop {
        let goes_on = act(machine, &mut out);
        machine.output(&mut out);
        if !goes_on && out.is_empty() {
            return;
        }
        size = (size * 7 + 13) % 39_999 + 1;
        let (mut reader, mut writer) = tokio::io::split(&mut io);
        tokio::select! {
            read = reader.read(&mut buffer[..size]) => match read.unwrap() {
                0 => return,
                count => machine.input(&buffer[..count], Instant::now()).unwrap(),
            },
            written = writer.write(&out), if !out.is_empty() => {
                drop(out.drain(..written.unwrap()));
            }
        }
    }
}

/// Sends and receives what there is, on every stream; a finished one stays in the map.
fn pump(
    machine: &mut Machine,
    streams: &mut HashMap<u32, Pending>,
    out: &mut Vec<u8>,
    is_echo: bool,
) {
    for (id, pending) in streams {
        while pending.end.is_none() {
            match machine.take(*id) {
                Taken::Data(piece) => pending.received.extend(piece),
                Taken::Nothing => break,
                end => pending.end = Some(end),
            }
        }
        if is_echo {
            pending.outgoing.append(&mut pending.received);
        }
        if out.len() < 100_000 {
            pending.sent += machine.send_data(*id, &pending.outgoing[pending.sent..], out);
        }
        let may_finish = !is_echo || pending.end.is_some();
        if pending.sent == pending.outgoing.len() && may_finish && !pending.is_finished {
            pending.is_finished = true;
            machine.finish(*id);
        }
    }
}

/// Our server, echoing until the client goes.
async fn echo(io: DuplexStream) {
    let mut streams = HashMap::new();
    drive(io, &mut Machine::new(Role::Server), |machine, out| {
        while let Some(event) = machine.event() {
            match event {
                Event::Request(id, _) => {
                    machine.respond(id, &ConnectResponse::accepted(None));
                    streams.insert(id, Pending::default());
                }
                Event::Reset(id) => {
                    streams.remove(&id);
                    machine.release(id, ErrorCode::CANCEL);
                }
                _ => {}
            }
        }
        pump(machine, &mut streams, out, true);
        streams.retain(|id, pending| {
            let is_over = pending.is_finished && pending.end.is_some();
            if is_over {
                machine.release(*id, ErrorCode::CANCEL);
            }
            !is_over
        });
        true
    })
    .await;
}

fn payload(seed: u32, length: usize) -> Vec<u8> {
    (0..)
        .take(length)
        .map(|at: u32| (at.wrapping_mul(seed + 3) >> 5).to_le_bytes()[0])
        .collect()
}

async fn read_all(body: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn write_all(stream: &mut h2::SendStream<Bytes>, mut data: Bytes, end: bool) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx))
            .await
            .unwrap()
            .unwrap();
        stream
            .send_data(data.split_to(room.min(data.len())), false)
            .unwrap();
    }
    if end {
        stream.send_data(Bytes::new(), true).unwrap();
    }
}

fn connect_request(extra: &[(&str, String)]) -> Request<()> {
    let mut request = Request::connect("10.0.0.1:80");
    for (name, value) in extra {
        request = request.header(*name, value);
    }
    request.body(()).unwrap()
}

/// An h2 client on our echoing server.
async fn h2_client(window: u32) -> (h2::client::SendRequest<Bytes>, h2::PingPong) {
    let (near, far) = duplex(30_000);
    drop(spawn_local(echo(far)));
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(window)
        .initial_connection_window_size(4 * window);
    let (requests, mut connection) = builder.handshake(near).await.unwrap();
    let pings = connection.ping_pong().unwrap();
    drop(spawn_local(async move { connection.await.unwrap() }));
    (requests, pings)
}

#[test]
fn a_hundred_streams_of_an_h2_client_are_echoed() {
    run(async {
        let (requests, mut pings) = h2_client(1 << 20).await;
        let mut tasks = Vec::new();
        for number in 0..100_u32 {
            let mut requests = requests.clone().ready().await.unwrap();
            tasks.push(spawn_local(async move {
                // Different sizes, and headers whose encoding uses Huffman coding and the dynamic table.
                let header = ("baggage", format!("k8s.pod.name=pod-{number}"));
                let (response, mut stream) = requests
                    .send_request(connect_request(&[header]), false)
                    .unwrap();
                let sent = payload(number, number as usize * 3001);
                let response = response.await.unwrap();
                assert_eq!(response.status(), 200);
                let mut body = response.into_body();
                let up = write_all(&mut stream, sent.clone().into(), true);
                let (received, ()) = tokio::join!(read_all(&mut body), up);
                assert!(received.unwrap() == sent);
            }));
        }
        pings.ping(h2::Ping::opaque()).await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn sixteen_megabytes_of_an_h2_client_come_back() {
    run(async {
        let (requests, _pings) = h2_client(65_535).await;
        let mut requests = requests.ready().await.unwrap();
        let (response, mut stream) = requests.send_request(connect_request(&[]), false).unwrap();
        let sent = payload(1, 16 << 20);
        let mut body = response.await.unwrap().into_body();
        let up = write_all(&mut stream, sent.clone().into(), true);
        let (received, ()) = tokio::join!(read_all(&mut body), up);
        assert!(received.unwrap() == sent);
    });
}

#[test]
fn trailers_large_headers_and_resets_of_an_h2_client_are_understood() {
    run(async {
        let (requests, _pings) = h2_client(1 << 20).await;
        // Before our SETTINGS allow larger frames, this takes CONTINUATION.
        let mut requests = requests.ready().await.unwrap();
        let large = ("x-large", "v".repeat(40_000));
        let (response, mut stream) = requests
            .send_request(connect_request(&[large]), false)
            .unwrap();
        write_all(&mut stream, Bytes::from_static(b"trailed"), false).await;
        stream
            .send_trailers(HeaderMap::from_iter([(
                "x-t".parse().unwrap(),
                "1".parse().unwrap(),
            )]))
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(read_all(&mut body).await.unwrap(), b"trailed");
        // A reset frees the stream, and the connection goes on.
        for _round in 0..300 {
            requests = requests.ready().await.unwrap();
            let (response, mut stream) =
                requests.send_request(connect_request(&[]), false).unwrap();
            let _body = response.await.unwrap();
            stream.send_reset(h2::Reason::CANCEL);
        }
        let mut requests = requests.ready().await.unwrap();
        let mut get = Request::get("https://a/");
        get.headers_mut().unwrap().clear();
        let (response, _stream) = requests.send_request(get.body(()).unwrap(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 400);
    });
}

/// An h2 server that echoes, with whatever `answer` adds to its answers.
async fn h2_echo(io: DuplexStream, answer: impl Fn() -> Response<()> + Copy + 'static) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(100_000)
        .initial_connection_window_size(1 << 20);
    let mut connection = builder.handshake(io).await.unwrap();
    let mut count = 0;
    while let Some(accepted) = connection.accept().await {
        let Ok((request, mut respond)) = accepted else {
            return;
        };
        assert_eq!(request.method(), "CONNECT");
        count += 1;
        // Windows change under streams that are in use.
        let window = if count % 2 == 0 { 40_000 } else { 300_000 };
        // Refused while the last change is not acknowledged.
        let _too_early = connection.set_initial_window_size(window);
        drop(spawn_local(async move {
            let mut body = request.into_body();
            let mut stream = respond.send_response(answer(), false).unwrap();
            while let Some(Ok(piece)) = body.data().await {
                body.flow_control().release_capacity(piece.len()).unwrap();
                write_all(&mut stream, piece, false).await;
            }
            stream.send_trailers(HeaderMap::new()).unwrap();
        }));
    }
}

/// Our client: opens these streams, sends the payloads, and returns what came back.
async fn exchange(
    payloads: Vec<Vec<u8>>,
    answer: impl Fn() -> Response<()> + Copy + 'static,
) -> Vec<Pending> {
    let (near, far) = duplex(30_000);
    drop(spawn_local(h2_echo(far, answer)));
    let mut machine = Machine::new(Role::Client);
    let mut waiting = HashMap::new();
    for outgoing in payloads {
        let id = machine.open(&request()).unwrap();
        waiting.insert(
            id,
            Pending {
                outgoing,
                ..Pending::default()
            },
        );
    }
    let mut streams = HashMap::new();
    drive(near, &mut machine, |machine, out| {
        while let Some(event) = machine.event() {
            if let Event::Response(id, response) = event {
                assert_eq!(response.status, 200);
                streams.extend(waiting.remove_entry(&id));
            }
        }
        pump(machine, &mut streams, out, false);
        !waiting.is_empty() || streams.values().any(|pending| pending.end.is_none())
    })
    .await;
    streams.into_values().collect()
}

#[track_caller]
fn check_echoed(streams: &[Pending], expected: usize) {
    assert_eq!(streams.len(), expected);
    for pending in streams {
        assert_eq!(pending.end, Some(Taken::End));
        assert!(pending.received == pending.outgoing);
    }
}

#[test]
fn a_hundred_streams_to_an_h2_server_come_back() {
    run(async {
        let payloads = (0..100)
            .map(|number| payload(number, number as usize * 2999))
            .collect();
        check_echoed(&exchange(payloads, Response::default).await, 100);
    });
}

#[test]
fn sixteen_megabytes_to_an_h2_server_come_back_under_large_headers() {
    run(async {
        let large = || {
            Response::builder()
                .header("x-large", "v".repeat(40_000))
                .body(())
                .unwrap()
        };
        check_echoed(&exchange(vec![payload(1, 16 << 20)], large).await, 1);
    });
}

#[test]
fn an_h2_server_says_goodbye_and_finishes_what_it_has() {
    run(async {
        let (near, far) = duplex(30_000);
        let server = spawn_local(async move {
            let mut connection = h2::server::handshake(far).await.unwrap();
            let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
            connection.graceful_shutdown();
            let mut stream = respond.send_response(Response::default(), false).unwrap();
            stream.send_data(Bytes::from_static(b"last"), true).unwrap();
            assert!(connection.accept().await.is_none());
        });
        let mut machine = Machine::new(Role::Client);
        let id = machine.open(&request()).unwrap();
        let mut received = Vec::new();
        drive(near, &mut machine, |machine, _out| {
            while machine.event().is_some() {}
            loop {
                match machine.take(id) {
                    Taken::Data(piece) => received.extend(piece),
                    Taken::End => {
                        machine.finish(id);
                        machine.release(id, ErrorCode::CANCEL);
                        break;
                    }
                    _ => break,
                }
            }
            true
        })
        .await;
        assert!(machine.is_drained());
        assert_eq!(received, b"last");
        assert_eq!(machine.open(&request()), None);
        drop(machine);
        server.await.unwrap();
    });
}
