//! What goes wrong in a tunnel, from one stream's reset to the whole connection.

use std::fmt;
use std::io;
use std::rc::Rc;

use super::cause::Cause;
use crate::error::{Fault, Retry};
use crate::telemetry::ResponseFlags;
use crate::tls::{RecordError, Role, TlsError};

/// The code of an HTTP/2 error (RFC 9113 §7). Peers may send codes without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// An orderly end.
    pub const NO_ERROR: Self = Self(0);
    /// The peer breaks the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// Something failed inside.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// Flow-control credit was exceeded.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame for a stream that has ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame of the wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// Not processed at all: safe to send again elsewhere.
    pub const REFUSED_STREAM: Self = Self(7);
    /// No longer wanted.
    pub const CANCEL: Self = Self(8);
    /// Header compression is out of step.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The connection behind the tunnel was reset or abnormally closed.
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer wastes our time.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NO_ERROR => "NO_ERROR",
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::INTERNAL_ERROR => "INTERNAL_ERROR",
            Self::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            Self::STREAM_CLOSED => "STREAM_CLOSED",
            Self::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
            Self::REFUSED_STREAM => "REFUSED_STREAM",
            Self::CANCEL => "CANCEL",
            Self::COMPRESSION_ERROR => "COMPRESSION_ERROR",
            Self::CONNECT_ERROR => "CONNECT_ERROR",
            Self::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
            Self(other) => return write!(f, "code {other}"),
        };
        f.write_str(name)
    }
}

/// What the peer did that ends a whole connection. We tell it with GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer breaks HTTP/2 ({code}): {reason}")]
pub struct ConnectionError {
    /// The code for GOAWAY.
    pub code: ErrorCode,
    /// What the peer did.
    pub reason: &'static str,
}

/// Why a tunnel's connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The peer closed it, in order or not, while streams were open.
    #[error("the peer closed the tunnel")]
    Closed,
    /// The peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ConnectionError),
    /// The peer broke TLS, or ended it with an alert.
    #[error("the tunnel's TLS session failed: {0}")]
    Tls(#[from] RecordError),
    /// Our own cipher failed.
    #[error("the tunnel's records could not be sealed")]
    Seal,
    /// The socket failed while it was read.
    #[error("the tunnel could not be read: {0}")]
    Receive(io::ErrorKind),
    /// The socket failed while it was written.
    #[error("the tunnel could not be written: {0}")]
    Send(io::ErrorKind),
    /// The peer gave no sign of life.
    #[error("the tunnel's peer answers no ping")]
    Silent,
    /// We ended it: the pod is gone, or the worker stops.
    #[error("the tunnel was taken down")]
    TakenDown,
}

/// Why a stream carries no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer gave it up with this code.
    #[error("the peer reset the stream ({0})")]
    Reset(ErrorCode),
    /// Our own direction has ended already.
    #[error("the stream's sending direction has ended")]
    Finished,
    /// The whole tunnel is gone.
    #[error("{0}")]
    Lost(#[from] Lost),
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        // A reset is how applications end, too; a broken tunnel is nobody's intention.
        let kind = match error {
            StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamError::Finished => io::ErrorKind::BrokenPipe,
            StreamError::Lost(Lost::Silent) => io::ErrorKind::TimedOut,
            StreamError::Lost(_) => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

/// Why a tunnel's connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The TCP connection failed.
    #[error("the TCP connection failed: {0}")]
    Connect(#[source] io::Error),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[from] TlsError),
}

fn because(cause: Option<Cause>) -> String {
    cause.map_or_else(String::new, |cause| format!(" ({cause})"))
}

fn told(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}

/// What operators look for in vain when HBONE's port answers nothing while the application's does.
const UNANSWERED: &str = ": does a NetworkPolicy keep port 15008 closed?";

impl DialError {
    /// Whether there was no answer at all, not even a refusal.
    fn is_unanswered(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == io::ErrorKind::TimedOut)
    }
}

/// Whether the other end says that there is no connection.
fn is_cut(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        kind,
        ConnectionRefused | ConnectionReset | ConnectionAborted | BrokenPipe
    )
}

