//! A connection's task from its acceptance to its end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// What is left to do for a connection that was opened.
pub(super) type Carrying = Pin<Box<dyn Future<Output = ()>>>;

/// A connection's two stages, of which only one takes room at a time: most of its life is the second, which needs far less.
/// An `async fn` that awaits one after the other has room for both from its beginning to its end.
pub(super) enum Journey<F> {
    Opening(Pin<Box<F>>),
    Carrying(Carrying),
}

impl<F: Future<Output = Option<Carrying>>> Journey<F> {
    /// A connection that `opening` opens; one that leaves nothing was refused, or has been served by then.
    ///
    /// # Cancel safety
    /// As that of `opening` and what it leaves.
    pub(super) fn new(opening: F) -> Self {
        Self::Opening(Box::pin(opening))
    }
}

impl<F: Future<Output = Option<Carrying>>> Future for Journey<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                Self::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Some(carrying) => *self = Self::Carrying(carrying),
                    None => return Poll::Ready(()),
                },
                Self::Carrying(carrying) => return carrying.as_mut().poll(cx),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::task::{Context, Poll, Waker};

    use tokio::sync::oneshot;

    use super::{Carrying, Journey};

    #[test]
    fn what_a_connection_needed_to_be_opened_is_gone_while_it_is_carried() {
        let (end, ended) = oneshot::channel();
        let needed = Rc::new(());
        let held = Rc::clone(&needed);
        let mut journey = Box::pin(Journey::new(async move {
            let carrying: Carrying = Box::pin(async move { ended.await.unwrap_or_default() });
            assert_eq!(Rc::strong_count(&held), 2);
            Some(carrying)
        }));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(Rc::strong_count(&needed), 2);
        assert!(journey.as_mut().poll(&mut cx).is_pending());
        assert_eq!(Rc::strong_count(&needed), 1);
        end.send(()).unwrap();
        assert_eq!(journey.as_mut().poll(&mut cx), Poll::Ready(()));
        assert_eq!(size_of_val(&*journey), 2 * size_of::<usize>());
    }
}
