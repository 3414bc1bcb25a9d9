//! The lab itself, without any agent: what scenarios take for granted about it.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use e2e::lab::{Lab, PodSpec};
use e2e::net::serve::{Server, echo, tell_addresses};
use e2e::net::{self, sys};

#[test]
fn the_lab_itself_carries_direct_traffic() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.add(&PodSpec::new("a", "client").uncaptured())?;
    let near = lab.add(&PodSpec::new("a", "near").uncaptured())?;
    let far = lab.add(&PodSpec::new("b", "far").uncaptured())?;
    for pod in [&near, &far] {
        let server = Server::start(pod, Ipv6Addr::UNSPECIFIED, 7000, echo)?;
        for address in [pod.v4(), pod.v6()] {
            let to = SocketAddr::new(address, server.address().port());
            client.run(|| {
                let mut stream = net::connect(to)?;
                stream.write_all(b"round and back")?;
                stream.shutdown(std::net::Shutdown::Write)?;
                ensure!(
                    net::read_to_end(&stream)? == b"round and back",
                    "an echo repeats"
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn the_lab_keeps_client_addresses_and_routes_no_service_address() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.add(&PodSpec::new("a", "client").uncaptured())?;
    let server = lab.add(&PodSpec::new("b", "server").uncaptured())?;
    let _server = Server::start(&server, Ipv4Addr::UNSPECIFIED, 7000, tell_addresses)?;
    let to = SocketAddr::new(server.v4(), 7000);
    let seen = client.run(|| {
        let stream = net::connect(to)?;
        let own = stream.local_addr()?;
        let seen = String::from_utf8(net::read_to_end(&stream)?)?;
        ensure!(seen == format!("{own} {to}"), "{seen}");
        Ok(own.ip())
    })?;
    ensure!(seen == client.v4(), "{seen}");

    let service: IpAddr = Ipv4Addr::new(10, 96, 0, 1).into();
    let refused = client.run(|| Ok(net::connect(SocketAddr::new(service, 80)).err()))?;
    let code = refused.and_then(|error| error.raw_os_error());
    ensure!(code == Some(libc::ENETUNREACH), "{code:?}");
    Ok(())
}

#[test]
fn the_sniffer_sees_what_crosses_the_link_and_only_that() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.add(&PodSpec::new("a", "client").uncaptured())?;
    let near = lab.add(&PodSpec::new("a", "near").uncaptured())?;
    let far = lab.add(&PodSpec::new("b", "far").uncaptured())?;
    let near_server = Server::start(&near, near.v4(), 7000, echo)?;
    let far_server = Server::start(&far, far.v6(), 7000, echo)?;
    let sniffer = lab.sniff()?;
    client.run(|| {
        for (server, text) in [
            (&near_server, "stays at home"),
            (&far_server, "goes abroad"),
        ] {
            let mut stream = net::connect(server.address())?;
            stream.write_all(text.as_bytes())?;
            net::read_exactly(&stream, text.len())?;
        }
        Ok(())
    })?;
    let traffic = sniffer.stop()?;
    ensure!(traffic.contains(b"goes abroad"), "{traffic:?}");
    ensure!(!traffic.contains(b"stays at home"), "{traffic:?}");
    ensure!(traffic.tls_records_to(7000) == 0, "no TLS was spoken");
    Ok(())
}

#[test]
fn every_way_to_connect_works_without_a_mesh() -> Result<()> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.add(&PodSpec::new("a", "client").uncaptured())?;
    let pod = lab.add(&PodSpec::new("b", "server").uncaptured())?;
    let server = Server::start(&pod, pod.v4(), 7000, echo)?;
    let to = server.address();
    client.run(|| {
        let streams = [
            sys::connect(sys::tcp_socket(to)?, to)?,
            sys::connect(sys::mptcp_socket(to)?, to)?,
            sys::connect_nonblocking(to)?,
            sys::connect_by_ring(to)?,
        ];
        for mut stream in streams {
            stream.write_all(b"hello")?;
            ensure!(
                net::read_exactly(&stream, 5)? == b"hello",
                "an echo repeats"
            );
        }
        let stream = sys::connect_with_data(to, b"early")?;
        ensure!(
            net::read_exactly(&stream, 5)? == b"early",
            "an echo repeats"
        );
        Ok(())
    })
}
