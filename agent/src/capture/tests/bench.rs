//! The test bench: one "node" with two "pods" on a bridge, and an agent that answers who called whom.

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{
        Capture, CaptureError, Enrolled, Openings, Pod, Rules, Settings, WorkerListeners,
        maps::Slot, netns::Netns,
    },
    clerk::Clerk,
};

/// The bound on every wait in these tests.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

static BENCHES: AtomicU32 = AtomicU32::new(0);

/// A simulated pod: a network namespace with one device on the bench's bridge.
pub(super) struct TestPod {
    pub(super) name: String,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    pub(super) netns: Netns,
}

impl TestPod {
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub(super) fn spec(&self) -> Pod {
        Pod {
            uid: self.name.clone(),
            netns: self.path(),
            addresses: vec![self.v4.into(), self.v6.into()],
            dns: false,
            inbound: true,
            outbound: true,
            rules: Rules::None,
        }
    }

    /// Runs an application in the pod.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).unwrap()
    }

    /// Runs `ip` in the pod.
    pub(super) fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name))
    }

    /// An application that sends each client the address it was told the client has.
    pub(super) fn serve(&self, port: u16) -> TestServer {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.run(|| TcpListener::bind(any)) {
                // A process that another test is starting holds copies of all descriptors, closed
                // listeners included, up to its `exec`.
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {}
                listener => return TestServer::start(listener.unwrap()),
            }
        }
    }
}

