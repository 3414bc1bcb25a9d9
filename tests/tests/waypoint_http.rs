//! HTTP itself through a waypoint: what has to pass unharmed, and what must not pass.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{EchoMesh, Seen};
use e2e::net::h2c;
use e2e::net::http::{Ask, Conversation};
use e2e::traffic::{Connections, Traffic};

/// A shop whose requests are seen, and where they go.
fn seen_shop() -> Result<(EchoMesh, SocketAddr)> {
    let mesh = EchoMesh::shop()?;
    let to = mesh.at("echo-v1", 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    Ok((mesh, to))
}

#[test]
fn one_connection_carries_many_requests() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    let before = mesh.workload("echo-v1")?.connections();
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        for number in 0..200 {
            let answer = conversation.ask(&Ask::new("POST", &format!("/{number}")).body("x"))?;
            let seen = Seen::in_answer(&answer)?;
            ensure!((seen.path, seen.length) == (format!("/{number}"), 1));
        }
        Ok(())
    })?;
    let opened = mesh.workload("echo-v1")?.connections() - before;
    ensure!(opened <= 2, "{opened} connections reached the application");
    Ok(())
}

#[test]
fn each_kind_of_body_arrives() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        let large = vec![b'y'; 3 << 20];
        let echoed = conversation.ask(&Ask::new("POST", "/").wishing("stream").body(large.clone()))?;
        ensure!(echoed.body == large, "{} bytes came back", echoed.body.len());
        // Chunked, with a trailer.
        conversation.write(
            b"POST /chunks HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: \
              X-Sum\r\n\r\n4\r\nover\r\n6;ext=1\r\nlapped\r\n0\r\nX-Sum: 10\r\n\r\n",
        )?;
        let seen = Seen::in_answer(&conversation.answer("POST")?)?;
        ensure!((seen.length, &*seen.body) == (10, "overlapped"), "{seen:?}");
        // No body where there can be none.
        let head = conversation.ask(&Ask::new("HEAD", "/head"))?;
        ensure!(head.status == 200 && head.body.is_empty());
        for status in ["204", "304"] {
            let answer = conversation.ask(&Ask::get("/").wishing(&format!("status={status}")))?;
            ensure!(answer.status.to_string() == status && answer.body.is_empty());
        }
        let answer = conversation.ask(&Ask::get("/").wishing("bytes=5000000"))?;
        ensure!(answer.body.len() == 5_000_000);
        Ok(())
    })
}

#[test]
fn trailers_pass() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    mesh.pod("client")?.run(|| {
        let ask = Ask::get("/").wishing("trailer").with("TE", "trailers");
        let answer = ask.send(to)?;
        ensure!(answer.trailer("x-trailer") == Some("the end"), "{answer:?}");
        Ok(())
    })
}

#[test]
fn expectations_are_met_before_the_body_is_sent() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        conversation.write(
            b"POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
        )?;
        let interim = conversation.answer("POST")?;
        ensure!(interim.status == 100, "{interim:?}");
        conversation.write(b"body")?;
        let seen = Seen::in_answer(&conversation.answer("POST")?)?;
        ensure!(seen.body == "body", "{seen:?}");
        Ok(())
    })
}

#[test]
fn bodies_stream_both_ways() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        conversation.write(
            b"POST / HTTP/1.1\r\nHost: echo\r\nx-echo: stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        )?;
        // The answer begins while the request has not ended.
        let head = conversation.read(b"HTTP/1.1 200".len())?;
        ensure!(head == b"HTTP/1.1 200", "{head:?}");
        conversation.write(b"6\r\nsecond\r\n0\r\n\r\n")?;
        let mut rest = Vec::new();
        while !rest.ends_with(b"0\r\n\r\n") {
            rest.extend(conversation.read(1)?);
        }
        let text = String::from_utf8_lossy(&rest);
        ensure!(text.contains("first") && text.contains("second"), "{text}");
        Ok(())
    })
}

