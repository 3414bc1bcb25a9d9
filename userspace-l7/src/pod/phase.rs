//! How far the end of a pod has come, as told to its tasks on one worker.
//!
//! A channel of the runtime's would do, at 250 bytes for each of its readers: there are as many as connections.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;
use tokio::sync::Notify;

/// What a pod's tasks are told, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Accept nothing more; connections go on.
    Closing,
    /// Connections end after what they have under way, where the peer can be told.
    Parting,
    /// End connections too.
    Ended,
}

/// Tells a pod's tasks. Clones tell the same ones; when the last is gone, the pod has ended.
#[derive(Clone)]
pub(crate) struct Course(Rc<Teller>);

struct Teller(Rc<Told>);

struct Told {
    phase: Cell<Phase>,
    /// Whom to wake when the phase moves on, for each follower.
    followers: RefCell<Slab<Option<Waker>>>,
    /// The last follower is gone.
    left: Notify,
}

impl Course {
    /// A pod that is being served, and that nobody follows yet.
    pub(crate) fn new() -> Self {
        Self(Rc::new(Teller(Rc::new(Told {
            phase: Cell::new(Phase::Serving),
            followers: RefCell::default(),
            left: Notify::default(),
        }))))
    }

    /// A view for one task.
    pub(crate) fn follow(&self) -> Follower {
        Follower::of(&self.0.0)
    }

    /// For those who will follow later.
    pub(crate) fn outlook(&self) -> Outlook {
        Outlook(Rc::clone(&self.0.0))
    }

    /// Moves on to a phase, never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.0.advance(phase);
    }

    /// Whether no task follows.
    pub(crate) fn is_left(&self) -> bool {
        self.0.0.followers.borrow().is_empty()
    }

    /// Resolves when no task follows.
    ///
    /// # Cancel safety
    /// It can be asked again.
    pub(crate) async fn until_left(&self) {
        while !self.is_left() {
            self.0.0.left.notified().await;
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.advance(Phase::Ended);
    }
}

impl Told {
    fn advance(&self, phase: Phase) {
        if phase <= self.phase.get() {
            return;
        }
        self.phase.set(phase);
        // Outside of the borrow: what a waker runs may come back here.
        let mut followers = self.followers.borrow_mut();
        let waiting: Vec<_> = followers
            .iter_mut()
            .filter_map(|(_, waiting)| waiting.take())
            .collect();
        drop(followers);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// What a pod's tasks can learn of its phase. By itself it is no follower: nobody waits for it.
#[derive(Clone)]
pub(crate) struct Outlook(Rc<Told>);

impl Outlook {
    /// Resolves once the pod parts, or has ended. Whoever holds it follows the pod.
    pub(crate) fn parting(&self) -> impl Future<Output = ()> + use<> {
        let follower = Follower::of(&self.0);
        poll_fn(move |cx| follower.poll_reached(Phase::Parting, cx))
    }
}

/// One task's view of its pod's phase.
pub(crate) struct Follower {
    told: Rc<Told>,
    place: usize,
}

impl Follower {
    fn of(told: &Rc<Told>) -> Self {
        let place = told.followers.borrow_mut().insert(None);
        let told = Rc::clone(told);
        Self { told, place }
    }

    /// Ready once the phase is `phase` or a later one. Only the last caller is woken.
    pub(crate) fn poll_reached(&self, phase: Phase, cx: &Context<'_>) -> Poll<()> {
        if self.told.phase.get() >= phase {
            return Poll::Ready(());
        }
        let mut followers = self.told.followers.borrow_mut();
        match followers.get_mut(self.place) {
            Some(Some(known)) => known.clone_from(cx.waker()),
            Some(nobody) => *nobody = Some(cx.waker().clone()),
            None => {}
        }
        Poll::Pending
    }

    /// Resolves once the phase is `phase` or a later one.
    ///
    /// # Cancel safety
    /// It can be asked again.
    pub(crate) async fn reached(&self, phase: Phase) {
        poll_fn(|cx| self.poll_reached(phase, cx)).await;
    }
}

impl Clone for Follower {
    fn clone(&self) -> Self {
        Self::of(&self.told)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followers = self.told.followers.borrow_mut();
        let waiting = followers.try_remove(self.place);
        let is_last = followers.is_empty();
        drop(followers);
        drop(waiting);
        if is_last {
            self.told.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::{Course, Phase};

    #[tokio::test]
    async fn a_task_hears_of_its_phase_and_of_later_ones_and_is_waited_for() {
        let story = async {
            let course = Course::new();
            let (closing, ended) = (course.follow(), course.follow());
            let closing = spawn_local(async move { closing.reached(Phase::Closing).await });
            let parting = spawn_local(course.outlook().parting());
            let ended = spawn_local(async move { ended.reached(Phase::Ended).await });
            yield_now().await;
            assert!(!closing.is_finished());
            course.advance(Phase::Closing);
            closing.await.unwrap();
            assert!(!parting.is_finished());
            course.advance(Phase::Parting);
            parting.await.unwrap();
            assert!(!ended.is_finished() && !course.is_left());
            course.advance(Phase::Ended);
            course.until_left().await;
            ended.await.unwrap();
            course.advance(Phase::Serving);
            course.follow().reached(Phase::Ended).await;
        };
        LocalSet::new().run_until(story).await;
    }

    #[tokio::test]
    async fn with_the_last_teller_the_pod_has_ended() {
        let course = Course::new();
        let follower = course.follow().clone();
        let another = course.clone();
        drop(course);
        let still = follower.poll_reached(Phase::Closing, &Context::from_waker(Waker::noop()));
        assert!(still.is_pending());
        drop(another);
        follower.reached(Phase::Ended).await;
    }
}
