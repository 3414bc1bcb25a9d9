//! What many scenarios share: a captured pair of pods, and checks of a connection between them.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Result, ensure};

use crate::lab::{Lab, Pod};
use crate::net;

/// A captured client on node a, a captured server on node b, both agents ready.
pub struct Pair {
    // Dropped before the lab, which removes their namespaces.
    /// Its service account and label are `client`.
    pub client: Pod,
    /// Its service account and label are `server`.
    pub server: Pod,
    /// Everything else.
    pub lab: Lab,
}

impl Pair {
    /// Builds it.
    ///
    /// # Errors
    /// If the lab cannot be built or an agent does not become ready.
    pub fn new() -> Result<Self> {
        Self::with_agent_options(&[])
    }

    /// Builds it with options of one's own for both agents.
    ///
    /// # Errors
    /// If the lab cannot be built or an agent does not become ready.
    pub fn with_agent_options(options: &[&str]) -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        lab.agent_options(options);
        let (client, server) = (lab.pod("a", "client")?, lab.pod("b", "server")?);
        lab.start()?;
        Ok(Self {
            client,
            server,
            lab,
        })
    }

    /// Runs a scenario and makes sure that the link carried TLS to 15008 and none of the secret.
    ///
    /// # Errors
    /// What the scenario returns, or that its secret crossed the link in the clear, or that nothing crossed it.
    pub fn encrypted<T>(&self, secret: &str, scenario: impl FnOnce() -> Result<T>) -> Result<T> {
        let sniffer = self.lab.sniff()?;
        let result = scenario()?;
        let traffic = sniffer.stop()?;
        ensure!(
            !traffic.contains(secret.as_bytes()),
            "`{secret}` crossed the link in the clear"
        );
        ensure!(
            traffic.tls_records_to(15008) > 0,
            "nothing went to port 15008"
        );
        Ok(result)
    }
}

/// Sends a text to an echo server, and checks what comes back.
///
/// # Errors
/// If the connection breaks or another text comes back.
pub fn echoes(mut stream: &TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes())?;
    let back = net::read_exactly(stream, text.len())?;
    ensure!(
        back == text.as_bytes(),
        "{:?} came back",
        String::from_utf8_lossy(&back)
    );
    Ok(())
}

/// An IPv4 address as an IPv6 socket sees it.
pub fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    }
}

/// The error number that an application gets from connecting and then waiting for the first byte.
///
/// # Errors
/// If it gets none.
pub fn errno_towards(to: SocketAddr) -> Result<i32> {
    let outcome = net::connect(to).and_then(|stream| {
        use std::io::Read as _;
        (&stream).read(&mut [0]).map(drop)
    });
    let error = outcome.err().and_then(|error| error.raw_os_error());
    error.ok_or_else(|| anyhow::anyhow!("{to} answers"))
}
