//! One collection, followed for good: listed, watched, resumed where it was, listed anew when its version has been
//! forgotten. A server of 1.34 or later sends the list as the beginning of the watch (streaming lists), an older one in
//! pages.
//!
//! Written here rather than taken from kube-runtime, whose watcher does not say when a watch is open again after an
//! outage, nor where a list that was broken off begins anew (docs/adr/0011).

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::api::{Api, Cause, Event, Trouble, Watching};
use super::collection::{Collection, Topic};

/// Waits after failures: doubled each time, up to the longest, and each of a random length around that.
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A watch that the server ends sooner than this was none.
const BRIEF: Duration = Duration::from_secs(1);
/// Within this, everyone begins again when one has found the server back.
const SPREAD: Duration = Duration::from_millis(500);

/// What is heard of one collection.
#[derive(Debug)]
pub(super) enum News {
    /// A list begins.
    Listing,
    /// One object of it.
    Listed(Value),
    /// It was all: whatever was not in it is gone.
    ListEnd,
    /// An object is new or different.
    Changed(Value),
    /// An object is gone.
    Deleted(Value),
    /// The server answers, and says what happens from now on.
    Following,
    /// There is no such kind in this cluster. None of its objects can be, either.
    NotInstalled,
    /// It stays as it is known to be until this is over.
    Failing(Trouble),
}

/// Which custom kinds are defined, by their resource names; nothing before the first list of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Installed {
    names: Option<BTreeSet<String>>,
    /// Those of a list that has not ended.
    listed: BTreeSet<String>,
    /// Goes up with each change, also of a definition that is there already: it may be served now.
    changes: u64,
}

impl Installed {
    /// Takes news of `CustomResourceDefinition`s; whether anybody waits for what they say.
    pub(super) fn take(&mut self, news: &News) -> bool {
        let name = |value: &Value| value["metadata"]["name"].as_str().map(str::to_owned);
        match news {
            News::Listing => self.listed.clear(),
            News::Listed(value) => self.listed.extend(name(value)),
            News::ListEnd => self.names = Some(std::mem::take(&mut self.listed)),
            News::Changed(value) => {
                let names = self.names.get_or_insert_default();
                names.extend(name(value));
            }
            News::Deleted(value) => {
                if let (Some(names), Some(name)) = (&mut self.names, name(value)) {
                    names.remove(&name);
                }
            }
            News::Following | News::NotInstalled | News::Failing(_) => return false,
        }
        let tells = !matches!(news, News::Listing | News::Listed(_));
        self.changes += u64::from(tells);
        tells
    }

    /// Whether a kind is defined; `None` if that is not known yet.
    fn has(&self, resource: &str) -> Option<bool> {
        self.names.as_ref().map(|names| names.contains(resource))
    }
}

/// Follows one collection.
pub(super) struct Follower {
    api: Api,
    collection: Collection,
    installed: watch::Receiver<Installed>,
    /// Told when a server that was away is back.
    recovered: watch::Sender<()>,
    tell: mpsc::Sender<(Topic, News)>,
    /// Up to where everything is known; `None`: it has to be listed.
    version: Option<String>,
    /// Whether the server sends lists as the beginning of a watch.
    streams_lists: bool,
    away: bool,
    /// Whether the server has answered since the last time that it was asked anew.
    answered: bool,
    wait: Duration,
}

/// The desk that news went to is closed: the agent stops.
struct Closed;

/// Why following came to an end.
enum End {
    Trouble(Trouble),
    Closed,
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<Closed> for End {
    fn from(_closed: Closed) -> Self {
        Self::Closed
    }
}

impl Follower {
    pub(super) fn new(
        api: Api,
        collection: Collection,
        installed: watch::Receiver<Installed>,
        recovered: watch::Sender<()>,
        tell: mpsc::Sender<(Topic, News)>,
    ) -> Self {
        Self {
            api,
            collection,
            installed,
            recovered,
            tell,
            version: None,
            streams_lists: true,
            away: false,
            answered: false,
            wait: SHORTEST_WAIT,
        }
    }