#[test]
fn websockets_pass() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        let upgrade = Ask::get("/chat")
            .with("Connection", "Upgrade")
            .with("Upgrade", "websocket")
            .with("Sec-WebSocket-Version", "13")
            .with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        let answer = conversation.ask(&upgrade)?;
        ensure!(answer.status == 101, "{answer:?}");
        for message in ["ping", "a longer message"] {
            conversation.write(message.as_bytes())?;
            ensure!(conversation.read(message.len())? == message.as_bytes());
        }
        Ok(())
    })
}

#[test]
fn http2_and_grpc_pass_stream_by_stream() -> Result<()> {
    let (mesh, _) = seen_shop()?;
    let to = mesh.at("echo", 7070)?;
    let client = mesh.pod("client")?;
    client.run(|| {
        let mut connection = h2c::Connection::open(to)?;
        let asks: Vec<Ask> = (0..100)
            .map(|number| Ask::get(&format!("/{number}")))
            .collect();
        let mut pods = std::collections::BTreeSet::new();
        for (number, answer) in connection.ask_at_once(&asks).into_iter().enumerate() {
            let seen = Seen::in_answer(&answer?)?;
            ensure!(
                seen.path == format!("/{number}") && seen.protocol == "HTTP/2.0",
                "{seen:?}"
            );
            pods.insert(seen.pod);
        }
        ensure!(pods.len() == 2, "streams are balanced one by one: {pods:?}");
        let refused = connection.call(&Ask::get("/shop.Books/List").wishing("grpc=5"))?;
        ensure!(
            refused.status == 5,
            "the application's own status: {refused:?}"
        );
        // One stream that breaks leaves the others alone.
        let answers = connection.ask_at_once(&[
            Ask::get("/slow").wishing("delay=200"),
            Ask::get("/broken").wishing("bytes=100000,reset=body"),
        ]);
        ensure!(
            answers[0].as_ref().is_ok_and(|answer| answer.status == 200),
            "{answers:?}"
        );
        ensure!(answers[1].is_err(), "{answers:?}");
        Ok(())
    })
}

#[test]
fn clients_of_either_version_reach_applications_of_either_version() -> Result<()> {
    let (mesh, http1) = seen_shop()?;
    let http2 = mesh.at("echo-v1", 7070)?;
    mesh.pod("client")?.run(|| {
        let seen = Seen::in_answer(&h2c::Connection::open(http1)?.ask(&Ask::get("/"))?)?;
        ensure!(
            seen.protocol == "HTTP/1.1",
            "a port that says http: {seen:?}"
        );
        let seen = Seen::in_answer(&Ask::get("/").send(http2)?)?;
        ensure!(
            seen.protocol == "HTTP/2.0",
            "a port that says h2c: {seen:?}"
        );
        Ok(())
    })
}

#[test]
fn hop_by_hop_headers_stay_on_their_hop() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    let ask = Ask::get("/")
        .with("Connection", "keep-alive, X-Private")
        .with("X-Private", "1")
        .with("Keep-Alive", "timeout=5")
        .with("Proxy-Connection", "keep-alive")
        .with("X-Public", "2");
    let mut conversation_answer = None;
    mesh.pod("client")?.run(|| {
        conversation_answer = Some(Conversation::open(to)?.ask(&ask)?);
        Ok(())
    })?;
    let seen = Seen::in_answer(&conversation_answer.context("an answer")?)?;
    // RFC 9110 §7.6.1.
    for name in ["x-private", "keep-alive", "proxy-connection"] {
        ensure!(seen.header(name).is_none(), "{name}: {seen:?}");
    }
    ensure!(seen.header("x-public").as_deref() == Some("2"), "{seen:?}");
    ensure!(seen.host == "echo", "{seen:?}");
    Ok(())
}

