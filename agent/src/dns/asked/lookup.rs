//! Asking the node's resolvers for both families' addresses of a name.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{self, RData, RecordType};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::time::timeout;
use tracing::debug;
use userspace_l7::names::NoAddress;
use userspace_l7::route::named::Name;

use super::Answer;
use crate::dns::{PodNetwork, Transport, upstream};

/// Resolvers that are asked, as a system's own library does (MAXNS of resolv.conf(5)).
const MAX_RESOLVERS: usize = 3;
/// How often each of them is.
const ROUNDS: usize = 2;
/// How long each has, every time: a datagram may be lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bounds of how long an answer holds, whatever its zone says: a client that asks all the time makes no more than one
/// question a second, and what has moved is found within the hour.
const HOLDS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60 * 60)];
/// How long a name is known not to exist. Its zone says, too, but a new host shall not have to wait for that.
const NONEXISTENT: Duration = Duration::from_secs(5);
/// How long nobody is asked again that has not answered.
const UNANSWERED: Duration = Duration::from_secs(1);

/// Aliases in a row that are followed.
const MAX_ALIASES: usize = 8;
/// Addresses of a name that are kept.
const MAX_ADDRESSES: usize = 32;
/// The largest datagram that we ask others to send us (DNS Flag Day 2020).
const EDNS_PAYLOAD: u16 = 1232;

/// What a name leads to, and for how long.
#[derive(Debug, PartialEq)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    pub(super) holds: Duration,
}

/// Looks a name up, with the resolvers that the system's file names.
pub(super) async fn look_up(resolvers: &Path, name: &Name) -> Answered {
    // Read each time: it is small, and may change while the agent runs.
    let text = fs::read_to_string(resolvers).unwrap_or_else(|error| {
        debug!(file = %resolvers.display(), %error, "cannot read which resolvers to ask");
        String::new()
    });
    let resolvers = nameservers(&text);
    let (v4, v6) = tokio::join!(
        ask(&resolvers, name, RecordType::A),
        ask(&resolvers, name, RecordType::AAAA),
    );
    join(v4, v6)
}

/// Addresses of one family, and for how many seconds they hold.
type Family = Result<(Vec<IpAddr>, u32), NoAddress>;

/// What both families come to. One that has addresses outweighs another that nobody tells of.
fn join(v4: Family, v6: Family) -> Answered {
    let is_silent = [&v4, &v6]
        .iter()
        .any(|one| **one == Err(NoAddress::Unanswered));
    let mut found = Vec::new();
    let mut seconds = u32::MAX;
    for (addresses, holds) in [v4, v6].into_iter().flatten() {
        if !addresses.is_empty() {
            seconds = seconds.min(holds);
        }
        found.extend(addresses);
    }
    let (answer, holds) = if !found.is_empty() {
        let [least, most] = HOLDS;
        let holds = Duration::from_secs(seconds.into()).clamp(least, most);
        (Ok(found.into()), holds)
    } else if is_silent {
        (Err(NoAddress::Unanswered), UNANSWERED)
    } else {
        (Err(NoAddress::Nonexistent), NONEXISTENT)
    };
    Answered { answer, holds }
}

/// The resolvers of a resolv.conf(5), in its order; the one on this machine, if it names none.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let _keyword = words.next().filter(|word| *word == "nameserver")?;
        words.next()?.parse::<IpAddr>().ok()
    });
    let mut found: Vec<_> = named
        .take(MAX_RESOLVERS)
        .map(|address| SocketAddr::new(address, upstream::PORT))
        .collect();
    if found.is_empty() {
        found.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), upstream::PORT));
    }
    found
}

/// Asks one resolver after the other, until one says something of use.
async fn ask(resolvers: &[SocketAddr], name: &Name, family: RecordType) -> Family {
    let Some((asked, query)) = query(name, family) else {
        return Err(NoAddress::Nonexistent);
    };
    for _ in 0..ROUNDS {
        for resolver in resolvers {
            let exchanged = timeout(PATIENCE, exchange(*resolver, &query)).await;
            let Ok(Some(reply)) = exchanged else {
                debug!(%name, %resolver, "a resolver does not answer");
                continue;
            };
            match reply.metadata.response_code {
                ResponseCode::NoError => return Ok(addresses(&reply, asked, family)),
                ResponseCode::NXDomain => return Err(NoAddress::Nonexistent),
                code => debug!(%name, %resolver, %code, "a resolver cannot answer"),
            }
        }
    }
    Err(NoAddress::Unanswered)
}

/// A recursive question, and the name in its form for the wire.
fn query(name: &Name, family: RecordType) -> Option<(rr::Name, Vec<u8>)> {
    let mut asked = rr::Name::from_ascii(name.as_str()).ok()?;
    asked.set_fqdn(true);
    // Whoever sends it gives it a number of its own.
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(asked.clone(), family));
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_PAYLOAD);
    message.set_edns(edns);
    Some((asked, message.to_vec().ok()?))
}

/// Over TCP where the answer does not fit into a datagram (RFC 7766 §5).
async fn exchange(resolver: SocketAddr, query: &[u8]) -> Option<Message> {
    for transport in [Transport::Udp, Transport::Tcp] {
        let reply = upstream::exchange(&Node(resolver), transport, resolver, query).await;
        let reply = match reply {
            Ok(reply) => Message::from_vec(&reply).ok()?,
            Err(error) => {
                debug!(%error, "a question is lost");
                return None;
            }
        };
        if !reply.metadata.truncation {
            return Some(reply);
        }
    }
    None
}

