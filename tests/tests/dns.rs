//! DNS: names of the mesh are answered by the agent, all others by the resolver that the pod meant.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Lab, Pod, PodSpec};
use e2e::net;
use e2e::net::dns::{self, Kind};
use e2e::net::serve::{Server, UdpEcho};

/// The cluster's resolver: a service address at which nobody listens, because the agent answers.
const CLUSTER_DNS: &str = "10.96.0.10:53";

fn ask_udp(pod: &Pod, server: SocketAddr, name: &str, kind: Kind) -> Result<dns::Answer> {
    pod.run(|| {
        let socket = UdpSocket::bind(("::", 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let target = SocketAddr::new(e2e::scenario::mapped(server.ip()), server.port());
        socket.send_to(&dns::query(7, name, kind), target)?;
        let mut datagram = [0; 4096];
        let (length, from) = socket.recv_from(&mut datagram).context("no answer")?;
        ensure!(
            from.ip().to_canonical() == server.ip(),
            "the answer comes from {from}"
        );
        dns::parse(&datagram[..length])
    })
}

/// As glibc asks: with a connected socket.
fn ask_connected(pod: &Pod, server: SocketAddr, name: &str, kind: Kind) -> Result<dns::Answer> {
    pod.run(|| {
        let any = if server.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(server)?;
        socket.send(&dns::query(8, name, kind))?;
        let mut datagram = [0; 4096];
        let length = socket.recv(&mut datagram).context("no answer")?;
        dns::parse(&datagram[..length])
    })
}

fn ask_tcp(pod: &Pod, server: SocketAddr, name: &str, kind: Kind) -> Result<dns::Answer> {
    pod.run(|| {
        let mut stream = net::connect(server)?;
        let query = dns::query(9, name, kind);
        stream.write_all(&u16::try_from(query.len())?.to_be_bytes())?;
        stream.write_all(&query)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        dns::parse(&net::read_exactly(
            &stream,
            u16::from_be_bytes(length).into(),
        )?)
    })
}

fn mesh() -> Result<(Lab, Pod)> {
    let mut lab = Lab::two_nodes()?;
    let client = lab.pod("a", "client")?;
    let _server = lab.pod("b", "server")?;
    lab.service("server", &["10.96.0.1", "fd00:96::1"], &[(80, "8080")])?;
    Ok((lab, client))
}

#[test]
fn a_service_name_has_the_services_addresses() -> Result<()> {
    let (mut lab, client) = mesh()?;
    lab.start()?;
    let server: SocketAddr = CLUSTER_DNS.parse()?;
    let name = "server.app.svc.cluster.local";
    let (v4, v6): (IpAddr, IpAddr) = ("10.96.0.1".parse()?, "fd00:96::1".parse()?);
    for ask in [ask_udp, ask_connected, ask_tcp] {
        let answer = ask(&client, server, name, Kind::A)?;
        ensure!(answer.code == 0 && answer.addresses == [v4], "{answer:?}");
        let answer = ask(&client, server, name, Kind::Aaaa)?;
        ensure!(answer.code == 0 && answer.addresses == [v6], "{answer:?}");
    }
    Ok(())
}

#[test]
fn a_service_entrys_host_has_its_addresses() -> Result<()> {
    let (mut lab, client) = mesh()?;
    lab.manifests().apply(
        "service-entry.yaml",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: legacy\n  namespace: app\nspec:\n  \
         hosts: [legacy.example.com]\n  addresses: [10.97.0.1]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  ports:\n  \
         - number: 80\n    name: tcp\n    protocol: TCP\n  endpoints:\n  - address: 10.244.2.99\n",
    )?;
    lab.start()?;
    let answer = ask_udp(&client, CLUSTER_DNS.parse()?, "legacy.example.com", Kind::A)?;
    ensure!(
        answer.addresses == ["10.97.0.1".parse::<IpAddr>()?],
        "{answer:?}"
    );
    Ok(())
}

#[test]
fn other_names_are_asked_of_the_resolver_that_the_pod_meant() -> Result<()> {
    let (mut lab, client) = mesh()?;
    let resolver = lab.add(&PodSpec::new("b", "resolver").uncaptured())?;
    lab.start()?;
    let known: IpAddr = "192.0.2.7".parse()?;
    for address in [resolver.v4(), resolver.v6()].map(|address| SocketAddr::new(address, 53)) {
        let _udp = UdpEcho::answer(&resolver, address, move |query| dns::answer(query, known))?;
        let _tcp = Server::start(&resolver, address.ip(), 53, move |stream| {
            answer_over(stream, known)
        })?;
        for ask in [ask_udp, ask_connected, ask_tcp] {
            let answer = ask(&client, address, "www.example.org", Kind::A)?;
            ensure!(
                answer.code == 0 && answer.addresses == [known],
                "{answer:?}"
            );
            // The mesh's own names are answered on the way, whichever resolver is asked.
            let own = ask(&client, address, "server.app.svc.cluster.local", Kind::A)?;
            ensure!(own.addresses == ["10.96.0.1".parse::<IpAddr>()?], "{own:?}");
        }
    }
    Ok(())
}

/// Answers one query over TCP.
fn answer_over(mut stream: &TcpStream, known: IpAddr) -> Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let query = net::read_exactly(stream, u16::from_be_bytes(length).into())?;
    let answer = dns::answer(&query, known).context("no query")?;
    stream.write_all(&u16::try_from(answer.len())?.to_be_bytes())?;
    Ok(stream.write_all(&answer)?)
}

#[test]
fn an_external_name_is_an_alias_whose_target_the_resolver_knows() -> Result<()> {
    let (mut lab, client) = mesh()?;
    let resolver = lab.add(&PodSpec::new("b", "resolver").uncaptured())?;
    lab.manifests().apply(
        "database.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: database\n  namespace: app\nspec:\n  type: ExternalName\n  \
         externalName: db.example.com\n",
    )?;
    lab.start()?;
    let address = SocketAddr::new(resolver.v4(), 53);
    let known: IpAddr = "192.0.2.8".parse()?;
    let wanted = dns::query(0, "db.example.com", Kind::A);
    let _udp = UdpEcho::answer(&resolver, address, move |query| {
        // Only the target has an address; the service's own name means nothing to this resolver.
        let asks_for_target = query.get(12..wanted.len()) == wanted.get(12..);
        if asks_for_target {
            dns::answer(query, known)
        } else {
            dns::deny(query)
        }
    })?;
    for ask in [ask_udp, ask_connected] {
        let answer = ask(&client, address, "database.app.svc.cluster.local", Kind::A)?;
        ensure!(
            answer.code == 0 && answer.addresses == [known],
            "{answer:?}"
        );
    }
    Ok(())
}

#[test]
fn a_new_service_has_a_name() -> Result<()> {
    let (mut lab, client) = mesh()?;
    lab.start()?;
    lab.service("later", &["10.96.0.7"], &[(80, "8080")])?;
    let answer = ask_udp(
        &client,
        CLUSTER_DNS.parse()?,
        "later.app.svc.cluster.local",
        Kind::A,
    )?;
    ensure!(
        answer.addresses == ["10.96.0.7".parse::<IpAddr>()?],
        "{answer:?}"
    );
    Ok(())
}