#[test]
fn request_ids_are_given_and_kept() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    let id = |ask: &Ask| {
        let seen = mesh.seen("client", to, ask)?;
        seen.header("x-request-id").context("no x-request-id")
    };
    let (one, two) = (id(&Ask::get("/"))?, id(&Ask::get("/"))?);
    ensure!(one != two, "{one} twice");
    let own = id(&Ask::get("/").with("x-request-id", "my-own"))?;
    ensure!(own == "my-own", "{own}");
    Ok(())
}

/// Requests that two parsers could read differently (RFC 9112 §§5.1, 5.2, 6.1, 6.3, 7.1), and that nobody may pass on.
const SMUGGLED: [(&str, &[u8]); 13] = [
    (
        "length and chunks",
        b"POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "two lengths",
        b"POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody!",
    ),
    (
        "a list of different lengths",
        b"POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 4, 5\r\n\r\nbody!",
    ),
    (
        "a signed length",
        b"POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: +4\r\n\r\nbody",
    ),
    (
        "chunked twice",
        b"POST / HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "an unknown coding",
        b"POST / HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "space before the colon",
        b"POST / HTTP/1.1\r\nHost: echo\r\nContent-Length : 4\r\n\r\nbody",
    ),
    (
        "a folded line",
        b"GET / HTTP/1.1\r\nHost: echo\r\nX-One: 1\r\n X-Two: 2\r\n\r\n",
    ),
    (
        "no number before a chunk",
        b"POST / HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nbody\r\n0\r\n\r\n",
    ),
    (
        "a zero byte in a value",
        b"GET / HTTP/1.1\r\nHost: echo\r\nX-One: a\0b\r\n\r\n",
    ),
    (
        "a carriage return alone",
        b"GET / HTTP/1.1\r\nHost: echo\r\nX-One: a\rX-Two: b\r\n\r\n",
    ),
    ("no host", b"GET / HTTP/1.1\r\n\r\n"),
    (
        "two hosts",
        b"GET / HTTP/1.1\r\nHost: echo\r\nHost: other\r\n\r\n",
    ),
];

#[test]
fn ambiguous_requests_are_refused() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    for (name, bytes) in SMUGGLED {
        let before = mesh.workload("echo-v1")?.requests();
        mesh.pod("client")?
            .run(|| {
                let mut conversation = Conversation::open(to)?;
                conversation.write(bytes)?;
                match conversation.answer("POST") {
                    Ok(answer) => {
                        ensure!(answer.status == 400 || answer.status == 501, "{answer:?}");
                        // Where the next request begins is anybody's guess, so there is none.
                        conversation.has_ended()
                    }
                    Err(error) => {
                        let text = format!("{error:#}");
                        ensure!(!text.contains("temporarily"), "silence: {text}");
                        Ok(())
                    }
                }
            })
            .with_context(|| name.to_owned())?;
        // A body may break off after its head has passed; no request may come of what followed it.
        let reached = mesh.workload("echo-v1")?.requests() - before;
        ensure!(
            reached <= usize::from(name.contains("chunk")),
            "{name}: {reached} reached"
        );
    }
    mesh.soon_answers("client", to, &Ask::get("/"), 200)
        .map(drop)
}

#[test]
fn a_hundred_kilobytes_of_headers_are_too_many() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    let ask = Ask::get("/").with("X-Large", &"x".repeat(100_000));
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        // It may be refused before all of it is read.
        drop(conversation.write(&ask.wire()));
        match conversation.answer("GET") {
            Ok(answer) => ensure!(answer.status == 431, "{answer:?}"),
            Err(error) => ensure!(!format!("{error:#}").contains("temporarily"), "{error:#}"),
        }
        Ok(())
    })?;
    let ask = Ask::get("/").with("X-Large", &"x".repeat(20_000));
    let seen = mesh.seen("client", to, &ask)?;
    ensure!(
        seen.header("x-large")
            .is_some_and(|value| value.len() == 20_000),
        "20 kB pass"
    );
    Ok(())
}