/// The addresses of one family that an answer has for a name, or for the one that it stands for.
fn addresses(reply: &Message, mut name: rr::Name, family: RecordType) -> (Vec<IpAddr>, u32) {
    let mut holds = u32::MAX;
    for _ in 0..MAX_ALIASES {
        let alias = reply.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == name => Some((target.0.clone(), record.ttl)),
            _ => None,
        });
        let Some((target, ttl)) = alias else { break };
        (name, holds) = (target, holds.min(ttl));
    }
    let mut found = Vec::new();
    for record in reply.answers.iter().filter(|record| record.name == name) {
        let address = match (&record.data, family) {
            (RData::A(v4), RecordType::A) => IpAddr::V4(v4.0),
            (RData::AAAA(v6), RecordType::AAAA) => IpAddr::V6(v6.0),
            _ => continue,
        };
        if found.len() < MAX_ADDRESSES && !found.contains(&address) {
            found.push(address);
            holds = holds.min(record.ttl);
        }
    }
    (found, holds)
}

/// The node's own network, as far as a question needs it.
struct Node(SocketAddr);

impl PodNetwork for Node {
    fn resolver(&self, _transport: Transport, _client: SocketAddr) -> Option<SocketAddr> {
        Some(self.0)
    }

    fn socket(&self, transport: Transport, resolver: SocketAddr) -> io::Result<OwnedFd> {
        let family = if resolver.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let kind = match transport {
            Transport::Udp => SockType::Datagram,
            Transport::Tcp => SockType::Stream,
        };
        Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use hickory_proto::op::{Message, MessageType, OpCode};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use userspace_l7::names::NoAddress;

    use super::{Answered, Family, addresses, join, nameservers};

    #[test]
    fn resolvers_are_read_as_the_system_reads_them() {
        let read = |text: &str| {
            let found = nameservers(text).into_iter();
            found.map(|one| one.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            read(
                "# nameserver 192.0.2.9\nsearch a\n nameserver 192.0.2.1 # ours\nnameserver\t2001:db8::1\nnameserver x\n"
            ),
            ["192.0.2.1:53", "[2001:db8::1]:53"]
        );
        assert_eq!(read(&"nameserver 192.0.2.1\n".repeat(5)).len(), 3);
        assert_eq!(read("nameservers 192.0.2.1"), ["127.0.0.1:53"]);
    }

    #[expect(clippy::unnecessary_wraps, reason = "what a family is told as")]
    fn found(addresses: &[&str], holds: u32) -> Family {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        Ok((addresses.collect(), holds))
    }

    #[track_caller]
    fn check(families: [Family; 2], expected: Result<&[&str], NoAddress>, seconds: u64) {
        let [v4, v6] = families;
        let read = |text: &&str| text.parse::<IpAddr>().unwrap();
        let expected = Answered {
            answer: expected.map(|all| all.iter().map(read).collect()),
            holds: Duration::from_secs(seconds),
        };
        assert_eq!(join(v4, v6), expected);
    }

    #[test]
    fn answers_hold_for_their_time_within_bounds() {
        let none = || found(&[], u32::MAX);
        let both: &[&str] = &["192.0.2.1", "2001:db8::1"];
        check([found(&both[..1], 60), found(&both[1..], 30)], Ok(both), 30);
        check([found(&both[..1], 60), none()], Ok(&both[..1]), 60);
        check([none(), found(&both[1..], 0)], Ok(&both[1..]), 1);
        check([found(&both[..1], 86_400), none()], Ok(&both[..1]), 3600);
        // Some resolvers fail at what they do not know.
        let silent = || Err(NoAddress::Unanswered);
        check([found(&both[..1], 60), silent()], Ok(&both[..1]), 60);
        check([silent(), none()], Err(NoAddress::Unanswered), 1);
        let nobody = || Err(NoAddress::Nonexistent);
        check([nobody(), nobody()], Err(NoAddress::Nonexistent), 5);
        check([none(), none()], Err(NoAddress::Nonexistent), 5);
    }

    fn record(name: &str, ttl: u32, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
    }

    #[test]
    fn aliases_are_followed_and_others_records_are_not_taken() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let a = |last: u8| RData::A(A::new(192, 0, 2, last));
        let mut reply = Message::new(1, MessageType::Response, OpCode::Query);
        reply.add_answers([
            record("a.example.", 50, RData::CNAME(CNAME(name("b.example.")))),
            record("B.example.", 20, RData::CNAME(CNAME(name("c.example.")))),
            record("c.example.", 70, a(1)),
            record("c.example.", 60, a(2)),
            record("c.example.", 60, a(2)),
            record(
                "c.example.",
                5,
                RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            ),
            record("other.example.", 1, a(9)),
        ]);
        let read = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(
            addresses(&reply, name("a.example."), RecordType::A),
            (read(&["192.0.2.1", "192.0.2.2"]), 20)
        );
        assert_eq!(
            addresses(&reply, name("a.example."), RecordType::AAAA),
            (read(&["2001:db8::1"]), 5)
        );
        assert_eq!(
            addresses(&reply, name("d.example."), RecordType::A),
            (vec![], u32::MAX)
        );
        // A circle has no end, and no address.
        let mut circle = Message::new(1, MessageType::Response, OpCode::Query);
        let itself = RData::CNAME(CNAME(name("a.example.")));
        circle.add_answers([record("a.example.", 50, itself)]);
        let (none, _) = addresses(&circle, name("a.example."), RecordType::A);
        assert!(none.is_empty());
    }
}