/// A thread that accepts connections, writes `NAME local peer getpeername` and closes.
pub(super) struct TestServer {
    stop: mpsc::Sender<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl TestServer {
    fn start(listener: TcpListener) -> Self {
        Self::start_as("app", listener)
    }

    pub(super) fn start_as(name: &'static str, listener: TcpListener) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        listener.set_nonblocking(true).unwrap();
        let thread = thread::spawn(move || {
            while matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                if !readable(&listener) {
                    continue;
                }
                let Ok((mut client, peer)) = listener.accept() else {
                    continue;
                };
                let peer = canonical(peer);
                let told = canonical(client.peer_addr().unwrap_or(peer));
                let local = client.local_addr().map(canonical);
                let local = local.map_or_else(|error| error.to_string(), |local| local.to_string());
                let _gone = client.write_all(format!("{name} {local} {peer} {told}").as_bytes());
                // Reads what there is: closing on unread data would reset the connection.
                let _unset = client.set_read_timeout(Some(PATIENCE));
                let _reset = client.shutdown(Shutdown::Write);
                let _ended = client.read_to_end(&mut Vec::new());
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ended = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Waits a moment for a connection, so that a stop is noticed.
fn readable(listener: &TcpListener) -> bool {
    use std::os::fd::AsFd;
    let mut poll = [nix::poll::PollFd::new(
        listener.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    nix::poll::poll(&mut poll, 20_u16).is_ok_and(|ready| ready > 0)
}

/// What a server of these tests said about a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    /// `app`, `outbound`, `inbound` or `hbone`.
    pub(super) from: String,
    /// The server's local address.
    pub(super) local: SocketAddr,
    /// The peer as `accept` gave it.
    pub(super) accepted: SocketAddr,
    /// The peer as `getpeername` gave it.
    pub(super) peer: SocketAddr,
}

/// A connection made, as the client saw it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) greeting: Greeting,
    /// The client's `getsockname`.
    pub(super) local: SocketAddr,
    /// The client's `getpeername`.
    pub(super) peer: SocketAddr,
}

/// Connects and reads the greeting. Runs in the client's network namespace.
pub(super) fn call(to: impl Into<SocketAddr>) -> io::Result<Call> {
    finish(TcpStream::connect_timeout(&to.into(), PATIENCE)?)
}

/// Reads the greeting of a connected socket.
pub(super) fn finish(mut stream: TcpStream) -> io::Result<Call> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, said.clone());
    let mut words = said.split(' ');
    let from = words.next().ok_or_else(invalid)?.to_owned();
    let mut address = || {
        words
            .next()
            .and_then(|word| word.parse().ok())
            .ok_or_else(invalid)
    };
    let greeting = Greeting {
        from,
        local: address()?,
        accepted: address()?,
        peer: address()?,
    };
    Ok(Call {
        greeting,
        local: canonical(stream.local_addr()?),
        peer: canonical(stream.peer_addr()?),
    })
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One node: a bridge in a namespace of its own, two pods, and an agent's capture with its run
/// directory. The node's namespace is where the agent is loaded, and kubelet's.
pub(super) struct Bench {
    pub(super) a: TestPod,
    pub(super) b: TestPod,
    pub(super) node: TestPod,
    pub(super) settings: Settings,
    capture: Option<Capture>,
    clerk: Option<Clerk>,
    servers: Vec<TestServer>,
}

impl Bench {
    /// Builds the namespaces and loads capture; nothing is enrolled.
    pub(super) fn new() -> Self {
        Self::with_lease(Duration::from_secs(60))
    }

    pub(super) fn with_lease(heartbeat_lease: Duration) -> Self {
        let number = BENCHES.fetch_add(1, Ordering::Relaxed);
        let name = |part: &str| format!("cvcap{}x{number}{part}", std::process::id());
        let node = namespace(name("n"), 1);
        node.ip("link add br0 type bridge");
        node.ip("link set br0 up");
        node.ip(&format!("addr add {}/24 dev br0", node.v4));
        node.ip(&format!("addr add {}/64 dev br0 nodad", node.v6));
        let a = namespace(name("a"), 11);
        let b = namespace(name("b"), 12);
        for (index, pod) in [&a, &b].into_iter().enumerate() {
            node.ip(&format!(
                "link add p{index} type veth peer name eth0 netns {}",
                pod.name
            ));
            node.ip(&format!("link set p{index} master br0 up"));
            pod.ip("link set lo up");
            pod.ip(&format!("addr add {}/24 dev eth0", pod.v4));
            pod.ip(&format!("addr add {}/64 dev eth0 nodad", pod.v6));
            // No link-local address, which would come some time after the device is up.
            pod.ip("link set eth0 addrgenmode none");
            pod.ip("link set eth0 up");
            pod.ip(&format!("route add default via {}", node.v4));
            pod.ip(&format!("-6 route add default via {}", node.v6));
        }
        let settings = Settings {
            run_dir: std::env::temp_dir().join(name("run")),
            workers: 2.try_into().unwrap(),
            heartbeat_lease,
            cgroup: None,
            pods_cgroup: None,
        };
        let mut bench = Self {
            a,
            b,
            node,
            settings,
            capture: None,
            clerk: None,
            servers: Vec::new(),
        };
        bench.load();
        bench
    }

    /// Loads capture as an agent in the node's namespace does.
    pub(super) fn load(&mut self) {
        let mut capture = self.node.run(|| Capture::load(&self.settings)).unwrap();
        self.clerk = Some(Clerk::start(capture.hold_openings().unwrap()));
        self.capture = Some(capture);
    }

    /// Who answers for destinations.
    pub(super) fn clerk(&self) -> &Clerk {
        self.clerk.as_ref().unwrap()
    }

    /// Has the test answer by itself.
    pub(super) fn dismiss_clerk(&mut self) -> Vec<Openings> {
        self.clerk = None;
        self.capture().hold_openings().unwrap()
    }

    /// The agent dies: its listeners close, its pins stay.
    pub(super) fn kill_agent(&mut self) {
        self.servers.clear();
        self.clerk = None;
        let capture = self.capture.take().unwrap();
        let maps = Arc::clone(&capture.shared.maps);
        drop(capture);
        // A process that another test is starting holds copies of all descriptors up to its `exec`.
        let deadline = Instant::now() + PATIENCE;
        let listens = |pod: &TestPod| {
            let slots = [Slot::Inbound, Slot::Outbound(0), Slot::Outbound(1)];
            let cookie = pod.netns.cookie();
            slots
                .iter()
                .any(|slot| maps.listener(cookie, *slot).unwrap().is_some())
        };
        while listens(&self.a) || listens(&self.b) {
            assert!(
                Instant::now() < deadline,
                "the agent's listeners do not close"
            );
        }
    }

    pub(super) fn capture(&mut self) -> &mut Capture {
        self.capture.as_mut().unwrap()
    }

    pub(super) fn capture_ref(&self) -> &Capture {
        self.capture.as_ref().unwrap()
    }

    /// How many connections are in their opening. If there are none, none is counted either.
    #[track_caller]
    pub(super) fn openings(&self) -> usize {
        let maps = &self.capture_ref().shared.maps;
        let openings = maps.openings().unwrap();
        if openings == 0 {
            let counts = [&self.a, &self.b].map(|pod| self.counted(pod));
            assert_eq!((counts, maps.opening_sum().unwrap()), ([0; 2], Some(0)));
        }
        openings
    }

    /// How many of a pod's own connections are counted as being in their opening.
    pub(super) fn counted(&self, pod: &TestPod) -> u64 {
        let maps = &self.capture_ref().shared.maps;
        let count = maps.opening_count(pod.netns.cookie()).unwrap();
        count.unwrap_or_default()
    }

    pub(super) fn into_capture(mut self) -> (Capture, Self) {
        self.servers.clear();
        self.clerk = None;
        let capture = self.capture.take().unwrap();
        (capture, self)
    }

    /// Enrols pod `a` and serves its listeners.
    pub(super) fn enrol_a(&mut self) -> Enrolled {
        let spec = self.a.spec();
        self.enrol(spec)
    }

    /// Enrols pod `b` and serves its listeners.
    pub(super) fn enrol_b(&mut self) -> Enrolled {
        let spec = self.b.spec();
        self.enrol(spec)
    }

    /// Enrols a pod.
    pub(super) fn try_enrol(&mut self, spec: Pod) -> Result<Enrolled, CaptureError> {
        let mut outcome = None;
        let capture = self.capture();
        capture.enrol(vec![(spec, None)], |_, enrolled| outcome = Some(enrolled))?;
        let failures = capture.guard();
        assert!(failures.is_empty(), "{failures:?}");
        outcome.unwrap()
    }

    /// Enrols a pod and serves its listeners; the listeners are taken out of the answer.
    pub(super) fn enrol(&mut self, spec: Pod) -> Enrolled {
        let mut enrolled = self.try_enrol(spec).unwrap();
        self.serve(std::mem::take(&mut enrolled.listeners));
        self.clerk().serve(Arc::clone(&enrolled.sockets));
        enrolled
    }

    /// Serves a pod's listeners as the agent.
    pub(super) fn serve(&mut self, listeners: Vec<WorkerListeners>) {
        for WorkerListeners {
            outbound,
            inbound,
            hbone,
        } in listeners
        {
            let listeners = [
                ("outbound", outbound),
                ("inbound", inbound),
                ("hbone", hbone),
            ];
            let servers = listeners.map(|(name, fd)| TestServer::start_as(name, std_listener(fd)));
            self.servers.extend(servers);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.servers.clear();
        self.clerk = None;
        if self.capture.is_none() && self.settings.run_dir.exists() {
            self.capture = self.node.run(|| Capture::load(&self.settings)).ok();
        }
        let removed = self.capture.take().map(Capture::remove_everything);
        let _missing = fs::remove_dir_all(&self.settings.run_dir);
        for pod in [&self.a, &self.b, &self.node] {
            ip(&format!("netns del {}", pod.name));
        }
        if !thread::panicking() {
            removed.transpose().unwrap();
        }
    }
}

fn std_listener(fd: OwnedFd) -> TcpListener {
    TcpListener::from(fd)
}

fn namespace(name: String, host: u8) -> TestPod {
    ip(&format!("netns add {name}"));
    let netns = Netns::open(&Path::new("/run/netns").join(&name)).unwrap();
    TestPod {
        name,
        v4: Ipv4Addr::new(10, 88, 0, host),
        v6: Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, u16::from(host)),
        netns,
    }
}

/// Runs `ip` and returns what it printed.
pub(super) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An address with a port.
pub(super) fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}
