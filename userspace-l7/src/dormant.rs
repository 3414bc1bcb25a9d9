//! L0: a future that hardly ever has anything to say, beside one that is polled for every packet.
//!
//! A connection's task waits for bytes, and besides for its pod's end, the worker's drain, a change of policy.
//! Asking each of those whenever bytes come takes locks and writes lists: as much time as some of the work itself.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Polls a future only when that future itself was woken.
///
/// # Cancel safety
/// As the future's own.
pub(crate) struct Dormant<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    /// The task that the bell wakes.
    task: Option<Waker>,
}

struct Bell {
    has_rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl<F: Future> Dormant<F> {
    pub(crate) fn new(future: F) -> Self {
        Self {
            future: Box::pin(future),
            bell: Arc::new(Bell {
                // The first poll asks.
                has_rung: AtomicBool::new(true),
                task: Mutex::default(),
            }),
            task: None,
        }
    }
}

impl<F: Future> Future for Dormant<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let known = self.task.as_ref();
        if !known.is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
            self.bell.wakes(self.task.clone());
        }
        let has_rung = &self.bell.has_rung;
        if !has_rung.load(Ordering::Relaxed) || !has_rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.bell));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

impl Bell {
    /// Whom to wake from now on. Told before the bell is looked at: whoever rings it meanwhile has either left the
    /// mark, or wakes the new task.
    fn wakes(&self, task: Option<Waker>) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = task;
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        let task = task.clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;

    use tokio::sync::Notify;

    use super::Dormant;

    #[tokio::test]
    async fn it_is_asked_when_it_was_woken_and_not_when_its_neighbour_was() {
        let asked = Rc::<Cell<u32>>::default();
        let news = Rc::<Notify>::default();
        let dormant = {
            let (asked, news) = (Rc::clone(&asked), Rc::clone(&news));
            let mut told = Box::pin(async move { news.notified().await });
            Dormant::new(poll_fn(move |cx| {
                asked.set(asked.get() + 1);
                told.as_mut().poll(cx)
            }))
        };
        let mut polls = 0;
        let busy = poll_fn(|cx| {
            polls += 1;
            match polls {
                10 => news.notify_one(),
                _ => cx.waker().wake_by_ref(),
            }
            Poll::<()>::Pending
        });
        tokio::select! {
            biased;
            () = busy => {}
            () = dormant => {}
        }
        assert_eq!(
            polls, 10,
            "the neighbour is polled for each of its own wakes"
        );
        assert_eq!(asked.get(), 2, "at first, and for the news");
    }

    #[tokio::test]
    async fn it_wakes_the_task_that_it_has_moved_to() {
        let news = Rc::<Notify>::default();
        let mut dormant = {
            let news = Rc::clone(&news);
            Dormant::new(async move { news.notified().await })
        };
        let early = poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut dormant).poll(cx))).await;
        assert_eq!(early, Poll::Pending);
        let tasks = tokio::task::LocalSet::new();
        let waiting = tasks.spawn_local(dormant);
        tasks
            .run_until(async {
                tokio::task::yield_now().await;
                news.notify_one();
                waiting.await
            })
            .await
            .unwrap();
    }
}
