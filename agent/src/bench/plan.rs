//! What a run is to do: protocol, connections, pace, sizes, how long.

use std::fmt::{self, Write as _};
use std::num::{NonZeroU64, NonZeroUsize};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::wire::Ports;

/// What is spoken with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, connections kept open.
    Http1,
    /// HTTP/2 without TLS (prior knowledge).
    H2,
    /// gRPC, unary calls.
    Grpc,
    /// Requests and responses of plain bytes, connections kept open.
    Tcp,
    /// A new connection for each request of plain bytes: connection rate.
    Connect,
    /// Streams of bytes, as fast as they go.
    Bulk,
    /// Connections that are opened, asked once, left alone, and asked again at the end.
    Idle,
}

impl Protocol {
    /// The name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2 => "h2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Connect => "connect",
            Self::Bulk => "bulk",
            Self::Idle => "idle",
        }
    }

    /// Whether several requests may be under way on one connection.
    pub fn is_multiplexed(self) -> bool {
        matches!(self, Self::H2 | Self::Grpc)
    }

    /// Whether paths and headers mean something.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::H2)
    }

    /// Where a server with the default ports takes it.
    pub fn port(self, ports: Ports) -> u16 {
        match self {
            Self::Http1 => ports.http1(),
            Self::H2 => ports.h2(),
            Self::Grpc => ports.grpc(),
            Self::Tcp | Self::Connect | Self::Idle => ports.tcp(),
            Self::Bulk => ports.bulk(),
        }
    }
}

/// Which way bulk bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From client to server.
    Upload,
    /// From server to client.
    Download,
    /// Both at once, on connections of their own.
    Both,
}

impl Direction {
    /// The name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Both => "both",
        }
    }
}

/// When the next request is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loop {
    /// As soon as the one before it was answered.
    Closed,
    /// At a fixed rate, whatever becomes of the others: requests a second over all connections.
    Open {
        /// Above 0.
        rate: f64,
    },
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// So long, after a time that does not count.
    Time {
        /// Does not count.
        warmup: Duration,
        /// Counts.
        duration: Duration,
    },
    /// So many requests, all of which count.
    Requests(NonZeroU64),
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port; `None` for that of the protocol.
    pub port: Option<u16>,
    /// Path and query of somebody else's HTTP server; `None` for the benchmark's own server, which is told the
    /// response's size.
    pub path: Option<String>,
}

impl Target {
    /// `host:port`, IPv6 in brackets.
    pub fn authority(&self, port: u16) -> String {
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, path) = match text.strip_prefix("http://") {
            Some(rest) => match rest.find(['/', '?']) {
                Some(at) if rest[at..].starts_with('/') => {
                    (&rest[..at], Some(rest[at..].to_owned()))
                }
                Some(at) => (&rest[..at], Some(format!("/{}", &rest[at..]))),
                None => (rest, Some("/".to_owned())),
            },
            None if text.contains("://") => {
                return Err(
                    "write HOST, HOST:PORT or http://HOST[:PORT]/PATH; TLS is the mesh's work"
                        .to_owned(),
                );
            }
            None => (text, None),
        };
        let (host, port) = split_port(rest)?;
        // What follows `http://` has the scheme's port; what does not, the protocol's.
        let port = port.or_else(|| path.is_some().then_some(80));
        if host.is_empty() || host.contains(['/', ' ']) {
            return Err(format!("`{rest}` names no host"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            path,
        })
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    let number = |port: &str| match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => Err(format!("`{port}` is no port")),
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest
            .split_once(']')
            .ok_or_else(|| format!("`{text}` lacks a closing bracket"))?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, number(port)?)),
            None if after.is_empty() => Ok((host, None)),
            None => Err(format!("`{after}` follows an address")),
        };
    }
    match text.split_once(':') {
        // More than one colon: an IPv6 address without a port.
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some((host, port)) => Ok((host, number(port)?)),
        None => Ok((text, None)),
    }
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is spoken.
    pub protocol: Protocol,
    /// With whom.
    pub target: Target,
    /// Connections that are open at once.
    pub connections: NonZeroUsize,
    /// Requests under way on each of them at once.
    pub streams: NonZeroUsize,
    /// When requests are sent.
    pub pace: Loop,
    /// How long.
    pub extent: Extent,
    /// Bytes of each request's body.
    pub payload: usize,
    /// Bytes of each response's body, which the benchmark's own server is asked for.
    pub response: usize,
    /// Which way bulk goes.
    pub direction: Direction,
    /// HTTP headers that each request has besides those that it needs.
    pub headers: Vec<(String, String)>,
    /// When a request has failed.
    pub timeout: Duration,
    /// How long to try to reach the server at first.
    pub wait: Duration,
    /// Threads that drive connections.
    pub threads: NonZeroUsize,
    /// Time between two lines of progress and two entries of the report's course.
    pub interval: Duration,
    /// Which runs may be compared: those of one invocation.
    pub invocation: String,
    /// What carries the traffic, in the report: `direct`, `mesh`.
    pub plane: String,
}

impl Plan {
    /// Where the server is.
    pub fn port(&self) -> u16 {
        let default = self.protocol.port(Ports::default());
        self.target.port.unwrap_or(default)
    }

    /// What the load is called, so that the same load on another plane has the same name.
    pub fn load(&self) -> String {
        let mut name = format!("{} c={}", self.protocol.name(), self.connections);
        // Writing to a String cannot fail.
        if self.streams.get() > 1 {
            let _infallible = write!(name, " m={}", self.streams);
        }
        if let Loop::Open { rate } = self.pace {
            let _infallible = write!(name, " {rate}/s");
        }
        if self.protocol == Protocol::Bulk {
            let _infallible = write!(name, " {}", self.direction.name());
            return name;
        }
        for (what, size) in [("send", self.payload), ("receive", self.response)] {
            if size > 0 {
                let _infallible = write!(name, " {what} {}", Size(size));
            }
        }
        name
    }
}

/// A number of bytes as people write it.
pub(super) struct Size(pub(super) usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            size if size > 0 && size % (1 << 20) == 0 => write!(f, "{}M", size >> 20),
            size if size > 0 && size % (1 << 10) == 0 => write!(f, "{}k", size >> 10),
            size => write!(f, "{size}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[track_caller]
    fn target(text: &str, host: &str, port: Option<u16>, path: Option<&str>) {
        let expected = Target {
            host: host.to_owned(),
            port,
            path: path.map(str::to_owned),
        };
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }

    #[test]
    fn targets_are_hosts_with_ports_or_urls() {
        target("server", "server", None, None);
        target("server.bench:81", "server.bench", Some(81), None);
        target("10.0.0.1:81", "10.0.0.1", Some(81), None);
        target("fd00::1", "fd00::1", None, None);
        target("[fd00::1]", "fd00::1", None, None);
        target("[fd00::1]:81", "fd00::1", Some(81), None);
        target("http://shop", "shop", Some(80), Some("/"));
        target("http://shop:81/a?b=c", "shop", Some(81), Some("/a?b=c"));
        target("http://shop?b=/", "shop", Some(80), Some("/?b=/"));
        for wrong in [
            "",
            "https://shop/",
            "a:b",
            "a:0",
            "a:70000",
            "[::1",
            "[::1]x",
            "http:///x",
        ] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
