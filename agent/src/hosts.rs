//! Keeps the addresses of hosts that endpoints are known by (ServiceEntries with resolution DNS, WorkloadEntries with a
//! name): asks the system's resolver, again after a while, and tells what it says. What it said last holds while it fails.
//!
//! ```text
//!  wanted ─▶ under way ─┬─ addresses ─▶ told, again after REFRESH
//!                       └─ failed ─▶ the last ones stay, again after PAUSE
//!  no longer wanted: forgotten
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

/// Hosts whose addresses are wanted.
pub type Wanted = BTreeSet<Arc<str>>;

/// The addresses of each host that has some.
pub type Found = BTreeMap<Arc<str>, Arc<[IpAddr]>>;

/// For how long an answer holds: the system's resolver does not say. Half of what Istio takes by default
/// (`dnsRefreshRate` of the mesh's configuration).
const REFRESH: Duration = Duration::from_secs(30);

/// After an attempt that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// When nothing is due.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// Hosts that are looked up, on a thread of their own. Dropping it ends that.
#[derive(Debug)]
pub struct HostWatch {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HostWatch {
    /// Looks up what is wanted, and tells `take` all addresses whenever they have changed.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        wanted: watch::Receiver<Wanted>,
        take: impl Fn(Found) + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let desk = Desk {
            wanted,
            take,
            hosts: BTreeMap::new(),
        };
        let watching = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = desk.serve() => {}
                    _ = stopped => {}
                }
            });
            // Nobody waits for a resolver that has not answered yet.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new()
            .name("hosts".to_owned())
            .spawn(watching)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for HostWatch {
    fn drop(&mut self) {
        // Either is gone only if the thread has ended already.
        let _told = self.stop.take().map(|stop| stop.send(()));
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// Where answers arrive, and are handed on.
struct Desk<T> {
    wanted: watch::Receiver<Wanted>,
    take: T,
    hosts: BTreeMap<Arc<str>, Host>,
}

/// A host that is wanted.
#[derive(Default)]
struct Host {
    addresses: Option<Arc<[IpAddr]>>,
    /// When it is looked up; `None` while it is.
    due: Option<Instant>,
    error: Option<String>,
}

type Answer = (Arc<str>, io::Result<Vec<IpAddr>>);

impl<T: Fn(Found)> Desk<T> {
    /// Looks hosts up until nobody can want any more.
    async fn serve(mut self) {
        let mut running = JoinSet::new();
        self.follow();
        loop {
            let next = self.begin_due(&mut running);
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow();
                }
                Some(ended) = running.join_next() => self.finish(ended),
                () = sleep_until(next) => {}
            }
        }
    }

    fn follow(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let before = self.hosts.len();
        self.hosts.retain(|host, _| wanted.contains(host));
        let is_less = self.hosts.len() < before;
        let now = Instant::now();
        for host in wanted {
            self.hosts.entry(host).or_insert_with(|| Host {
                due: Some(now),
                ..Host::default()
            });
        }
        if is_less {
            self.tell();
        }
    }

    /// Starts what is due. When to look again.
    fn begin_due(&mut self, running: &mut JoinSet<Answer>) -> Instant {
        let now = Instant::now();
        let mut next = now + IDLE;
        for (name, host) in &mut self.hosts {
            match host.due {
                Some(due) if due <= now => {
                    host.due = None;
                    let name = Arc::clone(name);
                    running.spawn(async move {
                        let found = look_up(&name).await;
                        (name, found)
                    });
                }
                Some(due) => next = next.min(due),
                None => {}
            }
        }
        next
    }

    fn finish(&mut self, ended: Result<Answer, JoinError>) {
        let (name, answer) = match ended {
            Ok(answer) => answer,
            Err(failure) => match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_cancelled) => return,
            },
        };
        let Some(host) = self.hosts.get_mut(&name) else {
            return;
        };
        let now = Instant::now();
        match answer {
            Ok(addresses) => {
                host.due = Some(now + REFRESH);
                host.error = None;
                let addresses: Arc<[IpAddr]> = addresses.into();
                if host.addresses.as_ref() != Some(&addresses) {
                    debug!(host = %name, ?addresses, "looked up");
                    host.addresses = Some(addresses);
                    self.tell();
                }
            }
            Err(error) => {
                host.due = Some(now + PAUSE);
                let error = error.to_string();
                if host.error.as_ref() != Some(&error) {
                    let has_addresses = host.addresses.is_some();
                    warn!(host = %name, %error, has_addresses, "a host that endpoints are known by cannot be looked up");
                }
                host.error = Some(error);
            }
        }
    }

    fn tell(&self) {
        let found = self.hosts.iter().filter_map(|(name, host)| {
            let addresses = host.addresses.as_ref()?;
            Some((Arc::clone(name), Arc::clone(addresses)))
        });
        (self.take)(found.collect());
    }
}

/// In an order of ours: resolvers turn theirs, which is no change.
async fn look_up(host: &str) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((host, 0)).await?;
    let distinct: BTreeSet<IpAddr> = found.map(|one| one.ip().to_canonical()).collect();
    if distinct.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
    }
    Ok(distinct.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use tokio::sync::watch;

    use super::{Found, HostWatch, Wanted};

    #[test]
    fn what_is_wanted_is_told_until_it_is_not() {
        let wanted = watch::Sender::new(Wanted::new());
        let (told, hear) = mpsc::channel::<Found>();
        let watch = HostWatch::start(wanted.subscribe(), move |found| {
            // The test may have ended.
            let _heard = told.send(found);
        });
        let next = || hear.recv_timeout(Duration::from_secs(10)).unwrap();
        // Known to every system without asking anybody; the other one to none (RFC 6761 §6.4).
        let hosts = ["127.0.0.9", "nobody.invalid"].map(Arc::<str>::from);
        wanted.send_replace(hosts.iter().cloned().collect());
        let expected: Arc<[IpAddr]> = Arc::new([IpAddr::from([127, 0, 0, 9])]);
        assert_eq!(next(), Found::from([(Arc::clone(&hosts[0]), expected)]));
        wanted.send_replace(Wanted::from([Arc::clone(&hosts[1])]));
        assert_eq!(next(), Found::new());
        drop(watch);
        assert!(hear.recv().is_err(), "nothing is told any more");
    }
}
