//! The bench's agent as far as held connections go: a thread that answers each as it was told to.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use culvert_ebpf::HeldSyn;
use nix::poll::{PollFd, PollFlags, poll};

use super::{
    super::{Answer, Openings, Sockets},
    bench::canonical,
};

/// What the clerk knows.
#[derive(Debug, Default)]
struct Book {
    sockets: HashMap<u64, Arc<Sockets>>,
    /// By the address dialled; others are released.
    answers: HashMap<SocketAddr, Option<Answer>>,
    seen: Vec<HeldSyn>,
}

/// Releases every held connection but those to addresses that it was told another answer for.
pub(super) struct Clerk {
    book: Arc<Mutex<Book>>,
    stop: mpsc::Sender<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Clerk {
    pub(super) fn start(openings: Vec<Openings>) -> Self {
        let book = Arc::<Mutex<Book>>::default();
        let (stop, stopped) = mpsc::channel();
        let shared = Arc::clone(&book);
        let thread = thread::spawn(move || work(openings, &shared, &stopped));
        Self {
            book,
            stop,
            thread: Some(thread),
        }
    }

    /// Answers for this pod's connections from now on.
    pub(super) fn serve(&self, sockets: Arc<Sockets>) {
        let cookie = sockets.netns_cookie();
        self.book.lock().unwrap().sockets.insert(cookie, sockets);
    }

    /// Gives another answer, or none, to connections to an address.
    pub(super) fn answer(&self, to: SocketAddr, answer: Option<Answer>) {
        let to = canonical(to);
        self.book.lock().unwrap().answers.insert(to, answer);
    }

    /// Every SYN that was held so far.
    pub(super) fn seen(&self) -> Vec<HeldSyn> {
        self.book.lock().unwrap().seen.clone()
    }
}

fn work(mut openings: Vec<Openings>, book: &Mutex<Book>, stopped: &mpsc::Receiver<()>) {
    let announcements: Vec<OwnedFd> = openings
        .iter()
        .map(|openings| openings.announcements().unwrap())
        .collect();
    while matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
        let watch = |fd| PollFd::new(OwnedFd::as_fd(fd), PollFlags::POLLIN);
        let mut watched: Vec<_> = announcements.iter().map(watch).collect();
        // Not for ever, so that a stop is noticed.
        poll(&mut watched, 20_u16).unwrap();
        for openings in &mut openings {
            while let Some(syn) = openings.next() {
                book.lock().unwrap().take(syn);
            }
        }
    }
}

impl Book {
    fn take(&mut self, syn: HeldSyn) {
        self.seen.push(syn);
        let (source, to) = (syn.source(), syn.destination());
        let answer = self.answers.get(&to).copied();
        let answer = answer.unwrap_or(Some(Answer::Release));
        let sockets = self.sockets.get(&syn.key.netns_cookie);
        if let (Some(sockets), Some(answer)) = (sockets, answer) {
            sockets
                .answer(source, to, syn.tcp_header(), answer)
                .unwrap();
        }
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        let _ended = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
