//! Applications as scripts, on either end.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use socket2::{Domain, Socket, Type};
use tokio::task::{JoinHandle, spawn_local};

use super::PATIENCE;
use crate::ring::{Listener, Tcp};

/// Listens on a loopback address of our own.
pub(super) fn listen(address: SocketAddr) -> Listener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(128).unwrap();
    Listener::from_fd(socket.into()).unwrap()
}

/// One end of a connection that is spoken to in text.
pub(super) struct Talk {
    tcp: Tcp,
    heard: Vec<u8>,
}

impl Talk {
    pub(super) fn new(tcp: Tcp) -> Self {
        Self {
            tcp,
            heard: Vec::new(),
        }
    }

    pub(super) async fn connect(to: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        let tcp = Tcp::connect(socket.into(), to, PATIENCE).await.unwrap();
        Self::new(tcp)
    }

    pub(super) async fn say(&self, text: impl AsRef<[u8]>) {
        let (sent, _text) = self.tcp.send(text.as_ref().to_vec()).await;
        sent.unwrap();
    }

    /// Everything up to and with `end`; what came until the connection ended, if that is never heard.
    pub(super) async fn hear(&mut self, end: &str) -> String {
        loop {
            let found = self
                .heard
                .windows(end.len())
                .position(|piece| piece == end.as_bytes());
            if let Some(at) = found {
                let rest = self.heard.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.heard, rest)).unwrap();
            }
            match self.tcp.recv().await {
                Ok(received) if !received.is_empty() => self.heard.extend_from_slice(&received),
                _ => return String::from_utf8(std::mem::take(&mut self.heard)).unwrap(),
            }
        }
    }

    /// A head, and the body that its Content-Length announces.
    pub(super) async fn message(&mut self) -> (String, String) {
        let head = self.hear("\r\n\r\n").await;
        let length = field(&head, "content-length").map_or(0, |text| text.parse().unwrap());
        while self.heard.len() < length {
            let received = self.tcp.recv().await.unwrap();
            assert!(!received.is_empty(), "the body of {head:?} is cut short");
            self.heard.extend_from_slice(&received);
        }
        let rest = self.heard.split_off(length);
        let body = std::mem::replace(&mut self.heard, rest);
        (head, String::from_utf8(body).unwrap())
    }

    /// Whether the peer has ended the connection, in order or not.
    pub(super) async fn ends(&mut self) -> Ended {
        match self.tcp.recv().await {
            Ok(received) if received.is_empty() => Ended::InOrder,
            Ok(received) => panic!("{:?}", String::from_utf8_lossy(&received)),
            Err(_) => Ended::Reset,
        }
    }

    /// Resets the connection.
    pub(super) fn cut(self) {
        self.tcp.abort();
    }

    /// Ends our direction.
    pub(super) fn finish(&self) {
        self.tcp.shutdown_write().unwrap();
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    InOrder,
    Reset,
}

/// A field's value in a head.
pub(super) fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// An application that serves: each connection is a task, which ends with it.
pub(super) struct Application {
    accepted: Rc<Cell<usize>>,
    heads: Rc<RefCell<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Application {
    /// Runs `script` with each connection.
    pub(super) fn start<F: Future<Output = ()> + 'static>(
        address: SocketAddr,
        script: impl Fn(Talk, Rc<RefCell<Vec<String>>>) -> F + 'static,
    ) -> Self {
        let listener = listen(address);
        let (accepted, heads) = (Rc::<Cell<usize>>::default(), Rc::default());
        let (count, seen) = (Rc::clone(&accepted), Rc::clone(&heads));
        let task = spawn_local(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let tcp = listener.accept().await.unwrap();
                count.set(count.get() + 1);
                drop(connections.spawn_local(script(Talk::new(tcp), Rc::clone(&seen))));
            }
        });
        Self {
            accepted,
            heads,
            task,
        }
    }

    /// Answers every request on every connection with 200 and its own name as the body.
    pub(super) fn named(address: SocketAddr, name: &'static str) -> Self {
        Self::start(address, move |mut talk, heads| async move {
            loop {
                let (head, body) = talk.message().await;
                if head.is_empty() {
                    return;
                }
                heads.borrow_mut().push(format!("{head}{body}"));
                let length = name.len();
                talk.say(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}"
                ))
                .await;
            }
        })
    }

    /// Connections so far.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.get()
    }

    /// The requests that were heard so far.
    pub(super) fn heard(&self) -> Vec<String> {
        self.heads.borrow().clone()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.task.abort();
    }
}
