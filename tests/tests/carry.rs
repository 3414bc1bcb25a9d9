//! Carrying: what an application sends and how it ends reaches the other side as without a mesh.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Agent, Lab, PodSpec, eventually};
use e2e::net::serve::{Server, echo, tell_addresses};
use e2e::net::{self, pattern, sys};
use e2e::scenario::{Pair, echoes, mapped};

const PORT: u16 = 7000;
const SECRET: &str = "nobody on the link may read this";

/// Connects from client to server over an address of the server's, in one of the ways there are.
#[track_caller]
fn carries(
    address: impl Fn(&Pair) -> IpAddr,
    connect: impl Fn(SocketAddr) -> Result<TcpStream> + Send + Sync,
) -> Result<()> {
    let pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let to = SocketAddr::new(address(&pair), PORT);
    pair.encrypted(SECRET, || pair.client.run(|| echoes(&connect(to)?, SECRET)))
}

fn plainly(to: SocketAddr) -> Result<TcpStream> {
    Ok(net::connect(to)?)
}

#[test]
fn ipv4_is_carried_encrypted() -> Result<()> {
    carries(|pair| pair.server.v4(), plainly)
}

#[test]
fn ipv6_is_carried_encrypted() -> Result<()> {
    carries(|pair| pair.server.v6(), plainly)
}

#[test]
fn v4_mapped_is_carried_encrypted() -> Result<()> {
    carries(|pair| mapped(pair.server.v4()), plainly)
}

#[test]
fn non_blocking_connect_is_carried() -> Result<()> {
    carries(|pair| pair.server.v4(), sys::connect_nonblocking)?;
    carries(|pair| pair.server.v6(), sys::connect_nonblocking)
}

#[test]
fn an_agent_without_io_uring_carries_the_same() -> Result<()> {
    let pair = Pair::with_agent_options(&["--io-uring", "off"])?;
    let status = pair.lab.node("a")?.culvert(&["status"])?;
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(told.contains("on epoll"), "{told}");
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    pair.encrypted(SECRET, || {
        [pair.server.v4(), pair.server.v6()]
            .iter()
            .try_for_each(|address| {
                let to = SocketAddr::new(*address, PORT);
                pair.client.run(|| echoes(&net::connect(to)?, SECRET))
            })
    })
}

#[test]
fn io_uring_connect_is_carried() -> Result<()> {
    carries(|pair| pair.server.v4(), sys::connect_by_ring)?;
    carries(|pair| pair.server.v6(), sys::connect_by_ring)
}

#[test]
fn multipath_tcp_is_carried() -> Result<()> {
    carries(
        |pair| pair.server.v4(),
        |to| Ok(sys::connect(sys::mptcp_socket(to)?, to)?),
    )
}

#[test]
fn tcp_fast_open_is_carried() -> Result<()> {
    let pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let early = |to: SocketAddr| {
        let stream = sys::connect_with_data(to, SECRET.as_bytes())?;
        let back = net::read_exactly(&stream, SECRET.len())?;
        ensure!(
            back == SECRET.as_bytes(),
            "the early data came back changed"
        );
        echoes(&stream, "and what followed it")
    };
    pair.encrypted(SECRET, || {
        [pair.server.v4(), pair.server.v6()]
            .iter()
            .map(|address| SocketAddr::new(*address, PORT))
            .try_for_each(|to| pair.client.run(|| early(to)))
    })
}

#[test]
fn a_dual_stack_service_is_carried_over_both_families() -> Result<()> {
    let pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, 8080, echo)?;
    pair.lab
        .service("server", &["10.96.0.1", "fd00:96::1"], &[(80, "8080")])?;
    for vip in ["10.96.0.1:80", "[fd00:96::1]:80"] {
        let to: SocketAddr = vip.parse()?;
        eventually(&format!("{vip} answers"), Duration::from_secs(5), || {
            pair.client.run(|| echoes(&net::connect(to)?, "first"))
        })?;
        pair.encrypted(SECRET, || {
            pair.client.run(|| echoes(&net::connect(to)?, SECRET))
        })?;
    }
    Ok(())
}

