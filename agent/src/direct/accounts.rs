//! What direct connections come to, in the metrics and the access log, as if the proxy had carried them.
//!
//! The kernel tells each end of a connection once, when it is over, with its bytes; of those that are alive it is asked
//! from time to time. Where it had no room to tell, it has added up what it could not tell.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_ebpf::{
    EVENT_DENIED, EVENT_ENDED, FLOW_CLIENT, FLOW_REFUSED, FlowEntry, FlowEvent, LostEntry, LostKey,
};
use userspace_l7::direct::{self, Passage};
use userspace_l7::telemetry::{
    Acquaintance, Flow, Metrics, OpenFlow, Outcome, Reporter, ResponseFlags, Security,
};

use super::book::Book;
use super::metrics::DirectMetrics;
use crate::capture::Carried;

/// `TCP_SYN_SENT` (`include/net/tcp_states.h`).
const SYN_SENT: u16 = 2;
/// `errno`s with which applications end a connection that they are done with.
const ORDINARY: [i32; 3] = [0, 32, 104];

/// For how long it is known why a connection was ended: its last event is told much sooner.
const REASON_KEPT: Duration = Duration::from_secs(10);

/// Every account that is open, and what operators are told.
pub(super) struct Accounts {
    traffic: Arc<Metrics>,
    metrics: DirectMetrics,
    /// By the cookie of the socket.
    open: HashMap<u64, Account>,
    /// Ends that were gone when they were last looked for, and were not told yet.
    missed: HashSet<u64>,
    /// Why connections were ended, by client and server, and when.
    revoked: HashMap<(SocketAddr, SocketAddr), (String, Instant)>,
    /// What has been made up for.
    lost: HashMap<LostKey, LostEntry>,
    /// What was accounted for of connections whose end was not told, so that it is not counted twice.
    credit: HashMap<LostKey, LostEntry>,
    known: Acquaintances,
}

/// Whose connections have been seen, as long as the book stays as it is: applications connect to the same few others over
/// and over, and who those are takes longer to find out than the rest of an account.
#[derive(Default)]
struct Acquaintances {
    edition: u64,
    by_ends: HashMap<LostKey, Acquaintance>,
}

/// Pairs of ends that are known at once; beyond it they are found out anew.
const ACQUAINTANCES: usize = 4096;

impl Acquaintances {
    /// The ends of a connection.
    fn of<S: Clone>(
        &mut self,
        book: &Book<S>,
        traffic: &Metrics,
        entry: &FlowEntry,
    ) -> &Acquaintance {
        if self.edition != book.edition() || self.by_ends.len() >= ACQUAINTANCES {
            self.by_ends.clear();
            self.edition = book.edition();
        }
        let known = self.by_ends.entry(key(entry));
        known.or_insert_with(|| traffic.acquaint(describe(book, entry)))
    }
}

/// One end of a connection that has been seen alive.
struct Account {
    entry: FlowEntry,
    flow: OpenFlow,
    counted: Carried,
}

impl Account {
    fn carry(&mut self, now: Carried) {
        let sent = now.sent.saturating_sub(self.counted.sent);
        let received = now.received.saturating_sub(self.counted.received);
        count(&self.flow, self.entry.end, sent, received);
        self.counted.sent += sent;
        self.counted.received += received;
    }
}

fn count(flow: &OpenFlow, end: u16, sent: u64, received: u64) {
    let (to_server, to_client) = directions(end, sent, received);
    flow.to_server(to_server);
    flow.to_client(to_client);
}

/// Bytes to the server and to the client, as one end has sent and received them.
fn directions(end: u16, sent: u64, received: u64) -> (u64, u64) {
    if end == FLOW_CLIENT {
        (sent, received)
    } else {
        (received, sent)
    }
}

impl Accounts {
    /// `lost` is what could not be told before; an earlier agent may have made up for it.
    pub(super) fn new(
        traffic: Arc<Metrics>,
        metrics: DirectMetrics,
        lost: Vec<(LostKey, LostEntry)>,
    ) -> Self {
        Self {
            traffic,
            metrics,
            open: HashMap::new(),
            missed: HashSet::new(),
            revoked: HashMap::new(),
            lost: lost.into_iter().collect(),
            credit: HashMap::new(),
            known: Acquaintances::default(),
        }
    }

    /// Opens the account of one end of a connection.
    fn open<S: Clone>(&mut self, book: &Book<S>, entry: &FlowEntry) -> Account {
        let known = self.known.of(book, &self.traffic, entry);
        let flow = (self.traffic).open_known(known, (entry.client(), entry.server()));
        Account {
            entry: *entry,
            flow,
            counted: Carried::default(),
        }
    }

    /// Accounts for something that has happened.
    pub(super) fn take<S: Clone>(&mut self, book: &Book<S>, event: &FlowEvent) {
        match event.kind {
            EVENT_ENDED => self.end(book, event),
            EVENT_DENIED => self.deny(book, event),
            _ => {}
        }
    }