    /// Follows until nobody listens any more.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            self.answered = false;
            let ended = if self.collection.is_custom {
                self.follow_custom().await
            } else {
                let version = self.collection.versions.first().copied();
                self.follow(version.unwrap_or("v1")).await
            };
            if self.answered && began.elapsed() > BRIEF {
                self.wait = SHORTEST_WAIT;
            }
            match ended {
                Ok(()) if began.elapsed() > BRIEF => {}
                Ok(()) => self.pause().await,
                Err(End::Closed) => return,
                // Known to happen: to a version that nobody keeps any more, and to a connection that stood.
                Err(End::Trouble(trouble)) if trouble.cause == Cause::Expired => {
                    self.version = None;
                    self.pause().await;
                }
                Err(End::Trouble(trouble))
                    if self.answered && trouble.cause == Cause::Unreachable =>
                {
                    self.pause().await;
                }
                Err(End::Trouble(trouble)) => {
                    self.away = trouble.cause == Cause::Unreachable;
                    if self.tell(News::Failing(trouble)).await.is_err() {
                        return;
                    }
                    self.pause().await;
                }
            }
        }
    }

    /// Waits for the kind to be defined, then follows it for as long as it is.
    ///
    /// Only the list of definitions says that a kind is not there: an API server that has just started answers 404 for
    /// kinds that it will know in a moment, and to take that for the truth would take policies away.
    async fn follow_custom(&mut self) -> Result<(), End> {
        let resource = self.collection.resource();
        let mut installed = self.installed.clone();
        loop {
            let is_there = installed.borrow_and_update().has(&resource);
            match is_there {
                Some(true) => break,
                Some(false) => {
                    self.version = None;
                    self.tell(News::NotInstalled).await?;
                }
                None => {}
            }
            installed.changed().await.map_err(|_gone| Closed)?;
        }
        let Some(version) = self.api.served_version(&self.collection).await? else {
            return Err(End::Trouble(Trouble {
                cause: Cause::Unknown,
                message: format!(
                    "does not serve {resource} in a version that is read ({}), though it is defined: install one",
                    self.collection.versions.join(", ")
                ),
            }));
        };
        tokio::select! {
            ended = self.follow(version) => ended,
            () = removed(&mut installed, &resource) => Ok(()),
        }
    }

    /// Lists if need be, then watches until the server ends it.
    async fn follow(&mut self, version: &str) -> Result<(), End> {
        let watching = match self.version.take() {
            // Put back at once: nothing is forgotten if this fails.
            Some(known) => {
                self.version = Some(known.clone());
                self.api
                    .watch(&self.collection, version, Some(&known))
                    .await?
            }
            None if self.streams_lists => match self.stream_list(version).await? {
                Some(watching) => watching,
                None => return Ok(()),
            },
            None => {
                let known = self.list(version).await?;
                self.api
                    .watch(&self.collection, version, Some(&known))
                    .await?
            }
        };
        self.answered().await?;
        self.watch(watching).await
    }

    /// A list as the beginning of a watch; `None` if the server offers none, or ended it early.
    async fn stream_list(&mut self, version: &str) -> Result<Option<Watching>, End> {
        let opened = self.api.watch(&self.collection, version, None).await;
        let mut watching = match opened {
            // "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled".
            Err(trouble) if trouble.cause == Cause::Misunderstood => {
                self.streams_lists = false;
                return Ok(None);
            }
            other => other?,
        };
        self.answered().await?;
        self.tell(News::Listing).await?;
        while let Some(event) = watching.next().await? {
            match event {
                Event::Changed(object) => self.tell(News::Listed(object)).await?,
                Event::Bookmark { ends_initial: true } => {
                    self.version = watching.version().map(str::to_owned);
                    self.tell(News::ListEnd).await?;
                    return Ok(Some(watching));
                }
                // Before the end mark nothing else has a meaning.
                Event::Deleted(_) | Event::Bookmark { .. } => {}
            }
        }
        Ok(None)
    }

    /// A list in pages; up to where everything is known then.
    async fn list(&mut self, version: &str) -> Result<String, End> {
        let mut rest: Option<String> = None;
        loop {
            let page = self
                .api
                .list(&self.collection, version, rest.as_deref())
                .await?;
            if rest.is_none() {
                self.answered().await?;
                self.tell(News::Listing).await?;
            }
            for object in page.objects {
                self.tell(News::Listed(object)).await?;
            }
            rest = page.rest;
            if rest.is_none() {
                self.version = Some(page.version.clone());
                self.tell(News::ListEnd).await?;
                return Ok(page.version);
            }
        }
    }

    async fn watch(&mut self, mut watching: Watching) -> Result<(), End> {
        loop {
            let event = watching.next().await?;
            self.version = watching
                .version()
                .map(str::to_owned)
                .or_else(|| self.version.take());
            match event {
                None => return Ok(()),
                Some(Event::Changed(object)) => self.tell(News::Changed(object)).await?,
                Some(Event::Deleted(object)) => self.tell(News::Deleted(object)).await?,
                Some(Event::Bookmark { .. }) => {}
            }
        }
    }

    /// The server has answered: whatever was in the way is over.
    async fn answered(&mut self) -> Result<(), Closed> {
        self.answered = true;
        if std::mem::take(&mut self.away) {
            self.recovered.send_replace(());
        }
        self.tell(News::Following).await
    }

    async fn tell(&self, news: News) -> Result<(), Closed> {
        let topic = self.collection.topic.clone();
        self.tell
            .send((topic, news))
            .await
            .map_err(|_closed| Closed)
    }

    /// Waits before the next try: until the time is up, or somebody has found the server back, or a definition
    /// changed.
    async fn pause(&mut self) {
        let wait = self.wait.mul_f64(rand::random_range(0.5..1.5));
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        let mut recovered = self.recovered.subscribe();
        let mut installed = self.installed.clone();
        installed.mark_unchanged();
        let is_custom = self.collection.is_custom;
        tokio::select! {
            () = sleep(wait) => {}
            _ = recovered.changed(), if self.away => {
                sleep(SPREAD.mul_f64(rand::random_range(0.0..1.0))).await;
            }
            _ = installed.changed(), if is_custom => {}
        }
    }
}

