//! What to answer: a pure function of the snapshot, the client and the query.

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use userspace_l7::model::{Health, HealthPolicy, IpFamilies, Service, Snapshot, Workload};

use super::names::{Candidate, candidates, wildcards};

/// As ztunnel: short enough to follow changes, long enough to save queries.
const TTL_SECONDS: u32 = 30;

/// The largest datagram that we ask others to send us: the DNS Flag Day 2020 size, which crosses networks
/// unfragmented.
const EDNS_PAYLOAD: u16 = 1232;

/// Addresses in one answer: so many fit into a message over TCP, whatever the family.
const MAX_ADDRESSES: usize = 1000;

/// Names that may stand for one another in a row.
const MAX_ALIASES: usize = 8;

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The mesh knows: this is the reply.
    Local(Box<Message>),
    /// The mesh does not know: the resolver that the pod meant is to be asked, in the pod's own words.
    Forward,
    /// The mesh knows that the name stands for another that it does not know: the resolver is to be asked
    /// for `name`, and its answer goes behind these records.
    Follow {
        /// The reply so far.
        reply: Box<Message>,
        /// The name to ask for.
        name: Name,
    },
}

/// Answers queries for addresses of mesh hosts. `shuffle` decides the order of addresses.
pub fn resolve(
    snapshot: &Snapshot,
    client: &Workload,
    query: &Message,
    shuffle: &mut dyn FnMut(&mut [IpAddr]),
) -> Answer {
    let Some((question, family)) = address_question(query) else {
        return Answer::Forward;
    };
    let Some(found) = find(snapshot, client, question.name()) else {
        return Answer::Forward;
    };

    let mut reply = reply_to(query, question);
    let mut owner = question.name().clone();
    if let Some(meant) = found.meant {
        reply.add_answer(alias(owner, meant.clone()));
        owner = meant;
    }
    let mut service = found.service;
    for _ in 0..MAX_ALIASES {
        let Some(target) = &service.alias else {
            return addresses(snapshot, service, family, (reply, owner), shuffle);
        };
        let Some(name) = host_name(target) else {
            return Answer::Forward;
        };
        reply.add_answer(alias(owner, name.clone()));
        // The name is written in full, so it is looked up as it stands.
        let Some(next) = snapshot.service_named(target, &client.namespace) else {
            return Answer::Follow {
                reply: Box::new(reply),
                name,
            };
        };
        owner = name;
        service = next;
    }
    // A circle: the pod's resolver would not end it either.
    Answer::Local(Box::new(reply))
}

/// The question, if it is one for addresses and the only one.
fn address_question(query: &Message) -> Option<(&Query, RecordType)> {
    let [question] = query.queries.as_slice() else {
        return None;
    };
    let plain = query.metadata.message_type == MessageType::Query
        && query.metadata.op_code == OpCode::Query
        && question.query_class() == DNSClass::IN
        // A newer EDNS has to be refused (RFC 6891 §6.1.3): the resolver does that.
        && query.edns.as_ref().is_none_or(|edns| edns.version() == 0);
    let family = question.query_type();
    (plain && matches!(family, RecordType::A | RecordType::AAAA)).then_some((question, family))
}

struct Found<'a> {
    service: &'a Arc<Service>,
    /// The name without the search domain, if there was one.
    meant: Option<Name>,
}

/// The service that a host's name means to clients of a namespace, of those that count, whether or not DNS would answer for
/// it.
pub fn service_called<'a>(
    snapshot: &'a Snapshot,
    host: &str,
    namespace: &str,
    counts: &dyn Fn(&Service) -> bool,
) -> Option<&'a Arc<Service>> {
    let host = host.to_ascii_lowercase();
    let host = host.trim_end_matches('.');
    read(snapshot, host, namespace, counts).map(|(_, service)| service)
}

