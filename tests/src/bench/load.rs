//! What is run on a plane: a load generator's command line, and where it makes sense.

use std::time::Duration;

use super::plane::Plane;

/// Where the benchmark's web server listens.
pub(super) const HTTP_PORT: u16 = 8080;
/// First port of `culvert bench server`.
pub(super) const OWN_PORT: u16 = 9080;
/// Where that server takes gRPC, plain requests.
pub(super) const GRPC_PORT: u16 = OWN_PORT + 2;
/// Plain requests.
pub(super) const TCP_PORT: u16 = OWN_PORT + 3;
/// Where iperf3 listens.
pub(super) const STREAM_PORT: u16 = 5201;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// In the report.
    pub name: &'static str,
    /// What is run.
    pub kind: Kind,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `wrk` against nginx, in closed loop.
    Web {
        /// Open at once.
        connections: u16,
        /// What is asked for.
        path: &'static str,
        /// Whether each request has a connection of its own.
        closes: bool,
    },
    /// `iperf3`.
    Stream {
        /// At once.
        streams: u16,
        /// From server to client.
        backwards: bool,
    },
    /// `culvert bench client` against nginx, at so many requests a second.
    Paced {
        /// Requests a second.
        rate: u32,
        /// Whether policies change meanwhile.
        policies_change: bool,
    },
    /// gRPC calls.
    Calls,
    /// Connections that do nothing; what they cost in memory.
    Idle {
        /// How many.
        connections: u16,
    },
}

/// The unit of a load's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Requests a second; work is requests.
    Requests,
    /// Gbit a second; work is GB.
    Gigabits,
    /// Connections that are held; work is connections.
    Connections,
}

impl Unit {
    /// Behind a rate.
    pub fn rate(self) -> &'static str {
        match self {
            Self::Requests => "requests/s",
            Self::Gigabits => "Gbit/s",
            Self::Connections => "connections",
        }
    }

    /// What CPU time is divided by.
    pub fn work(self) -> &'static str {
        match self {
            Self::Requests => "request",
            Self::Gigabits => "GB",
            Self::Connections => "connection",
        }
    }
}

const fn web(name: &'static str, connections: u16, path: &'static str) -> Load {
    Load {
        name,
        kind: Kind::Web {
            connections,
            path,
            closes: false,
        },
    }
}

const fn stream(name: &'static str, streams: u16, backwards: bool) -> Load {
    Load {
        name,
        kind: Kind::Stream { streams, backwards },
    }
}

const fn paced(name: &'static str, rate: u32, policies_change: bool) -> Load {
    Load {
        name,
        kind: Kind::Paced {
            rate,
            policies_change,
        },
    }
}

/// Every load, in the order of the report.
pub const LOADS: [Load; 15] = [
    web("keepalive c=64", 64, "/"),
    web("keepalive c=1", 1, "/"),
    web("keepalive c=512", 512, "/"),
    Load {
        name: "new connections c=16",
        kind: Kind::Web {
            connections: 16,
            path: "/",
            closes: true,
        },
    },
    web("16 kB responses c=16", 16, "/16k"),
    web("1 MB responses c=16", 16, "/1m"),
    paced("latency at 500/s", 500, false),
    paced("latency at 2000/s", 2_000, false),
    paced("policy changes at 500/s", 500, true),
    Load {
        name: "gRPC c=8 m=8",
        kind: Kind::Calls,
    },
    stream("one stream", 1, false),
    stream("8 streams", 8, false),
    stream("one stream back", 1, true),
    stream("8 streams back", 8, true),
    Load {
        name: "10,000 idle connections",
        kind: Kind::Idle {
            connections: 10_000,
        },
    },
];

/// What the generator's output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// wrk's report.
    Wrk,
    /// iperf3's JSON.
    Iperf,
    /// The JSON of `culvert bench client`.
    Own,
}

impl Load {
    /// The unit of its rate.
    pub fn unit(&self) -> Unit {
        match self.kind {
            Kind::Web { .. } | Kind::Paced { .. } | Kind::Calls => Unit::Requests,
            Kind::Stream { .. } => Unit::Gigabits,
            Kind::Idle { .. } => Unit::Connections,
        }
    }

    /// Whether the rate is the plane's doing: not where the generator sets it.
    pub fn has_rate(&self) -> bool {
        !matches!(self.kind, Kind::Paced { .. } | Kind::Idle { .. })
    }

    /// Whether the plane can carry it: what looks at requests carries no others, and our pair of Envoys speaks HTTP/1.1
    /// with its backends.
    pub fn suits(&self, plane: &Plane) -> bool {
        match self.kind {
            Kind::Web { .. } | Kind::Paced { .. } => true,
            Kind::Calls => *plane != Plane::Envoy,
            Kind::Stream { .. } | Kind::Idle { .. } => !plane.is_layer7(),
        }
    }

