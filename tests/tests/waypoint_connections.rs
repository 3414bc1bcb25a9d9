//! Connections to endpoints under a DestinationRule: how long they live, what they speak, and how new endpoints are
//! spared.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::echo::{EchoMesh, Seen, destination_rule};
use e2e::lab::eventually;
use e2e::net::http::{Ask, Conversation};

/// For what takes seconds by its nature.
const PATIENCE: Duration = Duration::from_secs(20);

/// A shop with a DestinationRule about `host`, and where that is.
fn shop_with(host: &str, policy: &str) -> Result<(EchoMesh, SocketAddr)> {
    let mesh = EchoMesh::shop()?;
    mesh.apply("traffic.yaml", &destination_rule(host, policy))?;
    let to = mesh.at(host, 80)?;
    mesh.soon_at_layer7("client", to, true)?;
    Ok((mesh, to))
}

/// How many connections the application accepts for a request that comes after a pause.
fn opened_after(mesh: &EchoMesh, to: SocketAddr, pause: Duration) -> Result<usize> {
    mesh.seen("client", to, &Ask::get("/"))?;
    let before = mesh.workload("echo-v1")?.connections();
    // It is time itself that ends a connection, or does not.
    std::thread::sleep(pause);
    mesh.seen("client", to, &Ask::get("/"))?;
    Ok(mesh.workload("echo-v1")?.connections() - before)
}

/// A host of port 9090 whose endpoint never answers, and how long connecting to it may take.
fn silent(endpoint: IpAddr, limit: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: silent, namespace: shop}}\nspec:\n  \
         hosts: [silent.example.com]\n  addresses: [240.240.9.9]\n  ports: [{{number: 9090, name: tcp, protocol: TCP}}]\n  \
         resolution: STATIC\n  location: MESH_EXTERNAL\n  endpoints: [{{address: {endpoint}}}]\n---\napiVersion: \
         networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: silent, namespace: shop}}\nspec:\n  host: \
         silent.example.com\n  trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {limit}}}}}}}\n"
    )
}

#[test]
fn connecting_takes_as_long_as_the_policy_says_and_no_longer() -> Result<()> {
    let mesh = EchoMesh::shop()?;
    let (client, outside) = (mesh.pod("client")?, mesh.pod("outside")?);
    // Its answers to the client go nowhere.
    let unanswered = format!("{}/32", client.v4());
    let route = ["route", "add", "blackhole", &unanswered];
    let added = outside.enter(Command::new("ip").args(route))?.status()?;
    ensure!(added.success(), "{added}");
    let to = SocketAddr::from(([240, 240, 9, 9], 9090));
    let took = || {
        client.run(|| {
            let begun = Instant::now();
            let connected = TcpStream::connect_timeout(&to, PATIENCE);
            ensure!(connected.is_err(), "it answers");
            Ok(begun.elapsed())
        })
    };
    mesh.apply("traffic.yaml", &silent(outside.v4(), "300ms"))?;
    mesh.soon("the agent knows the host", || {
        let config = mesh.lab.agent("a")?.get(15000, "/config_dump")?.text();
        ensure!(config.contains("silent.example.com"), "it does not");
        Ok(())
    })?;
    mesh.soon("the policy is in force", || {
        let took = took()?;
        let limit = Duration::from_millis(300);
        ensure!((limit..limit * 4).contains(&took), "{took:?}");
        Ok(())
    })?;
    // More than what holds without a policy, 10 s.
    mesh.apply("traffic.yaml", &silent(outside.v4(), "12s"))?;
    eventually("so is the longer one", PATIENCE * 2, || {
        let took = took()?;
        let limit = Duration::from_secs(12);
        ensure!((limit..limit * 5 / 4).contains(&took), "{took:?}");
        Ok(())
    })
}

