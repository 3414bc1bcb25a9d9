//! The tasks that serve the streams of one connection.
//!
//! tokio's `JoinSet` would do, at more memory for each, and at a wake-up of whoever owns it for each that ends.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use slab::Slab;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};

/// Tasks that end with this.
#[derive(Default)]
pub(super) struct Handlers(Rc<Running>);

#[derive(Default)]
struct Running {
    tasks: RefCell<Slab<AbortHandle>>,
    /// The last task is gone.
    done: Notify,
}

impl Handlers {
    /// Starts a task. One that panics is reported by the runtime, and is gone like any other.
    pub(super) fn spawn(&self, handler: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.tasks.borrow_mut();
        let place = tasks.vacant_entry();
        let place_taken = Place {
            running: Rc::clone(&self.0),
            key: place.key(),
        };
        let task = spawn_local(Handler {
            handler,
            place: place_taken,
        });
        place.insert(task.abort_handle());
    }

    /// Resolves when no task is left.
    ///
    /// # Cancel safety
    /// It can be asked again.
    pub(super) async fn until_done(&self) {
        while !self.0.tasks.borrow().is_empty() {
            self.0.done.notified().await;
        }
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        // Outside of the borrow: what is let go of may come back here.
        let left: Vec<_> = self.0.tasks.borrow_mut().drain().collect();
        left.iter().for_each(AbortHandle::abort);
    }
}

pin_project! {
    /// A task, and its place among those that run.
    struct Handler<F> {
        #[pin]
        handler: F,
        place: Place,
    }
}

impl<F: Future<Output = ()>> Future for Handler<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().handler.poll(cx)
    }
}

struct Place {
    running: Rc<Running>,
    key: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tasks = self.running.tasks.borrow_mut();
        let task = tasks.try_remove(self.key);
        let is_last = tasks.is_empty();
        drop(tasks);
        drop(task);
        if is_last {
            self.running.done.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::sync::oneshot;
    use tokio::task::{LocalSet, yield_now};

    use super::Handlers;

    #[tokio::test]
    async fn tasks_are_forgotten_as_they_end_and_waited_for() {
        let story = async {
            let handlers = Handlers::default();
            handlers.until_done().await;
            let (end, ended) = oneshot::channel::<()>();
            handlers.spawn(async {});
            handlers.spawn(async { panic!("a handler that panics") });
            handlers.spawn(async move { ended.await.unwrap_or_default() });
            yield_now().await;
            assert_eq!(handlers.0.tasks.borrow().len(), 1);
            // Places are taken again.
            handlers.spawn(async {});
            yield_now().await;
            let all_done = async {
                handlers.until_done().await;
            };
            let (_done, sent) = tokio::join!(all_done, async { end.send(()) });
            sent.unwrap();
            assert!(handlers.0.tasks.borrow().is_empty());
        };
        LocalSet::new().run_until(story).await;
    }

    #[tokio::test]
    async fn tasks_end_with_whoever_started_them() {
        let story = async {
            let handlers = Handlers::default();
            let held = Rc::new(());
            for begins in [true, false] {
                let held = Rc::clone(&held);
                handlers.spawn(async move {
                    std::future::pending::<()>().await;
                    drop(held);
                });
                if begins {
                    yield_now().await;
                }
            }
            assert_eq!(Rc::strong_count(&held), 3);
            drop(handlers);
            yield_now().await;
            assert_eq!(Rc::strong_count(&held), 1);
        };
        LocalSet::new().run_until(story).await;
    }
}
