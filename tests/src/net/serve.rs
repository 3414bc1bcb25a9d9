//! Servers inside pods, each a thread that accepts and a thread per connection.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{http, patient, sys};
use crate::lab::Pod;

/// Longest life of a server that nobody stops.
const MAX_LIFE: Duration = Duration::from_secs(15 * 60);

/// A listening server; dropping it closes the port, as the end of the application would.
pub struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    // Taken by drop: closing it ends the accepting thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Listens on an address of the pod (or the unspecified one) and handles each connection on a thread.
    ///
    /// # Errors
    /// If the port cannot be opened.
    pub fn start(
        pod: &Pod,
        address: impl Into<IpAddr>,
        port: u16,
        handle: impl Fn(&TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let address = SocketAddr::new(address.into(), port);
        let listener = pod.run(|| {
            TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
        })?;
        Self::run(listener, handle)
    }

    /// Handles connections of a listener that is there already.
    ///
    /// # Errors
    /// If it has no address.
    pub fn run(
        listener: TcpListener,
        handle: impl Fn(&TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let address = listener
            .local_addr()
            .context("the listener has no address")?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let (stop, stopped) = UnixStream::pair().context("cannot make a socket pair")?;
        let handle = Arc::new(handle);
        let thread = thread::spawn(move || {
            listener.set_nonblocking(true)?;
            while sys::wait_readable(&listener, Some(&stopped), MAX_LIFE)? {
                let stream = match listener.accept() {
                    Ok((stream, _)) => stream,
                    // The client gave up between poll and accept.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error).context("cannot accept"),
                };
                count.fetch_add(1, Ordering::Relaxed);
                stream.set_nonblocking(false)?;
                patient(&stream)?;
                let handle = Arc::clone(&handle);
                // A handler's failure is the scenario's business, which sees the client's end of it.
                thread::spawn(move || drop(handle(&stream)));
            }
            sys::end_listening(&listener)
        });
        Ok(Self {
            address,
            accepted,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Sends back what comes, until the client is done.
///
/// # Errors
/// If the connection breaks.
pub fn echo(mut stream: &TcpStream) -> Result<()> {
    let mut reader = stream;
    io::copy(&mut reader, &mut stream)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(())
}

/// Tells the client which address the server sees it at, and who the server thinks it is itself.
///
/// # Errors
/// If the connection breaks.
pub fn tell_addresses(mut stream: &TcpStream) -> Result<()> {
    write!(stream, "{} {}", stream.peer_addr()?, stream.local_addr()?)?;
    Ok(())
}

/// Serves a fixed page over HTTP.
///
/// # Errors
/// If the connection breaks.
pub fn page(text: &'static str) -> impl Fn(&TcpStream) -> Result<()> + Send + Sync + 'static {
    move |stream| http::serve(stream, |_| (200, "text/plain", text.as_bytes().to_vec()))
}

/// A UDP socket that sends each datagram back; lives as long as the value.
pub struct UdpEcho {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl UdpEcho {
    /// Opens the port.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn start(pod: &Pod, address: SocketAddr) -> Result<Self> {
        Self::answer(pod, address, |datagram| Some(datagram.to_vec()))
    }

    /// Answers each datagram with what a function makes of it.
    ///
    /// # Errors
    /// If the port cannot be opened.
    pub fn answer(
        pod: &Pod,
        address: SocketAddr,
        reply: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        let socket =
            pod.run(|| UdpSocket::bind(address).with_context(|| format!("cannot open {address}")))?;
        let (stop, stopped) = UnixStream::pair().context("cannot make a socket pair")?;
        let thread = thread::spawn(move || {
            let mut datagram = vec![0; 65536];
            while sys::wait_readable(&socket, Some(&stopped), MAX_LIFE)? {
                let (length, from) = socket.recv_from(&mut datagram)?;
                if let Some(answer) = reply(&datagram[..length]) {
                    socket.send_to(&answer, from)?;
                }
            }
            Ok(())
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
