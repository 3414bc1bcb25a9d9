//! The TLS handshake as a machine without I/O: bytes in, bytes out, a session's two halves at its end.
//!
//! ```text
//!  Handshake::client ─┐   step(input, out)    ┌─ Progress::Continue(Handshake)
//!  Handshake::server ─┴────────────────────►──┤
//!                         send `out` always   └─ Progress::Done(Established)
//! ```
//!
//! rustls is given one record at a time, so that it stops right at its last handshake record: whatever came
//! behind it is the [`Opener`]'s.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{Error, PeerMisbehaved};

use super::config::ALPN;
use super::error::TlsError;
use super::identity::Identity;
use super::record::{self, HEADER, Opener, Sealer, TrafficKeys};
use super::verify::{PeerRule, VerifiedPeer};
use crate::model::SpiffeId;

/// A handshake under way.
pub struct Handshake {
    connection: Connection,
    rule: PeerRule,
    /// Bytes of the peer that rustls has not done with.
    incoming: Vec<u8>,
    /// How many of them rustls has been shown.
    shown: usize,
}

enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// Where a handshake is after a step.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack for the length of one step"
)]
pub enum Progress {
    /// The peer's next bytes are needed.
    Continue(Handshake),
    /// The peer is verified and the session can begin.
    Done(Established),
}

/// What a finished handshake yields.
#[derive(Debug)]
pub struct Established {
    /// The proof of who the peer is.
    pub peer: VerifiedPeer,
    /// Seals what is sent.
    pub sealer: Sealer,
    /// Opens what is received; holds the bytes that came along with the handshake's end.
    pub opener: Opener,
}

impl Handshake {
    /// Begins a handshake with a server that must prove to be one of `expected`. The first step, with an empty
    /// input, yields what opens it.
    ///
    /// # Errors
    /// [`TlsError::Handshake`] when rustls cannot begin.
    pub fn client(identity: &Identity, expected: &[SpiffeId]) -> Result<Self, TlsError> {
        // Never sent, since SNI is off, nor compared: the SPIFFE ID is the server's name.
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let connection =
            UnbufferedClientConnection::new(identity.client().expecting(expected), name)
                .map_err(TlsError::from_handshake)?;
        let rule = PeerRule::OneOf(expected.to_vec());
        Ok(Self::new(Connection::Client(Box::new(connection)), rule))
    }

    /// Begins a handshake with a client of the identity's own trust domain.
    ///
    /// # Errors
    /// [`TlsError::Handshake`] when rustls cannot begin.
    pub fn server(identity: &Identity) -> Result<Self, TlsError> {
        let connection = UnbufferedServerConnection::new(Arc::clone(identity.server()))
            .map_err(TlsError::from_handshake)?;
        let rule = PeerRule::Within(identity.id().trust_domain().clone());
        Ok(Self::new(Connection::Server(Box::new(connection)), rule))
    }

    fn new(connection: Connection, rule: PeerRule) -> Self {
        Self {
            connection,
            rule,
            incoming: Vec::new(),
            shown: 0,
        }
    }

