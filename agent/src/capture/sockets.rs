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
};

use culvert_ebpf::{Address, FlowEntry, SOCKET_LEG, SOCKET_OWN, SocketNote};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{
    answers::{Answer, Answers},
    control,
    maps::Maps,
    netns::Netns,
    routing::Family,
    sock_diag::{self, Carried},
};

/// Sockets made at once: enough that entering the namespace (some 50 microseconds with the thread)
/// disappears beside the connections themselves, few enough to keep for every idle pod.
const BATCH: usize = 32;
/// At this stock the next batch is made in the background.
const LOW_STOCK: usize = 8;

/// The sockets of one pod. Shared by all workers.
#[derive(Debug)]
pub(crate) struct Sockets {
    netns: Arc<Netns>,
    maps: Arc<Maps>,
    answers: Answers,
    v4: Stock,
    v6: Stock,
    this: Weak<Self>,
}

#[derive(Debug, Default)]
struct Stock {
    sockets: Mutex<Vec<OwnedFd>>,
    refilling: AtomicBool,
}

impl Sockets {
    pub(super) fn new(netns: Arc<Netns>, maps: Arc<Maps>, answers: Answers) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            netns,
            maps,
            answers,
            v4: Stock::default(),
            v6: Stock::default(),
            this: Weak::clone(this),
        })
    }

    /// An unconnected TCP socket in the pod that capture leaves alone.
    ///
    /// # Errors
    ///
    /// When the stock is empty and no socket can be made in the pod.
    pub(crate) fn outbound(&self, family: Family) -> io::Result<OwnedFd> {
        if let Some(socket) = self.take(family) {
            return Ok(socket);
        }
        let mut batch = self.make(family)?;
        let socket = batch
            .pop()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.stock(family).lock().append(&mut batch);
        Ok(socket)
    }

    /// An unconnected TCP socket in the pod, for a connection from one of the pod's addresses to the
    /// same address: the application that accepts it sees `client` as its peer.
    ///
    /// # Errors
    ///
    /// As [`outbound`](Self::outbound).
    pub(crate) fn leg(&self, family: Family, client: SocketAddr) -> io::Result<OwnedFd> {
        let socket = self.outbound(family)?;
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
        let sender = self.answers.sender(destination)?;
        self.maps.announce(
            (self.netns.cookie(), server),
            (source, destination),
            (sender, control::monotonic_ns()?),
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
    /// When no socket can be made in the pod.
    pub(crate) fn datagram(&self, family: Family) -> io::Result<OwnedFd> {
        let socket = self.netns.run(|| open(family, SockType::Datagram))??;
        self.maps.set_note(&socket, &own_note())?;
        Ok(socket)
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

    fn take(&self, family: Family) -> Option<OwnedFd> {
        let stock = self.stock(family);
        let (socket, left) = {
            let mut sockets = stock.lock();
            (sockets.pop(), sockets.len())
        };
        if socket.is_some() && left <= LOW_STOCK {
            self.refill(family);
        }
        socket
    }

    /// Makes a batch in the background, unless one is being made. If that fails, nothing is lost: the
    /// connection that finds the stock empty tries for itself and reports the error.
    fn refill(&self, family: Family) {
        if self.stock(family).refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let work = move || {
            if let Ok(mut batch) = this.make(family) {
                this.stock(family).lock().append(&mut batch);
            }
            this.stock(family).refilling.store(false, Ordering::Release);
        };
        if thread::Builder::new()
            .name("sockets".to_owned())
            .spawn(work)
            .is_err()
        {
            self.stock(family).refilling.store(false, Ordering::Release);
        }
    }

    fn make(&self, family: Family) -> io::Result<Vec<OwnedFd>> {
        let batch = self.netns.run(|| {
            (0..BATCH)
                .map(|_| open(family, SockType::Stream))
                .collect::<io::Result<Vec<_>>>()
        })??;
        for socket in &batch {
            self.maps.set_note(socket, &own_note())?;
        }
        Ok(batch)
    }

    fn stock(&self, family: Family) -> &Stock {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Stock {
    /// Nothing panics while holding the lock, and the stock would be whole even so.
    fn lock(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
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

fn open(family: Family, kind: SockType) -> io::Result<OwnedFd> {
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, kind, flags, None)?)
}