    fn end<S: Clone>(&mut self, book: &Book<S>, event: &FlowEvent) {
        let entry = &event.flow;
        if entry.end == FLOW_CLIENT {
            let _before = self.metrics.connections.inc();
        }
        self.missed.remove(&event.socket_cookie);
        let carried = Carried {
            sent: event.sent,
            received: event.received,
        };
        let error = io::Error::from_raw_os_error(i32::from(event.error));
        let revoked = self.reason(entry);
        if revoked.is_some() && entry.end == FLOW_CLIENT {
            let _before = self.metrics.revoked.inc();
        }
        let account = self.open.remove(&event.socket_cookie);
        if event.old_state == SYN_SENT && account.is_none() {
            return self.fail(entry, event.error, &error, revoked);
        }
        let mut account = account.unwrap_or_else(|| self.open(book, entry));
        account.carry(carried);
        let duration = Duration::from_nanos(event.at_ns.saturating_sub(entry.since_ns));
        let (flags, said): (_, &dyn fmt::Display) = match &revoked {
            Some(why) => (ResponseFlags::Deny, why),
            None => (ResponseFlags::None, &error),
        };
        let outcome = if revoked.is_none() && ORDINARY.contains(&i32::from(event.error)) {
            Outcome::Complete
        } else {
            Outcome::Failed { flags, error: said }
        };
        account.flow.close_after(duration, outcome);
    }

    /// Both ends of a connection ask for the reason, in either order; it is forgotten after a while.
    fn reason(&self, entry: &FlowEntry) -> Option<String> {
        let (why, _) = self.revoked.get(&(entry.client(), entry.server()))?;
        Some(why.clone())
    }

    /// A connection that never stood. There was an application to refuse it only where its own pod's kernel did.
    fn fail(&self, entry: &FlowEntry, number: u16, error: &io::Error, revoked: Option<String>) {
        if let Some(why) = revoked {
            return self.refuse_both(entry, ResponseFlags::Deny, &why);
        }
        // Given up by its own application.
        if number == 0 {
            return;
        }
        let to = entry.server();
        let said = format_args!("cannot connect to {to}: {error}");
        self.refuse_both(entry, ResponseFlags::Connect, &said);
    }

    fn refuse_both(&self, entry: &FlowEntry, flags: ResponseFlags, said: &dyn fmt::Display) {
        let (client, dialled, server) = (entry.client(), entry.dialled(), entry.server());
        self.traffic
            .refused(Reporter::Source, client, dialled, flags, said);
        self.traffic
            .refused(Reporter::Destination, client, server, flags, said);
    }

    fn deny<S: Clone>(&self, book: &Book<S>, event: &FlowEvent) {
        let _before = self.metrics.denied.inc();
        let to = event.flow.server();
        let client = book.member(event.flow.client_netns);
        let client = client.and_then(|member| member.workload.as_ref());
        let server = book.snapshot().workload_at(to.ip());
        let passage = client
            .zip(server)
            .map(|(client, server)| direct::passage(book.snapshot(), client, server, to));
        // The port is not chosen yet.
        let same_family = client.and_then(|client| {
            let mut addresses = client.addresses.iter();
            addresses.find(|address| address.is_ipv4() == to.is_ipv4())
        });
        let from = same_family.map_or_else(|| event.flow.client(), |address| (*address, 0).into());
        let entry = FlowEntry {
            client: from.ip().into(),
            ..event.flow
        };
        let mut said = "connection closed due to policy rejection".to_owned();
        // Nothing to name if the policy has gone meanwhile.
        if let Some(Passage::Denied(denial)) = passage {
            said = format!("{said}: {denial}");
        }
        self.refuse_both(&entry, ResponseFlags::Deny, &said);
    }

    /// Why a connection is being ended, for its last line.
    pub(super) fn revoke(&mut self, entry: &FlowEntry, why: &str) {
        let said = (why.to_owned(), Instant::now());
        self.revoked.insert((entry.client(), entry.server()), said);
    }

    /// Opens accounts of connections that stand, and settles those that are gone without a word.
    pub(super) fn look_through<S: Clone>(&mut self, book: &Book<S>, flows: &[(u64, FlowEntry)]) {
        let ends = |entry: &FlowEntry| (entry.client(), entry.server());
        let accepted: HashSet<_> = flows
            .iter()
            .filter(|(_, entry)| entry.end != FLOW_CLIENT)
            .map(|(_, entry)| ends(entry))
            .collect();
        for (cookie, entry) in flows {
            // Before the server's end there is nothing to be opened.
            if accepted.contains(&ends(entry)) && !self.open.contains_key(cookie) {
                let account = self.open(book, entry);
                self.open.insert(*cookie, account);
            }
        }
        let alive: HashSet<_> = flows.iter().map(|(cookie, _)| *cookie).collect();
        let gone: HashSet<_> = self
            .open
            .keys()
            .copied()
            .filter(|cookie| !alive.contains(cookie))
            .collect();
        // Its end may be on its way: only who is missed twice was not told of.
        for cookie in gone.intersection(&self.missed) {
            if let Some(account) = self.open.remove(cookie) {
                let credit = self.credit.entry(key(&account.entry)).or_default();
                credit.ended += 1;
                credit.sent += account.counted.sent;
                credit.received += account.counted.received;
                account.flow.close(Outcome::Complete);
            }
        }
        self.missed = gone;
        self.revoked
            .retain(|_, (_, since)| since.elapsed() < REASON_KEPT);
    }

