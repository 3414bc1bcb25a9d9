//! The echo workload and its clients, without any mesh: what layer-7 scenarios take for granted about them.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use e2e::echo::{Echo, Seen};
use e2e::lab::{Lab, Pod, PodSpec};
use e2e::net::h2c;
use e2e::net::http::{Ask, Conversation};

const PORT: u16 = 8080;

/// A client, an echo workload, and a lab around them.
struct Bare {
    echo: Echo,
    client: Pod,
    to: SocketAddr,
    _lab: Lab,
}

impl Bare {
    fn new() -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        let client = lab.add(&PodSpec::new("a", "client").uncaptured())?;
        let server = PodSpec::new("b", "echo-v1").with_label("version", "v1");
        let server = lab.add(&server.uncaptured())?;
        Ok(Self {
            echo: Echo::start(&server, &[PORT])?,
            to: SocketAddr::new(server.v4(), PORT),
            client,
            _lab: lab,
        })
    }
}

#[test]
fn an_echo_tells_what_it_saw() -> Result<()> {
    let bare = Bare::new()?;
    let ask = Ask::new("PUT", "/a//b?c=d").host("books");
    let ask = ask.with("X-One", "1").with("X-One", "2").body("text");
    let answer = bare.client.run(|| ask.send(bare.to))?;
    let seen = Seen::in_answer(&answer)?;
    ensure!((answer.status, &*seen.pod, &*seen.version) == (200, "echo-v1", "v1"));
    ensure!((&*seen.method, &*seen.path, &*seen.host) == ("PUT", "/a//b?c=d", "books"));
    ensure!(seen.header("x-one").as_deref() == Some("1,2"), "{seen:?}");
    ensure!((&*seen.body, seen.length) == ("text", 4), "{seen:?}");
    ensure!(seen.peer.ip().to_canonical() == bare.client.v4());
    ensure!(bare.echo.requests() == 1, "it counts");
    Ok(())
}

#[test]
fn an_echo_answers_out_of_the_ordinary_when_asked() -> Result<()> {
    let bare = Bare::new()?;
    bare.client.run(|| {
        let wish = |wish: &str| Ask::get("/").wishing(wish).send(bare.to);
        ensure!(wish("status=418")?.status == 418);
        ensure!(wish("bytes=100000")?.body.len() == 100_000);
        ensure!(wish("set=x-new:1")?.header("X-New") == Some("1"));
        // RFC 9110 §6.5.1: a client says that it takes trailers.
        let trailer = Ask::get("/").wishing("trailer").with("TE", "trailers");
        ensure!(trailer.send(bare.to)?.trailer("x-trailer") == Some("the end"));
        ensure!(wish("reset").is_err(), "no answer to that");
        ensure!(wish("bytes=100000, reset=body").is_err(), "half an answer");
        let statuses = [(); 4].map(|()| wish("fail=2:key").map(|answer| answer.status).ok());
        ensure!(statuses == [Some(503), Some(503), Some(200), Some(200)]);
        let echoed = Ask::new("POST", "/").wishing("stream").body("as it is");
        ensure!(echoed.send(bare.to)?.body == b"as it is");
        Ok(())
    })
}

#[test]
fn one_connection_carries_many_requests_and_then_an_upgrade() -> Result<()> {
    let bare = Bare::new()?;
    bare.client.run(|| {
        let mut conversation = Conversation::open(bare.to)?;
        for path in ["/1", "/2", "/3"] {
            let seen = Seen::in_answer(&conversation.ask(&Ask::get(path))?)?;
            ensure!(seen.path == path, "{seen:?}");
        }
        let upgrade = Ask::get("/chat").with("Connection", "Upgrade");
        let answer = conversation.ask(&upgrade.with("Upgrade", "websocket"))?;
        ensure!(answer.status == 101, "{answer:?}");
        conversation.write(b"ping")?;
        ensure!(conversation.read(4)? == b"ping");
        Ok(())
    })?;
    ensure!(bare.echo.connections() == 1, "one connection");
    Ok(())
}

#[test]
fn an_echo_speaks_http2_and_grpc() -> Result<()> {
    let bare = Bare::new()?;
    bare.client.run(|| {
        let mut connection = h2c::Connection::open(bare.to)?;
        let answers = connection.ask_at_once(&[Ask::get("/1"), Ask::get("/2").host("books")]);
        for (answer, (path, host)) in answers.into_iter().zip([("/1", "echo"), ("/2", "books")]) {
            let seen = Seen::in_answer(&answer?)?;
            ensure!((&*seen.path, &*seen.host, &*seen.protocol) == (path, host, "HTTP/2.0"));
        }
        let answer = connection.call(&Ask::get("/shop.Books/List"))?;
        ensure!(answer.status == 0, "{answer:?}");
        let seen = Seen::in_answer(&answer.response)?;
        ensure!((&*seen.method, &*seen.path) == ("POST", "/shop.Books/List"));
        let refused = connection.call(&Ask::get("/x").wishing("grpc=14"))?;
        ensure!(refused.status == 14, "{refused:?}");
        ensure!(connection.ask(&Ask::get("/").wishing("reset")).is_err());
        ensure!(
            connection.ask(&Ask::get("/"))?.status == 200,
            "the others live"
        );
        Ok(())
    })
}