/// How much of a slow client's head there is at once, and how it goes on: one byte after the other.
const SLOW: usize = 300;
const PACE: Duration = Duration::from_secs(1);
/// A head has 30 s. Nobody is cut much before, or for much longer: a busy machine may take a while to notice.
const NOT_BEFORE: Duration = Duration::from_secs(28);
const AT_THE_LATEST: Duration = Duration::from_secs(50);
/// What a connection may cost that has sent little: its buffers and tasks, and what a debug build adds to them.
const MOST_KIB_EACH: u64 = 160;

/// Whether the other side has ended a connection, with or without an answer.
fn is_over(stream: &TcpStream) -> Result<bool> {
    stream.set_nonblocking(true)?;
    let seen = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    match seen {
        Ok(_) => Ok(true),
        Err(error) => Ok(error.kind() != ErrorKind::WouldBlock),
    }
}

#[test]
fn heads_that_do_not_come_to_an_end_are_given_up_and_cost_little() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    let agent = mesh.lab.agent("a")?;
    let files = agent.open_files()?;
    let memory = agent.rss_kib()?;
    let stranger = mesh.pod("stranger")?;
    let traffic = Traffic::start(stranger, to, Ask::get("/"), Connections::New);
    let begin = |number: usize| {
        let conversation = Conversation::open(to)?;
        let beginnings = ["GET / HTTP/1.1\r\nHost: echo\r\nX-Slow: ", "GET /slow"];
        conversation.write(beginnings[number % 2].as_bytes())?;
        Ok(conversation)
    };
    let since = Instant::now();
    mesh.pod("client")?.run(|| {
        let mut slow = (0..SLOW).map(begin).collect::<Result<Vec<_>>>()?;
        // One that is slow, too, and comes to its end.
        let mut late = begin(SLOW)?;
        let mut is_late_served = false;
        let mut most = 0;
        while !slow.is_empty() {
            let elapsed = since.elapsed();
            ensure!(
                elapsed < AT_THE_LATEST,
                "{} connections are still there after {elapsed:?}",
                slow.len()
            );
            let mut left = Vec::new();
            for conversation in slow {
                // The other side may end it at any time.
                if conversation.write(b"x").is_err() || is_over(conversation.stream())? {
                    ensure!(elapsed > NOT_BEFORE, "given up after {elapsed:?} already");
                } else {
                    left.push(conversation);
                }
            }
            slow = left;
            if !is_late_served && elapsed > NOT_BEFORE / 3 {
                late.write(b"\r\n\r\n")?;
                let answer = late.answer("GET")?;
                ensure!(answer.status == 200, "{}", answer.status);
                is_late_served = true;
            }
            most = most.max(agent.rss_kib()?);
            // The pace of the attack.
            std::thread::sleep(PACE);
        }
        ensure!(is_late_served, "the slow request was not sent");
        let each = most.saturating_sub(memory) / u64::try_from(SLOW)?;
        ensure!(each < MOST_KIB_EACH, "each took {each} KiB");
        Ok(())
    })?;
    // Meanwhile nobody else was kept waiting, and nothing is left.
    traffic.end().all_good()?;
    e2e::lab::eventually("their sockets are closed", Duration::from_secs(10), || {
        let now = agent.open_files()?;
        // Tunnels and kept connections that others have opened meanwhile are there still.
        ensure!(now < files + SLOW / 3, "{files} files have become {now}");
        Ok(())
    })
}

#[test]
fn slow_clients_hold_nobody_up() -> Result<()> {
    let (mesh, to) = seen_shop()?;
    let client = mesh.pod("client")?;
    let slow = client.run(|| {
        let open = |_| {
            let conversation = Conversation::open(to)?;
            conversation.write(b"GET / HTTP/1.1\r\nHost: echo\r\nX-Slow: ")?;
            Ok(conversation)
        };
        (0..100).map(open).collect::<Result<Vec<_>>>()
    })?;
    let begun = Instant::now();
    for _ in 0..20 {
        mesh.seen("stranger", to, &Ask::get("/"))?;
    }
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    drop(slow);
    Ok(())
}