/// Why a stream could not be opened. In none of these cases can a byte of the application have arrived, but in
/// [`OpenError::Unsure`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection could be made.
    #[error("{0}{hint}", hint = if .0.is_unanswered() { UNANSWERED } else { "" })]
    Dial(Rc<DialError>),
    /// The server says that it has not processed the request (`REFUSED_STREAM`, or GOAWAY before it).
    #[error("the server refuses new streams")]
    Refused,
    /// The server answered with another status than success.
    #[error("http status: {status}{}{}", because(*.cause), told(.reason.as_deref()))]
    Status {
        /// The status.
        status: u16,
        /// Why, if the server says so: it is Culvert, then.
        cause: Option<Cause>,
        /// The same in words.
        reason: Option<Rc<str>>,
    },
    /// The server gave the request up without an answer.
    #[error("the server reset the request ({0})")]
    Reset(ErrorCode),
    /// The server does not answer the request, though it is there.
    #[error("the server does not answer the request")]
    Unanswered,
    /// The connection broke before there was an answer.
    #[error("{0}")]
    Lost(#[from] Lost),
    /// First bytes left along with the request, and nothing says what became of them: elsewhere they might arrive a
    /// second time.
    #[error("{0}, and the server may have passed bytes on")]
    Unsure(Rc<Self>),
    /// We take no new streams: the pod is gone, or the worker stops.
    #[error("tunnels are being closed")]
    Closing,
}

impl OpenError {
    /// The error of a request that first bytes had left with. An answer proves that they were not passed on, for a
    /// server begins to pass bytes on with its success.
    pub(super) fn after_first_bytes(self) -> Self {
        match self {
            Self::Reset(_) | Self::Unanswered | Self::Lost(_) => Self::Unsure(Rc::new(self)),
            Self::Dial(_)
            | Self::Refused
            | Self::Status { .. }
            | Self::Unsure(_)
            | Self::Closing => self,
        }
    }

    /// What the access log says of it.
    pub fn flags(&self) -> ResponseFlags {
        match self {
            Self::Unsure(error) => error.flags(),
            Self::Dial(error) if error.is_unanswered() => ResponseFlags::NetworkPolicy,
            Self::Dial(error) => match &**error {
                DialError::Connect(_) => ResponseFlags::Connect,
                DialError::Tls(TlsError::NotHttp2) => ResponseFlags::H2HandshakeFailure,
                DialError::Tls(_) => ResponseFlags::TlsFailure,
            },
            Self::Lost(Lost::Tls(RecordError::PeerAlert(_))) => ResponseFlags::TlsFailure,
            Self::Lost(Lost::Protocol(_)) => ResponseFlags::H2HandshakeFailure,
            Self::Status { status: 401, .. } => ResponseFlags::Deny,
            Self::Status { .. }
            | Self::Lost(_)
            | Self::Refused
            | Self::Reset(_)
            | Self::Unanswered
            | Self::Closing => ResponseFlags::Connect,
        }
    }

