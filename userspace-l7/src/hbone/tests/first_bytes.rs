//! Bytes that leave along with the request for their tunnel: one flight less, and never twice.

use super::*;
use crate::error::Retry;

#[test]
fn first_bytes_arrive_with_the_request_and_what_follows_comes_behind_them() {
    on_both_backends(|| async {
        let pool = Pool::new();
        let node = Node::start(|incoming| async move {
            // Whatever comes early waits for the answer.
            tokio::task::yield_now().await;
            echo(incoming).await;
        });
        let (mut stream, first) = node.ask(&pool, b"first ").await.unwrap();
        assert!(first);
        stream.send(b"second").await.unwrap();
        stream.finish().unwrap();
        let mut echoed = Vec::new();
        while let Some(piece) = stream.recv().await.unwrap() {
            echoed.extend(piece);
        }
        assert_eq!(echoed, b"first second");
    });
}

#[test]
fn what_has_no_room_in_one_frame_waits_for_the_answer() {
    on_both_backends(|| async {
        let pool = Pool::new();
        let node = Node::start(echo);
        let (mut stream, first) = node.ask(&pool, &vec![7; 200_000]).await.unwrap();
        assert!(!first);
        stream.finish().unwrap();
        assert_eq!(stream.recv().await, Ok(None));
    });
}

#[test]
fn an_answer_that_refuses_proves_that_nothing_was_passed_on_and_silence_does_not() {
    on_both_backends(|| async {
        let pool = Pool::new();
        let refusing =
            Node::start(
                |incoming| async move { incoming.reject(&ConnectResponse::refused(503, None)) },
            );
        let refused = refusing.ask(&pool, b"first").await.unwrap_err();
        assert!(
            matches!(refused, OpenError::Status { status: 503, .. }),
            "{refused:?}"
        );
        assert_eq!(refused.retry(), Retry::Safe);

        let giving_up = Node::start(|incoming| async move { drop(incoming) });
        let unsure = giving_up.ask(&pool, b"first").await.unwrap_err();
        assert!(matches!(unsure, OpenError::Unsure(_)), "{unsure:?}");
        assert_eq!(unsure.retry(), Retry::Never);
        let nothing_said = giving_up.ask(&pool, b"").await.unwrap_err();
        assert!(
            matches!(nothing_said, OpenError::Reset(_)),
            "{nothing_said:?}"
        );
    });
}

#[test]
fn a_tunnel_that_breaks_is_not_asked_again_with_bytes_that_have_left() {
    on_both_backends(|| async {
        let pool = Pool::new();
        thread_local! {
            static ASKED: Cell<u32> = const { Cell::new(0) };
        }
        ASKED.set(0);
        let node = Node::start(|incoming| async move {
            ASKED.set(ASKED.get() + 1);
            let _never_answered = incoming;
            std::future::pending::<()>().await;
        });
        let asking = node.ask(&pool, b"first");
        let breaks = async {
            until("the request has arrived", || ASKED.get() > 0).await;
            node.task.abort();
        };
        let (outcome, ()) = tokio::join!(asking, breaks);
        let unsure = outcome.unwrap_err();
        assert!(matches!(unsure, OpenError::Unsure(_)), "{unsure:?}");
        assert_eq!(ASKED.get(), 1);
    });
}
