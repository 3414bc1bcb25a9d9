//! Ready-made sockets in a pod's network namespace, for the proxy's own connections.
//!
//! A socket belongs to the namespace of the thread that made it, and worker threads never change
//! theirs. So sockets are made ahead, in batches, on a thread inside the pod; a connection takes one
//! from stock and costs no namespace change. Each is noted as the agent's own before it can connect.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use culvert_ebpf::{Address, FlowEntry, SOCKET_LEG, SOCKET_OWN, SocketNote};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt::Mark};

use super::{
    answers::{Answer, Answers},
    control,
    maps::Maps,
    netns::Netns,
    routing::Family,
    sock_diag::{self, Carried},
};

/// Sockets made at once: enough that entering the namespace (some 50 microseconds with its threads)
/// disappears beside the connections themselves, few enough to keep for every idle pod.
const BATCH: usize = 32;
/// The same for queries of the DNS proxy's.
const DATAGRAM_BATCH: usize = 8;
/// Made at once for a pod that used a batch up within [`SOON`]: each batch costs two threads, which at
/// thousands of connections a second is felt.
const LARGE_BATCH: usize = 128;
/// See [`LARGE_BATCH`].
const SOON: Duration = Duration::from_millis(100);
/// At this part of a batch the next one is made in the background.
const LOW_STOCK_PART: usize = 4;

/// The sockets of one pod. Shared by all workers.
#[derive(Debug)]
pub(crate) struct Sockets {
    netns: Arc<Netns>,
    maps: Arc<Maps>,
    answers: Answers,
    /// What rules in the pod know sockets by that they leave alone; `None` where there are none.
    mark: Option<u32>,
    tcp_v4: Stock,
    tcp_v6: Stock,
    udp_v4: Stock,
    udp_v6: Stock,
    this: Weak<Self>,
}

#[derive(Debug, Default)]
struct Stock {
    shelf: Mutex<Shelf>,
    refilling: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp(Family),
    Udp(Family),
}

impl Kind {
    fn batch(self) -> usize {
        match self {
            Self::Tcp(_) => BATCH,
            Self::Udp(_) => DATAGRAM_BATCH,
        }
    }

    fn open(self) -> io::Result<OwnedFd> {
        let (family, kind) = match self {
            Self::Tcp(family) => (family, SockType::Stream),
            Self::Udp(family) => (family, SockType::Datagram),
        };
        let family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(socket(family, kind, flags, None)?)
    }
}

/// What is in stock, and when it was filled last.
#[derive(Debug, Default)]
struct Shelf {
    sockets: Vec<OwnedFd>,
    filled: Option<Instant>,
    batch: usize,
}