    /// Why nobody answered, where it is the network that says so: on the way to the server, or behind it.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Dial(error) => match &**error {
                DialError::Connect(error) => Cause::of(error),
                DialError::Tls(_) => None,
            },
            Self::Status { cause, .. } => *cause,
            Self::Unsure(error) => error.cause(),
            Self::Unanswered | Self::Lost(Lost::Silent) => Some(Cause::TimedOut),
            Self::Refused | Self::Reset(_) | Self::Lost(_) | Self::Closing => None,
        }
    }

    /// What the server says in words of why its application is not to be had.
    pub fn reason(&self) -> Option<&Rc<str>> {
        match self {
            Self::Status { reason, .. } => reason.as_ref(),
            Self::Unsure(error) => error.reason(),
            _ => None,
        }
    }

    /// Whether the server takes no tunnels: nobody is there, or whoever was leaves without an answer. That is what it looks
    /// like where a pod is not captured, or not any more. Silence is something else, and so is an answer.
    pub fn is_untaken(&self) -> bool {
        match self {
            Self::Dial(error) => match &**error {
                DialError::Connect(error)
                | DialError::Tls(TlsError::Receive(error) | TlsError::Send(error)) => {
                    is_cut(error.kind())
                }
                DialError::Tls(error) => matches!(error, TlsError::ClosedEarly),
            },
            Self::Refused | Self::Lost(Lost::Closed) => true,
            Self::Lost(Lost::Receive(kind) | Lost::Send(kind)) => is_cut(*kind),
            Self::Status { .. }
            | Self::Reset(_)
            | Self::Unanswered
            | Self::Lost(_)
            | Self::Unsure(_)
            | Self::Closing => false,
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unsure(error) => error.fault(),
            Self::Closing | Self::Lost(Lost::TakenDown | Lost::Seal) => Fault::Local,
            _ => Fault::Upstream,
        }
    }

    /// Whether another endpoint may be tried. A refusal by policy must not be dodged where another endpoint has
    /// none; 503 says only that this one's application could not be reached.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Dial(error) => match &**error {
                DialError::Connect(_) => Retry::Safe,
                DialError::Tls(error) => error.retry(Role::Client),
            },
            Self::Refused | Self::Unanswered | Self::Lost(_) | Self::Status { status: 503, .. } => {
                Retry::Safe
            }
            Self::Status { .. } | Self::Reset(_) | Self::Unsure(_) | Self::Closing => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: &OpenError, flags: ResponseFlags, retry: Retry, sentence: &str) {
        assert_eq!(error.flags(), flags, "{error}");
        assert_eq!(error.retry(), retry, "{error}");
        assert_eq!(error.to_string(), sentence);
    }

    fn dial(kind: io::ErrorKind) -> OpenError {
        OpenError::Dial(Rc::new(DialError::Connect(kind.into())))
    }

    fn status(status: u16) -> OpenError {
        OpenError::Status {
            status,
            cause: None,
            reason: None,
        }
    }

    #[test]
    fn each_failure_has_its_flag_and_says_whether_another_endpoint_may_be_tried() {
        use ResponseFlags::{Connect, Deny, H2HandshakeFailure, NetworkPolicy, TlsFailure};
        check(
            &dial(io::ErrorKind::TimedOut),
            NetworkPolicy,
            Retry::Safe,
            "the TCP connection failed: timed out: does a NetworkPolicy keep port 15008 closed?",
        );
        check(
            &dial(io::ErrorKind::ConnectionRefused),
            Connect,
            Retry::Safe,
            "the TCP connection failed: connection refused",
        );
        check(
            &OpenError::Dial(Rc::new(TlsError::NotHttp2.into())),
            H2HandshakeFailure,
            TlsError::NotHttp2.retry(Role::Client),
            "the TLS handshake failed: the peer does not agree on the protocol h2",
        );
        check(
            &OpenError::Dial(Rc::new(TlsError::ClosedEarly.into())),
            TlsFailure,
            TlsError::ClosedEarly.retry(Role::Client),
            "the TLS handshake failed: the peer closed the connection during the handshake",
        );
        // A refusal by policy must not be dodged; an application that is away may have a brother.
        check(&status(401), Deny, Retry::Never, "http status: 401");
        check(&status(400), Connect, Retry::Never, "http status: 400");
        check(&status(503), Connect, Retry::Safe, "http status: 503");
        check(
            &OpenError::Refused,
            Connect,
            Retry::Safe,
            "the server refuses new streams",
        );
        check(
            &OpenError::Reset(ErrorCode::CONNECT_ERROR),
            Connect,
            Retry::Never,
            "the server reset the request (CONNECT_ERROR)",
        );
        check(
            &Lost::Closed.into(),
            Connect,
            Retry::Safe,
            "the peer closed the tunnel",
        );
        check(
            &OpenError::from(Lost::Closed).after_first_bytes(),
            Connect,
            Retry::Never,
            "the peer closed the tunnel, and the server may have passed bytes on",
        );
        // An answer says that nothing was passed on.
        check(
            &status(503).after_first_bytes(),
            Connect,
            Retry::Safe,
            "http status: 503",
        );
        check(
            &OpenError::Closing,
            Connect,
            Retry::Never,
            "tunnels are being closed",
        );
    }

    #[test]
    fn only_the_end_of_a_tunnel_says_that_none_is_taken() {
        let tls = |error: TlsError| OpenError::Dial(Rc::new(error.into()));
        for untaken in [
            dial(io::ErrorKind::ConnectionRefused),
            dial(io::ErrorKind::ConnectionReset),
            tls(TlsError::ClosedEarly),
            tls(TlsError::Receive(io::ErrorKind::ConnectionReset.into())),
            OpenError::Refused,
            Lost::Closed.into(),
            Lost::Receive(io::ErrorKind::ConnectionReset).into(),
        ] {
            assert!(untaken.is_untaken(), "{untaken}");
        }
        for other in [
            dial(io::ErrorKind::TimedOut),
            dial(io::ErrorKind::HostUnreachable),
            tls(TlsError::NotHttp2),
            tls(TlsError::Timeout),
            status(503),
            status(401),
            Lost::Silent.into(),
            OpenError::Reset(ErrorCode::CONNECT_ERROR),
            // Bytes may have been passed on.
            OpenError::from(Lost::Closed).after_first_bytes(),
            OpenError::Closing,
        ] {
            assert!(!other.is_untaken(), "{other}");
        }
    }
}