#[test]
fn a_server_may_speak_first() -> Result<()> {
    let pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), PORT, |mut stream| {
        stream.write_all(b"220 ready\r\n")?;
        echo(stream)
    })?;
    pair.client.run(|| {
        let stream = net::connect(server.address())?;
        ensure!(
            net::read_exactly(&stream, 11)? == b"220 ready\r\n",
            "the greeting is complete"
        );
        echoes(&stream, "EHLO")
    })
}

#[test]
fn the_client_may_finish_first_and_still_hear_the_server() -> Result<()> {
    let pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), PORT, |mut stream| {
        let question = net::read_to_end(stream)?;
        write!(stream, "{} bytes", question.len())?;
        Ok(())
    })?;
    pair.client.run(|| {
        let mut stream = net::connect(server.address())?;
        stream.write_all(&vec![7; 100_000])?;
        stream.shutdown(Shutdown::Write)?;
        let answer = net::read_to_end(&stream)?;
        ensure!(
            answer == b"100000 bytes",
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
        Ok(())
    })
}

#[test]
fn the_server_may_finish_first_and_still_hear_the_client() -> Result<()> {
    let pair = Pair::new()?;
    let (sender, receiver) = mpsc::channel();
    let server = Server::start(&pair.server, pair.server.v4(), PORT, move |mut stream| {
        stream.write_all(b"that is all")?;
        stream.shutdown(Shutdown::Write)?;
        sender.send(net::read_to_end(stream)?.len())?;
        Ok(())
    })?;
    pair.client.run(|| {
        let mut stream = net::connect(server.address())?;
        ensure!(
            net::read_to_end(&stream)? == b"that is all",
            "the server's last word"
        );
        stream.write_all(&vec![7; 100_000])?;
        Ok(())
    })?;
    let length = receiver
        .recv_timeout(net::PATIENCE)
        .context("the server never saw the end")?;
    ensure!(length == 100_000, "{length} bytes arrived");
    Ok(())
}

#[test]
fn a_reset_by_the_client_reaches_the_server() -> Result<()> {
    let pair = Pair::new()?;
    let (sender, receiver) = mpsc::channel();
    let server = Server::start(&pair.server, pair.server.v4(), PORT, move |mut stream| {
        stream.write_all(b"x")?;
        sender.send(stream.read(&mut [0]).map_err(|error| error.raw_os_error()))?;
        Ok(())
    })?;
    pair.client.run(|| {
        let stream = net::connect(server.address())?;
        net::read_exactly(&stream, 1)?;
        sys::reset_on_close(&stream)
    })?;
    let seen = receiver
        .recv_timeout(net::PATIENCE)
        .context("the server saw nothing")?;
    ensure!(seen == Err(Some(libc::ECONNRESET)), "{seen:?}");
    Ok(())
}

#[test]
fn a_reset_by_the_server_reaches_the_client() -> Result<()> {
    let pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), PORT, |stream| {
        net::read_exactly(stream, 1)?;
        sys::reset_on_close(stream)
    })?;
    pair.client.run(|| {
        let mut stream = net::connect(server.address())?;
        stream.write_all(b"x")?;
        let seen = stream.read(&mut [0]).map_err(|error| error.raw_os_error());
        ensure!(seen == Err(Some(libc::ECONNRESET)), "{seen:?}");
        Ok(())
    })
}