impl Sockets {
    pub(super) fn new(
        netns: Arc<Netns>,
        maps: Arc<Maps>,
        answers: Answers,
        mark: Option<u32>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            netns,
            maps,
            answers,
            mark,
            tcp_v4: Stock::default(),
            tcp_v6: Stock::default(),
            udp_v4: Stock::default(),
            udp_v6: Stock::default(),
            this: Weak::clone(this),
        })
    }

    /// An unconnected TCP socket in the pod that capture leaves alone.
    ///
    /// # Errors
    ///
    /// When the stock is empty and no socket can be made in the pod.
    pub(crate) fn outbound(&self, family: Family) -> io::Result<OwnedFd> {
        self.unconnected(Kind::Tcp(family))
    }

    /// An unconnected TCP socket in the pod, for a connection from one of the pod's addresses to the
    /// same address: the application that accepts it sees `client` as its peer.
    ///
    /// # Errors
    ///
    /// As [`outbound`](Self::outbound).
    pub(crate) fn leg(&self, family: Family, client: SocketAddr) -> io::Result<OwnedFd> {
        let socket = self.outbound(family)?;
        if self.mark.is_some() {
            // It never leaves the pod, which is how the rules know it. With the mark, they would route each of its packets anew.
            setsockopt(&socket, Mark, &0)?;
        }
        let note = SocketNote {
            role: SOCKET_LEG,
            port: u32::from(client.port()),
            address: client.ip().into(),
            netns_cookie: self.netns.cookie(),
        };
        self.maps.set_note(&socket, &note)?;
        Ok(socket)
    }

    /// Answers a connection of the pod's that is held back: from `source` to `destination`, opened by a SYN
    /// with this TCP header.
    ///
    /// # Errors
    ///
    /// The kernel's. The client then sends its SYN again.
    pub(crate) fn answer(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        tcp_header: &[u8],
        answer: Answer,
    ) -> io::Result<()> {
        self.answers.send((source, destination), tcp_header, answer)
    }

    /// Has connections to a destination held again that was relied on to answer.
    ///
    /// # Errors
    ///
    /// When the map cannot be written. The destination is relied on for another second at most.
    pub(crate) fn hold_again(&self, destination: SocketAddr) -> io::Result<()> {
        self.maps.hold_again(self.netns.cookie(), destination)
    }

    /// Has a connection that is held back go straight to the pod in the network namespace `server`, whose address its
    /// destination is: announces it there. False if the application has given it up. Its SYN is sent by
    /// [`send_straight`](Self::send_straight).
    ///
    /// # Errors
    ///
    /// When the maps cannot be written.
    pub(crate) fn announce(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        server: u64,
    ) -> io::Result<bool> {
        self.maps.announce(
            (self.netns.cookie(), server),
            (source, destination),
            control::monotonic_ns()?,
        )
    }

    /// Sends the SYN of an announced connection.
    ///
    /// # Errors
    ///
    /// The kernel's. The client then sends its SYN again.
    pub(crate) fn send_straight(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        tcp_header: &[u8],
    ) -> io::Result<()> {
        self.answers
            .send_straight((source, destination), tcp_header)
    }

    /// Ends direct connections of the pod's, at its end; returns how many.
    ///
    /// # Errors
    ///
    /// When the pod cannot be entered or the kernel refuses.
    pub(crate) fn end_flows(&self, flows: &[(u64, FlowEntry)]) -> io::Result<usize> {
        self.netns.run(|| sock_diag::destroy_flows(flows))?
    }

    /// What the pod's TCP connections have carried so far, by the cookies of their sockets.
    ///
    /// # Errors
    ///
    /// As [`end_flows`](Self::end_flows).
    pub(crate) fn carried(&self) -> io::Result<HashMap<u64, Carried>> {
        self.netns.run(sock_diag::carried)?
    }

    /// The cookie of the pod's network namespace.
    pub(crate) fn netns_cookie(&self) -> u64 {
        self.netns.cookie()
    }

    /// A UDP socket in the pod that capture leaves alone, for the DNS proxy's own queries.
    ///
    /// # Errors
    ///
    /// As [`outbound`](Self::outbound).
    pub(crate) fn datagram(&self, family: Family) -> io::Result<OwnedFd> {
        self.unconnected(Kind::Udp(family))
    }

    /// The resolver that a DNS client of the pod meant, given the source address of its query at the
    /// DNS proxy. `None` if capture does not know: the client is to be served from the pod's usual
    /// resolver.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub(crate) fn original_resolver(&self, source: SocketAddr) -> io::Result<Option<SocketAddr>> {
        self.maps.resolver(self.netns.cookie(), source)
    }

    fn unconnected(&self, kind: Kind) -> io::Result<OwnedFd> {
        if let Some(socket) = self.take(kind) {
            return Ok(socket);
        }
        let mut batch = self.make(kind, kind.batch())?;
        let socket = batch
            .pop()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.stock(kind).lock().put(batch);
        Ok(socket)
    }

    fn take(&self, kind: Kind) -> Option<OwnedFd> {
        let (socket, wanted) = {
            let mut stock = self.stock(kind).lock();
            let wanted = stock.wants(Instant::now(), kind.batch());
            (stock.sockets.pop(), wanted)
        };
        if let Some(count) = wanted.filter(|_| socket.is_some()) {
            self.refill(kind, count);
        }
        socket
    }

    /// Makes a batch in the background, unless one is being made. If that fails, nothing is lost: the
    /// connection that finds the stock empty tries for itself and reports the error.
    fn refill(&self, kind: Kind, count: usize) {
        if self.stock(kind).refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let work = move || {
            if let Ok(batch) = this.make(kind, count) {
                this.stock(kind).lock().put(batch);
            }
            this.stock(kind).refilling.store(false, Ordering::Release);
        };
        if thread::Builder::new()
            .name("sockets".to_owned())
            .spawn(work)
            .is_err()
        {
            self.stock(kind).refilling.store(false, Ordering::Release);
        }
    }

    fn make(&self, kind: Kind, count: usize) -> io::Result<Vec<OwnedFd>> {
        let batch = self.netns.run(|| {
            (0..count)
                .map(|_| kind.open())
                .collect::<io::Result<Vec<_>>>()
        })??;
        for socket in &batch {
            self.maps.set_note(socket, &own_note())?;
            if let Some(mark) = self.mark {
                setsockopt(socket, Mark, &mark)?;
            }
        }
        Ok(batch)
    }

    fn stock(&self, kind: Kind) -> &Stock {
        match kind {
            Kind::Tcp(Family::V4) => &self.tcp_v4,
            Kind::Tcp(Family::V6) => &self.tcp_v6,
            Kind::Udp(Family::V4) => &self.udp_v4,
            Kind::Udp(Family::V6) => &self.udp_v6,
        }
    }
}

impl Stock {
    /// Nothing panics while holding the lock, and the stock would be whole even so.
    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn put(&mut self, batch: Vec<OwnedFd>) {
        self.batch = batch.len();
        self.filled = Some(Instant::now());
        self.sockets.extend(batch);
    }

    /// How many sockets should be made now, if any: usually `batch`.
    fn wants(&self, now: Instant, batch: usize) -> Option<usize> {
        let is_low = self.sockets.len() <= self.batch / LOW_STOCK_PART;
        let soon = |filled| now.duration_since(filled) < SOON;
        let count = if self.filled.is_some_and(soon) {
            LARGE_BATCH
        } else {
            batch
        };
        is_low.then_some(count)
    }
}

/// The note of a socket that is the agent's.
pub(super) fn own_note() -> SocketNote {
    SocketNote {
        role: SOCKET_OWN,
        port: 0,
        address: Address::UNSPECIFIED,
        netns_cookie: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use super::{BATCH, LARGE_BATCH, SOON, Shelf};

    #[test]
    fn a_pod_in_a_hurry_gets_more_sockets_at_once() {
        let batch = |count| -> Vec<OwnedFd> {
            let any = || File::open("/dev/null").unwrap().into();
            std::iter::repeat_with(any).take(count).collect()
        };
        let mut shelf = Shelf::default();
        shelf.put(batch(BATCH));
        let filled = shelf.filled.unwrap();
        shelf.sockets.truncate(BATCH / 4 + 1);
        assert_eq!(shelf.wants(filled, BATCH), None, "there is enough");
        shelf.sockets.pop();
        assert_eq!(shelf.wants(filled + SOON, BATCH), Some(BATCH));
        assert_eq!(shelf.wants(filled + SOON / 2, BATCH), Some(LARGE_BATCH));
        shelf.put(batch(LARGE_BATCH));
        shelf.sockets.truncate(LARGE_BATCH / 4);
        assert_eq!(
            shelf.wants(shelf.filled.unwrap() + SOON, BATCH),
            Some(BATCH),
            "the hurry is over"
        );
    }
}