    /// Counts what the kernel has added up since.
    pub(super) fn make_up_for<S: Clone>(
        &mut self,
        book: &Book<S>,
        lost: Vec<(LostKey, LostEntry)>,
    ) {
        for (key, now) in lost {
            let before = self.lost.insert(key, now).unwrap_or_default();
            let credit = self.credit.entry(key).or_default();
            let new = |now: u64, before: u64, credit: &mut u64| {
                let grown = now.saturating_sub(before);
                let paid = grown.min(*credit);
                *credit -= paid;
                grown - paid
            };
            let ended = new(now.ended, before.ended, &mut credit.ended);
            let sent = new(now.sent, before.sent, &mut credit.sent);
            let received = new(now.received, before.received, &mut credit.received);
            if key.end == FLOW_REFUSED {
                let _before = self.metrics.denied.inc_by(ended);
                continue;
            }
            if (ended, sent, received) == (0, 0, 0) {
                continue;
            }
            let entry = FlowEntry {
                client_netns: key.client_netns,
                server_netns: key.server_netns,
                since_ns: 0,
                client: culvert_ebpf::Address::UNSPECIFIED,
                server: culvert_ebpf::Address::UNSPECIFIED,
                dialled: key.dialled,
                client_port: 0,
                server_port: 0,
                dialled_port: key.dialled_port,
                end: key.end,
            };
            let (to_server, to_client) = directions(key.end, sent, received);
            let flow = describe(book, &entry);
            self.traffic
                .add_untold(&flow, ended, (to_server, to_client));
        }
        self.credit
            .retain(|_, credit| *credit != LostEntry::default());
    }

    /// Counts what the kernel has added up since, and gives what can be forgotten of it: what pods that nobody remembers have
    /// left, if nothing came to it since it was counted last.
    pub(super) fn settle_the_gone<S: Clone>(
        &mut self,
        book: &Book<S>,
        lost: Vec<(LostKey, LostEntry)>,
    ) -> Vec<LostKey> {
        let is_gone = |ends: &LostKey| book.member(ends.own_netns()).is_none();
        let settled = lost
            .iter()
            .filter(|(ends, now)| is_gone(ends) && self.lost.get(ends) == Some(now))
            .map(|(ends, _)| *ends)
            .collect();
        self.make_up_for(book, lost);
        // Their ends that were not told are in the sums by now, or never will be.
        self.credit.retain(|ends, _| !is_gone(ends));
        settled
    }

    /// Forgets a sum that the kernel has forgotten.
    pub(super) fn forget(&mut self, ends: &LostKey) {
        self.lost.remove(ends);
    }

    /// The network namespaces in which accounts are open.
    pub(super) fn pods(&self) -> BTreeSet<u64> {
        let entries = self.open.values().map(|account| &account.entry);
        entries.map(FlowEntry::own_netns).collect()
    }

    /// Counts what connections have carried so far.
    pub(super) fn carry(&mut self, carried: &HashMap<u64, Carried>) {
        for (cookie, account) in &mut self.open {
            if let Some(now) = carried.get(cookie) {
                account.carry(*now);
            }
        }
    }
}

fn key(entry: &FlowEntry) -> LostKey {
    LostKey {
        client_netns: entry.client_netns,
        server_netns: entry.server_netns,
        dialled: entry.dialled,
        dialled_port: entry.dialled_port,
        end: entry.end,
        pad: 0,
    }
}

/// One end of a connection, as metrics and log know connections.
fn describe<S: Clone>(book: &Book<S>, entry: &FlowEntry) -> Flow {
    let workload = |netns| {
        let member = book.member(netns)?;
        member.workload.clone()
    };
    let (source, destination) = (workload(entry.client_netns), workload(entry.server_netns));
    let identity = |workload: &Option<Arc<userspace_l7::model::Workload>>| {
        workload.as_ref().map(|workload| workload.identity())
    };
    Flow {
        reporter: if entry.end == FLOW_CLIENT {
            Reporter::Source
        } else {
            Reporter::Destination
        },
        source_identity: identity(&source),
        destination_identity: identity(&destination),
        service: book.service_of(entry).map(Arc::clone),
        source,
        destination,
        source_address: entry.client(),
        destination_address: entry.server(),
        hbone_target: None,
        security: Security::Kernel,
    }
}