#[test]
fn a_gigabyte_both_ways_at_once_arrives_byte_for_byte() -> Result<()> {
    const LENGTH: u64 = 1 << 30;
    const TO_SERVER: u64 = 1;
    const TO_CLIENT: u64 = 2;
    let pair = Pair::new()?;
    let (done, is_done) = mpsc::channel();
    let server = Server::start(&pair.server, pair.server.v4(), PORT, move |stream| {
        let sender = stream.try_clone()?;
        let sending = thread::spawn(move || pattern::send(&sender, TO_CLIENT, LENGTH));
        let received = pattern::expect(stream, TO_SERVER, LENGTH);
        let sent = sending
            .join()
            .map_err(|_panic| anyhow::anyhow!("the sender panicked"))?;
        done.send(received.and(sent))?;
        Ok(())
    })?;
    pair.client.run(|| {
        let stream = net::connect(server.address())?;
        let sender = stream.try_clone()?;
        let sending = thread::spawn(move || pattern::send(&sender, TO_SERVER, LENGTH));
        pattern::expect(&stream, TO_CLIENT, LENGTH).context("towards the client")?;
        sending
            .join()
            .map_err(|_panic| anyhow::anyhow!("the sender panicked"))?
    })?;
    is_done
        .recv_timeout(net::PATIENCE)
        .context("the server is not done")?
        .context("towards the server")
}

/// What an agent holds that a connection might leak.
fn holdings(agent: &Agent) -> Result<(usize, u64)> {
    Ok((agent.open_files()?, agent.rss_kib()?))
}

/// One connection that says a word and ends.
fn short(to: SocketAddr) -> Result<()> {
    let mut stream = net::connect(to)?;
    stream.write_all(b"ping")?;
    stream.shutdown(Shutdown::Write)?;
    ensure!(net::read_to_end(&stream)? == b"ping", "an echo repeats");
    Ok(())
}

#[test]
fn ten_thousand_short_connections_leave_nothing_behind() -> Result<()> {
    const CONNECTIONS: usize = 10_000;
    // What an agent may have in stock for a busy pod: sockets made ahead, a large batch on top of a small one.
    const STOCK: usize = 160;
    let pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), PORT, echo)?;
    let to = server.address();
    let rounds = |count: usize| pair.client.run(|| (0..count).try_for_each(|_| short(to)));
    // Pools, buffers and caches are filled before anything is counted.
    rounds(500)?;
    let nodes = ["a", "b"];
    let before: Vec<_> = nodes
        .iter()
        .map(|node| holdings(pair.lab.agent(node)?))
        .collect::<Result<_>>()?;
    let entries = map_entries(&pair.lab)?;
    rounds(CONNECTIONS)?;
    for (node, (files, memory)) in nodes.iter().zip(before) {
        let agent = pair.lab.agent(node)?;
        eventually(
            &format!("agent {node} is as before"),
            Duration::from_secs(10),
            || {
                let (now_files, now_memory) = holdings(agent)?;
                ensure!(
                    now_files <= files + STOCK,
                    "{now_files} files open, {files} before"
                );
                // 10,000 connections that leaked 400 bytes each would show.
                ensure!(
                    now_memory <= memory + 4096,
                    "{now_memory} KiB resident, {memory} before"
                );
                Ok(())
            },
        )?;
    }
    eventually("the maps are as before", Duration::from_secs(10), || {
        let now = map_entries(&pair.lab)?;
        ensure!(now <= entries + 8, "{now} map entries, {entries} before");
        Ok(())
    })
}

/// Entries in the eBPF maps of both agents.
fn map_entries(lab: &Lab) -> Result<usize> {
    Ok(lab.agent("a")?.map_entries()? + lab.agent("b")?.map_entries()?)
}

