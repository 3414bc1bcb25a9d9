//! A waypoint of another controller that speaks no HBONE: an HTTP proxy that a PROXY header tells who calls and what
//! (Istio's "sandwich": the node's proxy before it and behind it).

use std::fmt;
use std::io::Read as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::Pod;
use crate::net::http::{self, Ask};
use crate::net::serve::Server;

/// What requests carry that have gone through it.
pub const TRAVERSED: &str = "traversed-waypoint";
/// What it adds to requests of what it was told: `<identity> <source's address> <destination> <hostname>`.
pub const TOLD: &str = "x-told";

/// A header of the PROXY protocol, version 2, over IPv4.
struct Header {
    ends: (SocketAddr, SocketAddr),
    /// TLV 0xD0.
    identity: Option<String>,
    /// TLV 0xD1.
    hostname: Option<String>,
}

impl Header {
    fn read(mut stream: &TcpStream) -> Result<Self> {
        let mut start = [0; 16];
        stream.read_exact(&mut start)?;
        let (signature, [command, family, length @ ..]) = start.split_at(12) else {
            bail!("a header has 16 bytes at least");
        };
        ensure!(
            signature == b"\r\n\r\n\0\r\nQUIT\n" && (*command, *family) == (0x21, 0x11),
            "no header: {start:?}"
        );
        let length = u16::from_be_bytes(length.try_into().context("no length")?);
        let mut rest = vec![0; length.into()];
        stream.read_exact(&mut rest)?;
        let (ends, mut names) = rest.split_at_checked(12).context("no addresses")?;
        let address = |at: usize, port: usize| {
            let octets: [u8; 4] = ends[at..at + 4].try_into().unwrap_or_default();
            let port = u16::from_be_bytes([ends[port], ends[port + 1]]);
            SocketAddr::from((Ipv4Addr::from(octets), port))
        };
        let mut header = Self {
            ends: (address(0, 8), address(4, 10)),
            identity: None,
            hostname: None,
        };
        while let [kind, high, low, more @ ..] = names {
            let length = u16::from_be_bytes([*high, *low]).into();
            let (text, next) = more.split_at_checked(length).context("a TLV is cut off")?;
            let text = Some(String::from_utf8(text.to_vec())?);
            match kind {
                0xd0 => header.identity = text,
                0xd1 => header.hostname = text,
                other => bail!("a TLV of kind {other:#x}"),
            }
            names = next;
        }
        ensure!(names.is_empty(), "bytes behind the last TLV: {names:?}");
        Ok(header)
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = self.ends;
        let identity = self.identity.as_deref().unwrap_or("-");
        let hostname = self.hostname.as_deref().unwrap_or("-");
        write!(f, "{identity} {} {destination} {hostname}", source.ip())
    }
}

/// Serves on a port of a pod: what comes goes on to the destination that its header names, in the pod's own name.
///
/// # Errors
/// If the port cannot be opened.
pub fn serve(pod: &Pod, port: u16) -> Result<Server> {
    let own = pod.clone();
    Server::start(pod, Ipv6Addr::UNSPECIFIED, port, move |stream| {
        let header = Header::read(stream)?;
        http::serve(stream, |request| {
            let answered = own.run(|| {
                let (_, to) = header.ends;
                let ask = Ask::new(&request.method, &request.path);
                let ask = ask.with(TRAVERSED, "sandwich");
                ask.with(TOLD, &header.to_string()).send(to)
            });
            match answered {
                Ok(answer) => (answer.status, "application/json", answer.body),
                Err(error) => (502, "text/plain", format!("{error:#}").into_bytes()),
            }
        })
    })
}
