//! L5: carrying an accepted connection between an application and the far side, and saying how it ended.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::connections::Tracked;
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
pub(crate) struct Local {
    pub(crate) application: Application,
    pub(crate) tcp: Tcp,
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
    /// As [`Ending::settle`], of an account that the connection's parts shared; all of them are gone with the connection.
    pub(crate) fn settle_shared(self, flow: Rc<OpenFlow>) {
        if let Some(flow) = Rc::into_inner(flow) {
            self.settle(flow);
        }
    }

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
/// the connection has lost its right, and settles its account. Anything but an orderly end reaches both sides as a reset:
/// a cut must never look like the end of the data. What the connection takes up, `held`, is given back with it.
///
/// # Cancel safety
/// Dropping the future resets both sides, as does the death of the process.
pub(crate) fn run<H: Unpin + 'static>(
    _pass: Pass,
    local: Local,
    far: Far,
    (flow, tracked): (OpenFlow, Tracked),
    held: H,
) -> impl Future<Output = ()> + 'static {
    let Local {
        application,
        tcp: app,
        early,
    } = local;
    app.reset_when_dropped(true);
    let flow = Rc::new(flow);
    let sent = Rc::clone(&flow);
    let from_app = move |bytes| match application {
        Application::Client => sent.to_server(bytes),
        Application::Server => sent.to_client(bytes),
    };
    let received = Rc::clone(&flow);
    let from_far = move |bytes| match application {
        Application::Client => received.to_client(bytes),
        Application::Server => received.to_server(bytes),
    };
    let (reader, writer) = (
        Preceded::new(early, TcpSource(app.clone())),
        TcpSink::new(app.clone()),
    );
    let carried = match far {
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
    Relay {
        parts: Some((carried, flow)),
        app,
        tracked,
        held,
    }
}

/// See [`run`]. A struct, since the future of an `async fn` holds what it was given twice, and there are as many of these
/// as connections.
struct Relay<C, H> {
    /// Both directions and the account that they count into, until the end.
    parts: Option<(C, Rc<OpenFlow>)>,
    app: Tcp,
    tracked: Tracked,
    #[expect(
        dead_code,
        reason = "held for as long as the connection lives, not used"
    )]
    held: H,
}

impl<P, T, S, H> Future for Relay<Carried<P, T, S>, H>
where
    Carried<P, T, S>: Future<Output = io::Result<()>> + Unpin,
    H: Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some((carried, _)) = &mut this.parts else {
            return Poll::Ready(());
        };
        let ended = match Pin::new(&mut *carried).poll(cx) {
            Poll::Ready(ended) => ended.map_err(Ending::of_error),
            Poll::Pending => Err(Ending::Refused(ready!(this.tracked.poll_refused(cx)))),
        };
        let ending = match ended {
            Ok(()) => {
                carried.is_over();
                this.app.reset_when_dropped(false);
                Ending::Complete
            }
            Err(ending) => {
                this.app.abort();
                ending
            }
        };
        if let Some((carried, flow)) = this.parts.take() {
            // It counts into the account.
            drop(carried);
            ending.settle_shared(flow);
        }
        Poll::Ready(())
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