    /// Takes the peer's next bytes and appends what is to be sent to `out`. Send it in any case: after an error
    /// it holds the alert.
    ///
    /// # Errors
    /// [`TlsError`]: the handshake has failed.
    pub fn step(mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Progress, TlsError> {
        self.incoming.extend_from_slice(input);
        loop {
            let shown = &mut self.incoming[..self.shown];
            let (done_with, pumped) = match &mut self.connection {
                Connection::Client(connection) => pump(connection.as_mut(), shown, out),
                Connection::Server(connection) => pump(connection.as_mut(), shown, out),
            };
            self.incoming.drain(..done_with);
            self.shown -= done_with;
            match pumped? {
                Pumped::Ready => return self.establish(out).map(Progress::Done),
                Pumped::Blocked if self.show_record() => {}
                Pumped::Blocked => return Ok(Progress::Continue(self)),
            }
        }
    }

    /// Lets rustls see one record more, if a whole one is there. What cannot be a record is shown as it is: its
    /// sender is refused now and not when the claimed length has come.
    fn show_record(&mut self) -> bool {
        let rest = &self.incoming[self.shown..];
        let &[content_type, _, _, high, low, ..] = rest else {
            return false;
        };
        let record = HEADER + usize::from(u16::from_be_bytes([high, low]));
        let is_record = record::CONTENT_TYPES.contains(&content_type)
            && record <= HEADER + record::MAX_CIPHERTEXT;
        let show = if is_record { record } else { rest.len() };
        let is_whole = show <= rest.len();
        if is_whole {
            self.shown += show;
        }
        is_whole
    }

    fn establish(mut self, out: &mut Vec<u8>) -> Result<Established, TlsError> {
        let (alpn, chain) = match &self.connection {
            Connection::Client(it) => (it.alpn_protocol(), it.peer_certificates()),
            Connection::Server(it) => (it.alpn_protocol(), it.peer_certificates()),
        };
        let speaks_h2 = alpn == Some(ALPN);
        let peer = VerifiedPeer::of_handshake(chain, &self.rule)?;
        let early = self.incoming.split_off(self.shown);
        let (secrets, keys) = match self.connection {
            Connection::Client(connection) => connection
                .dangerous_into_kernel_connection()
                .map(|(secrets, keys)| (secrets, TrafficKeys::Client(keys))),
            Connection::Server(connection) => connection
                .dangerous_into_kernel_connection()
                .map(|(secrets, keys)| (secrets, TrafficKeys::Server(keys))),
        }
        .map_err(|source| TlsError::TakeKeys(source.into()))?;
        let (mut sealer, opener) =
            record::split(secrets, keys, early).map_err(TlsError::TakeKeys)?;
        if !speaks_h2 {
            // rustls lets a peer pass that offers no protocol at all.
            sealer.refuse_protocol(out).map_err(TlsError::Refuse)?;
            return Err(TlsError::NotHttp2);
        }
        Ok(Established {
            peer,
            sealer,
            opener,
        })
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("rule", &self.rule)
            .finish_non_exhaustive()
    }
}

/// What rustls needs to go on.
enum Pumped {
    Blocked,
    Ready,
}

/// The two kinds of rustls connection, driven alike.
trait Unbuffered {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(incoming)
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(incoming)
    }
}

/// Lets rustls work until it needs more input or is finished. Also says how much of `incoming` it has done with.
fn pump<C: Unbuffered>(
    connection: &mut C,
    incoming: &mut [u8],
    out: &mut Vec<u8>,
) -> (usize, Result<Pumped, TlsError>) {
    let mut done_with = 0;
    loop {
        let status = connection.process(&mut incoming[done_with..]);
        let discard = status.discard;
        let stop = match status.state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out).err().map(Err),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Ok(Pumped::Blocked)),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(Pumped::Ready)),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                Some(Err(TlsError::ClosedEarly))
            }
            // Only data that runs ahead of the handshake is left, which neither side has agreed to.
            Ok(_) => Some(Err(TlsError::DataEarly)),
            Err(error) => {
                done_with += discard;
                take_alert(connection, &mut incoming[done_with..], &error, out);
                return (done_with, Err(TlsError::from_handshake(error)));
            }
        };
        done_with += discard;
        if let Some(result) = stop {
            return (done_with, result);
        }
    }
}

/// Takes what rustls has to say after an error: the alert, perhaps behind a flight that it had begun. It says so
/// before it looks at its input.
fn take_alert<C: Unbuffered>(
    connection: &mut C,
    incoming: &mut [u8],
    error: &Error,
    out: &mut Vec<u8>,
) {
    // A record that could not be read stays in front, and the alert about it is alone: a second call would
    // stumble over the record again, which rustls takes for a mistake of ours.
    let is_unreadable = matches!(
        error,
        Error::InvalidMessage(_)
            | Error::PeerSentOversizedRecord
            | Error::DecryptError
            | Error::PeerMisbehaved(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec)
    );
    while let Ok(ConnectionState::EncodeTlsData(data)) = connection.process(incoming).state {
        // The error that led here matters more than one in its announcement.
        if encode(data, out).is_err() || is_unreadable {
            return;
        }
    }
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), TlsError> {
    // The first call tells the size.
    let needed = match data.encode(&mut []) {
        Ok(_nothing) => return Ok(()),
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(source @ EncodeError::AlreadyEncoded) => return Err(TlsError::Encode(source)),
    };
    let start = out.len();
    out.resize(start + needed, 0);
    data.encode(&mut out[start..])
        .map(drop)
        .map_err(TlsError::Encode)
}