#[test]
fn a_reader_that_stops_does_not_fill_the_agents_memory() -> Result<()> {
    const OFFERED: u64 = 256 << 20;
    let pair = Pair::new()?;
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let server = Server::start(&pair.server, pair.server.v4(), PORT, move |stream| {
        // Does not read until it is told to.
        let released = released
            .lock()
            .map_err(|_poisoned| anyhow::anyhow!("poisoned"))?;
        released.recv_timeout(Duration::from_secs(60))?;
        pattern::expect(stream, 3, OFFERED)?;
        net::read_to_end(stream)?;
        Ok(())
    })?;
    let agents = ["a", "b"];
    let memory = || -> Result<u64> {
        agents
            .iter()
            .map(|node| pair.lab.agent(node)?.rss_kib())
            .sum()
    };
    let before = memory()?;
    let mut writer = pair.client.run(|| Ok(net::connect(server.address())?))?;
    let sender = writer.try_clone()?;
    let sending = thread::spawn(move || {
        sender.set_write_timeout(Some(Duration::from_secs(60)))?;
        pattern::send(&sender, 3, OFFERED)
    });
    // The way is full when what waits in the client's own socket no longer changes.
    let stuck = eventually("the sender is stuck", Duration::from_secs(20), || {
        let waiting = sys::unsent(&writer)?;
        ensure!(waiting > 0, "nothing waits");
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(500) {
            ensure!(sys::unsent(&writer)? == waiting, "still moving");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(waiting)
    })?;
    let grown = memory()?.saturating_sub(before);
    // Per stream: an HTTP/2 window and a socket buffer or two on either side; nothing near what was offered.
    ensure!(
        grown < 24 * 1024,
        "the agents grew by {grown} KiB ({stuck} bytes wait at the client)"
    );
    release.send(())?;
    sending
        .join()
        .map_err(|_panic| anyhow::anyhow!("the sender panicked"))??;
    writer.shutdown(Shutdown::Write)?;
    ensure!(
        writer.read(&mut [0])? == 0,
        "the server ends in order, so every byte arrived"
    );
    Ok(())
}

#[test]
fn the_application_sees_the_clients_address() -> Result<()> {
    let pair = Pair::new()?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, tell_addresses)?;
    for (client, server) in [
        (pair.client.v4(), pair.server.v4()),
        (pair.client.v6(), pair.server.v6()),
    ] {
        let to = SocketAddr::new(server, PORT);
        let seen = pair.client.run(|| {
            let stream = net::connect(to)?;
            ensure!(stream.peer_addr()? == to, "the client's own view is true");
            ensure!(
                stream.local_addr()?.ip() == client,
                "the client's own view is true"
            );
            Ok(String::from_utf8(net::read_to_end(&stream)?)?)
        })?;
        let (peer, own) = seen.split_once(' ').context("two addresses")?;
        let (peer, own): (SocketAddr, SocketAddr) = (peer.parse()?, own.parse()?);
        ensure!(
            peer.ip().to_canonical() == client,
            "the server sees {peer}, the client is {client}"
        );
        ensure!(
            own.ip().to_canonical() == server && own.port() == PORT,
            "the server thinks it is {own}"
        );
    }
    Ok(())
}

#[test]
fn an_application_restarts_on_its_port_while_connections_live() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let (inside, pod) = (lab.pod("a", "client")?, lab.pod("b", "server")?);
    let outside = lab.add(&PodSpec::new("a", "outside").uncaptured())?;
    lab.start()?;
    let address = SocketAddr::new(pod.v4(), PORT);
    let (exit, exits) = mpsc::channel::<()>();
    let exits = Mutex::new(exits);
    let first = Server::start(&pod, address.ip(), PORT, move |mut stream| {
        stream.write_all(b"first")?;
        let exits = exits
            .lock()
            .map_err(|_poisoned| anyhow::anyhow!("poisoned"))?;
        // Returning closes the socket, as the end of the process would.
        exits.recv_timeout(net::PATIENCE).map_err(Into::into)
    })?;
    // One comes as HBONE; the other as plain TCP, for which the agent holds a socket on the application's port.
    let mut held = Vec::new();
    for client in [&inside, &outside] {
        let stream = client.run(|| Ok(net::connect(address)?))?;
        ensure!(
            net::read_exactly(&stream, 5)? == b"first",
            "the first server answers"
        );
        held.push(stream);
    }
    drop(first);
    for _ in &held {
        exit.send(())?;
    }
    let _second = Server::start(&pod, address.ip(), PORT, |mut stream| {
        Ok(stream.write_all(b"second")?)
    })?;
    for client in [&inside, &outside] {
        let stream = client.run(|| Ok(net::connect(address)?))?;
        ensure!(
            net::read_to_end(&stream)? == b"second",
            "the second server answers"
        );
    }
    for stream in held {
        ensure!(
            net::read_to_end(&stream)?.is_empty(),
            "the first server's end was orderly"
        );
    }
    Ok(())
}