/// Resolves when a kind is not defined any more.
async fn removed(installed: &mut watch::Receiver<Installed>, resource: &str) {
    let gone = |installed: &Installed| installed.has(resource) == Some(false);
    // An error is the end of the agent, and this is dropped then.
    if installed.wait_for(gone).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Installed, News};

    #[test]
    fn a_kind_is_missing_only_if_a_whole_list_says_so() {
        let definition = |name: &str| json!({ "metadata": { "name": name } });
        let mut installed = Installed::default();
        assert_eq!(installed.has("a"), None);
        for (news, tells, a, b) in [
            (News::Listing, false, None, None),
            (News::Listed(definition("a")), false, None, None),
            (News::ListEnd, true, Some(true), Some(false)),
            (News::Changed(definition("b")), true, Some(true), Some(true)),
            (
                News::Deleted(definition("a")),
                true,
                Some(false),
                Some(true),
            ),
            // A list that breaks off says nothing.
            (News::Listing, false, Some(false), Some(true)),
            (News::Listing, false, Some(false), Some(true)),
            (
                News::Listed(definition("a")),
                false,
                Some(false),
                Some(true),
            ),
            (News::ListEnd, true, Some(true), Some(false)),
        ] {
            let shown = format!("{news:?}");
            assert_eq!(installed.take(&news), tells, "{shown}");
            assert_eq!((installed.has("a"), installed.has("b")), (a, b), "{shown}");
        }
    }
}