    /// The command line, as a person would type it in the client's pod, `culvert` being the path of that program.
    pub fn command(&self, culvert: &str, host: &str, time: Duration) -> (Vec<String>, Output) {
        let seconds = time.as_secs().max(1).to_string();
        let own = |protocol: &str, more: &[String]| -> Vec<String> {
            let words = [
                culvert,
                "bench",
                "client",
                "--output",
                "json",
                "--protocol",
                protocol,
                "--duration",
            ];
            let words = words.into_iter().map(str::to_owned);
            words
                .chain([format!("{seconds}s")])
                .chain(more.iter().cloned())
                .collect()
        };
        match self.kind {
            Kind::Web {
                connections,
                path,
                closes,
            } => {
                let threads = connections.min(2).to_string();
                let connections = connections.to_string();
                let mut words = vec!["wrk", "-t", &threads, "-c", &connections, "--latency"];
                if closes {
                    words.extend(["-H", "Connection: close"]);
                }
                let url = format!("http://{host}:{HTTP_PORT}{path}");
                words.extend(["-d", &seconds, &url]);
                (words.into_iter().map(str::to_owned).collect(), Output::Wrk)
            }
            Kind::Stream { streams, backwards } => {
                let (streams, port) = (streams.to_string(), STREAM_PORT.to_string());
                let mut words = vec!["iperf3", "-J", "-t", &seconds, "-P", &streams];
                words.extend(["-p", &port, "-c", host]);
                if backwards {
                    words.push("-R");
                }
                (
                    words.into_iter().map(str::to_owned).collect(),
                    Output::Iperf,
                )
            }
            Kind::Paced { rate, .. } => {
                let url = format!("http://{host}:{HTTP_PORT}/");
                let more = ["--rate", &rate.to_string(), "--connections", "64", &url];
                let more = more.map(str::to_owned);
                (own("http1", &more), Output::Own)
            }
            Kind::Calls => {
                let target = format!("{host}:{GRPC_PORT}");
                let more = ["-c", "8", "-m", "8", "--payload", "100", &target].map(str::to_owned);
                (own("grpc", &more), Output::Own)
            }
            Kind::Idle { connections } => {
                let target = format!("{host}:{TCP_PORT}");
                let connections = connections.to_string();
                let more = ["--warmup", "0s", "-c", &connections, &target].map(str::to_owned);
                (own("idle", &more), Output::Own)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LOADS, Load};
    use crate::bench::plane::Plane;

    fn load(name: &str) -> &'static Load {
        LOADS.iter().find(|load| load.name == name).unwrap()
    }

    #[test]
    fn commands_are_what_a_person_would_type() {
        for (name, line) in [
            (
                "keepalive c=64",
                "wrk -t 2 -c 64 --latency -d 4 http://10.0.0.2:8080/",
            ),
            (
                "keepalive c=1",
                "wrk -t 1 -c 1 --latency -d 4 http://10.0.0.2:8080/",
            ),
            (
                "new connections c=16",
                "wrk -t 2 -c 16 --latency -H Connection: close -d 4 http://10.0.0.2:8080/",
            ),
            ("one stream", "iperf3 -J -t 4 -P 1 -p 5201 -c 10.0.0.2"),
            (
                "8 streams back",
                "iperf3 -J -t 4 -P 8 -p 5201 -c 10.0.0.2 -R",
            ),
            (
                "latency at 500/s",
                "culvert bench client --output json --protocol http1 --duration 4s --rate 500 --connections 64 \
                 http://10.0.0.2:8080/",
            ),
            (
                "gRPC c=8 m=8",
                "culvert bench client --output json --protocol grpc --duration 4s -c 8 -m 8 --payload 100 \
                 10.0.0.2:9082",
            ),
        ] {
            let (words, _output) =
                load(name).command("culvert", "10.0.0.2", Duration::from_secs(4));
            assert_eq!(words.join(" "), line);
        }
    }

    #[test]
    fn loads_run_where_they_can_be_carried() {
        for (name, plane, suits) in [
            ("keepalive c=64", Plane::Envoy, true),
            ("gRPC c=8 m=8", Plane::Envoy, false),
            ("gRPC c=8 m=8", Plane::L7, true),
            ("one stream", Plane::L7, false),
            ("one stream", Plane::L4, true),
            ("10,000 idle connections", Plane::SameNode, true),
        ] {
            assert_eq!(load(name).suits(&plane), suits, "{name} on {plane}");
        }
    }

    #[test]
    fn names_are_their_own() {
        let mut names: Vec<&str> = LOADS.iter().map(|load| load.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), LOADS.len());
    }
}
