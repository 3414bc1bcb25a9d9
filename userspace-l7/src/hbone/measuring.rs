//! What the instruction budget reaches of this module's private parts: both ends of a tunnel in memory, without TLS
//! and sockets.

use std::time::Instant;

use super::head::{ConnectRequest, ConnectResponse};
use super::machine::{Event, Machine, Role, Taken};

/// A client's end and a server's, with a stream open between them.
pub struct Ends {
    client: Machine,
    server: Machine,
    stream: u32,
    wire: Vec<u8>,
}

impl Ends {
    /// Two ends that have greeted each other, and a first stream.
    ///
    /// # Panics
    /// If they do not understand each other.
    pub fn connected(request: &ConnectRequest, answer: &ConnectResponse) -> Self {
        let mut ends = Self {
            client: Machine::new(Role::Client),
            server: Machine::new(Role::Server),
            stream: 0,
            wire: Vec::with_capacity(256 << 10),
        };
        ends.stream = ends.open(request, answer);
        ends
    }

    /// Asks for a tunnel and grants it: both heads are written and read. Its number.
    ///
    /// # Panics
    /// If the request or its answer does not arrive.
    pub fn open(&mut self, request: &ConnectRequest, answer: &ConnectResponse) -> u32 {
        let id = self.client.open(request).expect("there is room");
        self.to_server();
        let asked = std::iter::from_fn(|| self.server.event())
            .any(|event| matches!(event, Event::Request(asked, _) if asked == id));
        assert!(asked, "the request has not arrived");
        self.server.respond(id, answer);
        self.wire.clear();
        self.server.output(&mut self.wire);
        let now = Instant::now();
        self.client.input(&self.wire, now).expect("an answer");
        let answered = std::iter::from_fn(|| self.client.event())
            .any(|event| matches!(event, Event::Response(answered, _) if answered == id));
        assert!(answered, "the answer has not arrived");
        id
    }

    /// Sends `payload` through the first stream and takes it out at the other end; how much came.
    ///
    /// # Panics
    /// If the server does not understand it.
    pub fn carry(&mut self, payload: &[u8]) -> usize {
        self.wire.clear();
        let sent = self.client.send_data(self.stream, payload, &mut self.wire);
        self.server
            .input(&self.wire, Instant::now())
            .expect("a frame");
        while self.server.event().is_some() {}
        let mut taken = 0;
        while let Taken::Data(piece) = self.server.take(self.stream) {
            taken += piece.len();
        }
        assert_eq!(taken, sent, "what was sent comes");
        taken
    }

    fn to_server(&mut self) {
        self.wire.clear();
        self.client.output(&mut self.wire);
        let taken = self.server.input(&self.wire, Instant::now());
        taken.expect("a request");
    }
}

impl std::fmt::Debug for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ends")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}