/// The first reading of a name that names a service. `text` is lower case without the last dot.
fn read<'a>(
    snapshot: &'a Snapshot,
    text: &str,
    namespace: &str,
    counts: &dyn Fn(&Service) -> bool,
) -> Option<(Candidate, &'a Arc<Service>)> {
    let readings = candidates(text, namespace, &snapshot.mesh.cluster_domain);
    let named = |host: &str| {
        let found = snapshot.service_named(host, namespace);
        found.filter(|service| counts(service))
    };
    readings.into_iter().find_map(|reading| {
        let exact = named(&reading.host);
        let service = exact.or_else(|| wildcards(&reading.host).find_map(|host| named(&host)))?;
        Some((reading, service))
    })
}

fn find<'a>(snapshot: &'a Snapshot, client: &Workload, name: &Name) -> Option<Found<'a>> {
    let text = name.to_lowercase().to_ascii();
    let text = text.trim_end_matches('.');
    // Escaped bytes stand in no host's name.
    if text.is_empty() || text.contains('\\') {
        return None;
    }
    let (reading, service) = read(snapshot, text, &client.namespace, &|_every| true)?;
    if !answers(snapshot, service) {
        return None;
    }
    let meant = match reading.stripped_to {
        Some(labels) => {
            let mut name = Name::from_labels(name.iter().take(labels)).ok()?;
            name.set_fqdn(true);
            Some(name)
        }
        None => None,
    };
    Some(Found { service, meant })
}

/// A ServiceEntry without an address of its own only describes a host that others resolve.
fn answers(snapshot: &Snapshot, service: &Service) -> bool {
    let of_cluster = service
        .key
        .hostname
        .strip_suffix(&*snapshot.mesh.cluster_domain)
        .is_some_and(|rest| rest.ends_with('.'));
    of_cluster || !service.vips.is_empty() || service.alias.is_some()
}

fn reply_to(query: &Message, question: &Query) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata = Metadata::response_from_request(&query.metadata);
    reply.metadata.authoritative = true;
    // The proxy is where the pod sends recursive queries, and it answers them.
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD);
        reply.set_edns(edns);
    }
    reply
}

fn addresses(
    snapshot: &Snapshot,
    service: &Service,
    family: RecordType,
    (mut reply, owner): (Message, Name),
    shuffle: &mut dyn FnMut(&mut [IpAddr]),
) -> Answer {
    let wanted = |address: &IpAddr| match service.ip_families {
        IpFamilies::Ipv4Only if address.is_ipv6() => false,
        IpFamilies::Ipv6Only if address.is_ipv4() => false,
        _ => address.is_ipv4() == (family == RecordType::A),
    };
    let mut found: Vec<IpAddr> = if service.vips.is_empty() {
        headless(snapshot, service).filter(wanted).collect()
    } else {
        service.vips.iter().copied().filter(wanted).collect()
    };
    found.sort_unstable();
    found.dedup();
    shuffle(&mut found);
    found.truncate(MAX_ADDRESSES);
    for address in found {
        let data = match address {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        reply.add_answer(Record::from_rdata(owner.clone(), TTL_SECONDS, data));
    }
    Answer::Local(Box::new(reply))
}

/// Addresses of the endpoints that take part, on our own network.
fn headless<'a>(snapshot: &'a Snapshot, service: &'a Service) -> impl Iterator<Item = IpAddr> + 'a {
    let all = service.load_balancer.health == HealthPolicy::AllowAll;
    let endpoints = snapshot.endpoints_of(&service.key).iter();
    let taking_part = endpoints.filter(move |endpoint| all || endpoint.health == Health::Healthy);
    let workloads = taking_part.filter_map(|endpoint| snapshot.workloads.get(&endpoint.workload));
    let near = workloads.filter(|workload| workload.network == snapshot.mesh.network);
    near.flat_map(|workload| workload.addresses.iter().copied())
}

fn alias(from: Name, to: Name) -> Record {
    Record::from_rdata(from, TTL_SECONDS, RData::CNAME(CNAME(to)))
}

fn host_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}
