//! Asking the resolver that the pod meant.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{PodNetwork, Transport, wire};

/// Where resolvers listen (RFC 1035 §4.2).
pub(super) const PORT: u16 = 53;

/// As long as stub resolvers wait before they ask again.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A resolver did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    /// Capture does not know where the query was going.
    #[error("the resolver that the query was meant for is not known")]
    Unknown,
    /// No socket in the pod's network.
    #[error("cannot open a socket in the pod's network namespace")]
    Socket(#[source] io::Error),
    /// The resolver or the way to it refused.
    #[error("the resolver {resolver} cannot be asked")]
    Exchange {
        /// Whom.
        resolver: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Silence.
    #[error("the resolver {resolver} did not answer within {} s", TIMEOUT.as_secs())]
    Late {
        /// Whom.
        resolver: SocketAddr,
    },
}

/// Sends `query` as it stands, under a number of its own, and gives back the reply under the query's.
///
/// The fresh number and, with UDP, the fresh port are what a forger would have to guess (RFC 5452).
pub(super) async fn exchange(
    network: &dyn PodNetwork,
    transport: Transport,
    client: SocketAddr,
    query: &[u8],
) -> Result<Vec<u8>, UpstreamError> {
    let resolver = network
        .resolver(transport, client)
        .ok_or(UpstreamError::Unknown)?;
    let resolver = SocketAddr::new(resolver.ip().to_canonical(), resolver.port());
    let socket = network
        .socket(transport, resolver)
        .map_err(UpstreamError::Socket)?;
    let mut renumbered = query.to_vec();
    wire::set_id(&mut renumbered, rand::random());
    let exchanged = async {
        match transport {
            Transport::Udp => udp(socket.into(), resolver, &renumbered).await,
            Transport::Tcp => tcp(socket.into(), resolver, &renumbered).await,
        }
    };
    let exchanged = timeout(TIMEOUT, exchanged).await;
    let mut reply = exchanged
        .map_err(|_elapsed| UpstreamError::Late { resolver })?
        .map_err(|source| UpstreamError::Exchange { resolver, source })?;
    wire::set_id(&mut reply, wire::id(query).unwrap_or_default());
    Ok(reply)
}

async fn udp(socket: StdUdpSocket, resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    // Connected: the kernel drops what comes from elsewhere and reports a closed port.
    socket.connect(resolver).await?;
    socket.send(query).await?;
    loop {
        socket.readable().await?;
        let mut reply = Vec::with_capacity(usize::from(u16::MAX));
        match socket.try_recv_buf(&mut reply) {
            Ok(_) if wire::is_reply(query, &reply) => return Ok(reply),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn tcp(socket: StdTcpStream, resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    socket.set_nonblocking(true)?;
    let mut stream = TcpSocket::from_std_stream(socket).connect(resolver).await?;
    write(&mut stream, query).await?;
    let reply = read(&mut stream)
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    if wire::is_reply(query, &reply) {
        Ok(reply)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Reads one message behind its length (RFC 1035 §4.2.2); `None` at the end of the stream.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Ok(_two) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes one message behind its length, in one segment where it fits.
pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_long| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(message.len() + size_of::<u16>());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