#[test]
fn an_idle_connection_is_given_up_in_time() -> Result<()> {
    let pause = Duration::from_millis(1_500);
    let (mesh, to) = shop_with("echo-v1", "connectionPool: {}")?;
    eventually("a connection is kept", PATIENCE, || {
        let opened = opened_after(&mesh, to, pause)?;
        ensure!(opened == 0, "{opened} new ones");
        Ok(())
    })?;
    let policy = "connectionPool: {http: {idleTimeout: 1s}}";
    mesh.apply("traffic.yaml", &destination_rule("echo-v1", policy))?;
    eventually("an idle connection is given up", PATIENCE, || {
        let opened = opened_after(&mesh, to, pause)?;
        ensure!(opened == 1, "{opened} new ones");
        Ok(())
    })
}

#[test]
fn an_old_connection_is_replaced_between_requests() -> Result<()> {
    let policy = "connectionPool: {tcp: {maxConnectionDuration: 1s}}";
    let (mesh, to) = shop_with("echo-v1", policy)?;
    let replaced = || -> Result<usize> {
        let before = mesh.workload("echo-v1")?.connections();
        let begun = Instant::now();
        mesh.pod("client")?.run(|| {
            let mut conversation = Conversation::open(to)?;
            while begun.elapsed() < Duration::from_millis(3_500) {
                let answer = conversation.ask(&Ask::get("/"))?;
                ensure!(answer.status == 200, "{answer:?}");
            }
            Ok(())
        })?;
        Ok(mesh.workload("echo-v1")?.connections() - before)
    };
    eventually("a connection lasts a second", PATIENCE, || {
        let replaced = replaced()?;
        ensure!((2..=6).contains(&replaced), "{replaced} new ones");
        Ok(())
    })
}

#[test]
fn http2_is_spoken_to_applications_where_the_policy_says_so() -> Result<()> {
    let (mesh, to) = shop_with("echo-v1", "connectionPool: {}")?;
    let speaks = |protocol: &str| {
        mesh.soon(&format!("{protocol} is spoken"), || {
            let seen = mesh.seen("client", to, &Ask::get("/"))?;
            ensure!(seen.protocol == protocol, "{seen:?}");
            Ok(())
        })
    };
    speaks("HTTP/1.1")?;
    let policy = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
    mesh.apply("traffic.yaml", &destination_rule("echo-v1", policy))?;
    speaks("HTTP/2.0")
}

/// How many of 200 requests of one connection `echo-v1` answers.
fn share(mesh: &EchoMesh, to: SocketAddr) -> Result<usize> {
    mesh.pod("client")?.run(|| {
        let mut conversation = Conversation::open(to)?;
        let mut share = 0;
        for _ in 0..200 {
            let answer = conversation.ask(&Ask::get("/"))?;
            share += usize::from(Seen::in_answer(&answer)?.pod == "echo-v1");
        }
        Ok(share)
    })
}

#[test]
fn a_new_endpoint_gets_its_share_by_and_by() -> Result<()> {
    let policy = "loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 6s, minimumPercent: 10}}";
    let (mut mesh, to) = shop_with("echo", policy)?;
    mesh.service("shop", "echo", "{}", "{app: echo, version: v2}")?;
    mesh.soon("echo-v2 is alone", || {
        let share = share(&mesh, to)?;
        ensure!(share == 0, "{share} of 200");
        Ok(())
    })?;
    // It has to be old enough itself.
    std::thread::sleep(Duration::from_secs(7));
    mesh.service("shop", "echo", "{}", "{app: echo}")?;
    let mut first = 0;
    while first == 0 {
        first = share(&mesh, to)?;
    }
    // An even share is 100. A tenth of a weight, to begin with, is 18 of 200; five standard deviations are 20, and it
    // grows meanwhile.
    ensure!(first <= 60, "{first} of 200 at once");
    eventually("it has its share", PATIENCE, || {
        let share = share(&mesh, to)?;
        ensure!((65..=135).contains(&share), "{share} of 200");
        Ok(())
    })
}
