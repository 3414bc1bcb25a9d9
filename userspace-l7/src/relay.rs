//! L5: carrying an accepted connection between an application and the far side, and saying how it ended.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::dormant::Dormant;
use crate::hbone::{Stream, StreamSink};
use crate::io::{BothWays, Preceded, TcpSink, TcpSource, carry, is_ordinary_end};
use crate::origination::Secured;
use crate::policy::{Allowed, Denial};
use crate::ring::{RecvBuf, Tcp};
use crate::telemetry::{OpenFlow, Outcome, ResponseFlags};

/// The side that is not the local application.
pub(crate) enum Far {
    /// TCP as it is.
    Plain(Tcp),
    /// A stream in an HBONE tunnel.
    Tunnel(Stream),
    /// Either of them, inside of TLS of the application's own.
    Secured(Secured),
}

/// The local application's connection.
pub(crate) struct Local<'a> {
    pub(crate) application: Application,
    pub(crate) tcp: &'a Tcp,
    /// What has been received from it already.
    pub(crate) early: RecvBuf,
}

/// Which end the local application is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Application {
    /// It opened the connection.
    Client,
    /// It accepted the connection.
    Server,
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// Both sides finished, or one reset as applications do that are done.
    Complete,
    /// Something between the two failed.
    Broken(io::Error),
    /// A change of policy took its right away.
    Refused(Denial),
}

impl Ending {
    /// Closes the connection's account.
    pub(crate) fn settle(self, flow: OpenFlow) {
        match self {
            Self::Complete => flow.close(Outcome::Complete),
            Self::Broken(error) => {
                flow.close(Outcome::Failed {
                    flags: ResponseFlags::None,
                    error: &error,
                });
            }
            Self::Refused(denial) => {
                let error = format_args!("connection closed due to policy change: {denial}");
                flow.close(Outcome::Failed {
                    flags: ResponseFlags::Deny,
                    error: &error,
                });
            }
        }
    }
}

/// Proof that a connection may be carried: judged inbound, or outbound, where the far side judges or nobody else can.
pub(crate) enum Pass {
    /// The local workload is the destination, and policy allows it.
    Judged(Allowed),
    /// The destination's node judges, or the service that was called had to be satisfied first.
    JudgedElsewhere,
}

/// Carries both directions until each has ended, for a half-closed connection stays useful, or until an error, or until
/// `refused` resolves. Anything but an orderly end reaches both sides as a reset: a cut must never look like the end of
/// the data.
///
/// # Cancel safety
/// Dropping the future resets both sides, as does the death of the process.
pub(crate) fn run<'a>(
    _pass: Pass,
    local: Local<'a>,
    far: Far,
    flow: &'a OpenFlow,
    refused: impl Future<Output = Denial> + 'a,
) -> impl Future<Output = Ending> + 'a {
    let Local {
        application,
        tcp: app,
        early,
    } = local;
    app.reset_when_dropped(true);
    let from_app = move |bytes| match application {
        Application::Client => flow.to_server(bytes),
        Application::Server => flow.to_client(bytes),
    };
    let from_far = move |bytes| match application {
        Application::Client => flow.to_client(bytes),
        Application::Server => flow.to_server(bytes),
    };
    let (reader, writer) = (
        Preceded::new(early, TcpSource(app.clone())),
        TcpSink::new(app.clone()),
    );
    let mut carried = match far {
        Far::Plain(tcp) => {
            tcp.reset_when_dropped(true);
            let up = carry(reader, TcpSink::new(tcp.clone()), from_app);
            let down = carry(TcpSource(tcp.clone()), writer, from_far);
            Carried::Plain(tcp, BothWays::new(up, down))
        }
        Far::Tunnel(stream) => {
            let (source, sink) = stream.split();
            let up = carry(reader, StreamSink::new(sink), from_app);
            let down = carry(source, writer, from_far);
            Carried::Tunnelled(BothWays::new(up, down))
        }
        Far::Secured(secured) => {
            let (source, sink) = secured.split();
            let up = carry(reader, sink, from_app);
            let down = carry(source, writer, from_far);
            Carried::Secured(Box::new(BothWays::new(up, down)))
        }
    };
    let refused = Dormant::new(refused);
    async move {
        let ended = tokio::select! {
            ended = &mut carried => ended.map_err(Ending::of_error),
            denial = refused => Err(Ending::Refused(denial)),
        };
        match ended {
            Ok(()) => {
                carried.is_over();
                app.reset_when_dropped(false);
                Ending::Complete
            }
            Err(ending) => {
                app.abort();
                ending
            }
        }
    }
}

/// Both directions, by what the far side is.
enum Carried<P, T, S> {
    Plain(Tcp, P),
    Tunnelled(T),
    /// On the heap: few are.
    Secured(Box<S>),
}

impl<P, T, S> Carried<P, T, S> {
    /// Both directions have ended in order: closing the far side's socket is no cut.
    fn is_over(&self) {
        if let Self::Plain(tcp, _) = self {
            tcp.reset_when_dropped(false);
        }
    }
}

impl<P, T, S> Future for Carried<P, T, S>
where
    P: Future<Output = io::Result<()>> + Unpin,
    T: Future<Output = io::Result<()>> + Unpin,
    S: Future<Output = io::Result<()>> + Unpin,
{
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(_, both) => Pin::new(both).poll(cx),
            Self::Tunnelled(both) => Pin::new(both).poll(cx),
            Self::Secured(both) => Pin::new(both).poll(cx),
        }
    }
}

/// As [`run`], between a stream of a tunnel that is served, whose client has sent `early` already, and the far side.
///
/// # Cancel safety
/// As [`run`].
pub(crate) async fn pass_on(
    _pass: Pass,
    (client, early): (Stream, RecvBuf),
    far: Far,
    flow: &OpenFlow,
    refused: impl Future<Output = Denial>,
) -> Ending {
    let (from_client, to_client) = client.split();
    let from_client = Preceded::new(early.to_vec(), from_client);
    let up = |bytes| flow.to_server(bytes);
    let down = |bytes| flow.to_client(bytes);
    let mut carried = match far {
        Far::Plain(tcp) => {
            tcp.reset_when_dropped(true);
            let up = carry(from_client, TcpSink::new(tcp.clone()), up);
            let down = carry(TcpSource(tcp.clone()), StreamSink::new(to_client), down);
            Carried::Plain(tcp, BothWays::new(up, down))
        }
        Far::Tunnel(stream) => {
            let (source, sink) = stream.split();
            let up = carry(from_client, StreamSink::new(sink), up);
            let down = carry(source, StreamSink::new(to_client), down);
            Carried::Tunnelled(BothWays::new(up, down))
        }
        Far::Secured(secured) => {
            let (source, sink) = secured.split();
            let up = carry(from_client, sink, up);
            let down = carry(source, StreamSink::new(to_client), down);
            Carried::Secured(Box::new(BothWays::new(up, down)))
        }
    };
    tokio::select! {
        ended = &mut carried => match ended {
            Ok(()) => {
                carried.is_over();
                Ending::Complete
            }
            Err(error) => Ending::of_error(error),
        },
        denial = refused => Ending::Refused(denial),
    }
}

impl Ending {
    fn of_error(error: io::Error) -> Self {
        tracing::debug!(%error, "connection cut");
        if is_ordinary_end(&error) {
            Self::Complete
        } else {
            Self::Broken(error)
        }
    }
}
