//! Bytes arrive once, in order, whatever happens to the futures.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::task::Poll;
use std::thread;

use tokio::sync::mpsc;

use super::*;
use crate::ring::buffers::SLOT_LEN;

on_every_carrier!(
    both_directions_at_once_are_exact,
    half_close_leaves_the_other_direction_open,
    the_last_bytes_bring_the_end_along,
    no_end_is_known_while_bytes_wait,
    what_has_come_is_there_without_waiting,
    a_reset_stays_one_for_whoever_looked_without_waiting,
    end_of_stream_is_repeated,
    dropped_receives_lose_nothing,
    concurrent_send_is_refused_and_a_dropped_one_breaks_the_stream,
    a_rest_keeps_its_turn_and_breaks_the_stream_when_it_is_dropped,
    received_buffers_can_be_sent_on,
    slow_reader_bounds_what_a_sender_queues,
    nobody_waits_while_others_are_served,
);

async fn both_directions_at_once_are_exact() {
    const TOTAL: u64 = 64 << 20;
    let (near, far) = pair().await;
    tokio::join!(
        send_pattern(&near, 1, TOTAL),
        expect_pattern(&far, 1, TOTAL),
        send_pattern(&far, 2, TOTAL),
        expect_pattern(&near, 2, TOTAL),
    );
}

async fn half_close_leaves_the_other_direction_open() {
    let (near, far) = pair().await;
    for (one, other, reply) in [(&near, &far, true), (&far, &near, false)] {
        send(one, b"last words").await;
        one.shutdown_write().unwrap();
        assert_eq!(&*other.recv().await.unwrap(), b"last words");
        assert!(other.recv().await.unwrap().is_empty());
        if reply {
            send(other, b"still here").await;
            assert_eq!(&*one.recv().await.unwrap(), b"still here");
        }
    }
}

async fn the_last_bytes_bring_the_end_along() {
    let (near, far) = pair().await;
    // More than a segment, and more than a socket's buffer takes at once.
    for length in [1, 100_000, 8 << 20] {
        let (near, far) = if length == 1 {
            (near.clone(), far.clone())
        } else {
            pair().await
        };
        let reader = async {
            let mut received = 0;
            loop {
                let piece = far.recv().await.unwrap();
                if piece.is_empty() {
                    break received;
                }
                received += piece.len();
            }
        };
        let rest = near.begin_last_send(vec![7_u8; length]).unwrap();
        assert_eq!(rest.is_some(), length > 4 << 20, "{length} bytes");
        let rest = async {
            match rest {
                Some(rest) => rest.await,
                None => Ok(()),
            }
        };
        let (sent, received) = tokio::join!(rest, reader);
        sent.unwrap();
        assert_eq!(received, length);
        send(&far, b"answer").await;
        assert_eq!(&*near.recv().await.unwrap(), b"answer");
    }
}

#[test]
fn an_end_that_came_behind_the_last_bytes_is_known_on_a_ring() {
    for completing in [
        Completing::Deferred,
        Completing::Cooperative,
        Completing::Interrupting,
    ] {
        on_ring(completing, async {
            let (near, far) = pair().await;
            assert!(!far.has_ended());
            send(&near, b"first").await;
            assert_eq!(&*far.recv().await.unwrap(), b"first");
            assert!(!far.has_ended(), "more may come");
            // Loopback delivers in the call itself.
            send(&near, b"last").await;
            near.shutdown_write().unwrap();
            assert_eq!(&*far.recv().await.unwrap(), b"last");
            assert!(far.has_ended());
            assert!(far.recv().await.unwrap().is_empty());
            send(&far, b"answer").await;
            assert_eq!(&*near.recv().await.unwrap(), b"answer");
            assert!(!near.has_ended());
        });
    }
}

async fn no_end_is_known_while_bytes_wait() {
    let (near, far) = pair().await;
    let begun = poll_fn(|cx| Poll::Ready(far.poll_recv(cx))).await;
    assert!(begun.is_pending());
    send(&near, b"some").await;
    near.shutdown_write().unwrap();
    assert!(!far.has_ended(), "a receive is under way");
    assert_eq!(&*far.recv().await.unwrap(), b"some");
    // More than a slot takes: the rest waits before the end.
    let (near, far) = pair().await;
    send(&near, &vec![7; (SLOT_LEN as usize) + 1]).await;
    near.shutdown_write().unwrap();
    let mut received = 0;
    while received <= SLOT_LEN as usize {
        assert!(!far.has_ended(), "after {received} bytes");
        received += far.recv().await.unwrap().len();
    }
    assert!(far.recv().await.unwrap().is_empty());
}

async fn what_has_come_is_there_without_waiting() {
    let (near, far) = pair().await;
    assert!(far.received().is_empty());
    send(&near, b"request").await;
    // Loopback delivers in the send itself.
    assert_eq!(&*far.received(), b"request");
    send(&near, &[7; 5000]).await;
    let (beginning, rest) = (far.received(), far.recv().await.unwrap());
    assert_eq!(beginning.len() + rest.len(), 5000);
    near.shutdown_write().unwrap();
    assert!(far.received().is_empty());
    assert!(far.recv().await.unwrap().is_empty());
}

async fn a_reset_stays_one_for_whoever_looked_without_waiting() {
    let (near, far) = pair().await;
    near.abort();
    assert!(far.received().is_empty());
    assert!(far.recv().await.is_err(), "a cut is no end");
}

async fn end_of_stream_is_repeated() {
    let (near, far) = pair().await;
    drop(near);
    for _ in 0..3 {
        assert!(far.recv().await.unwrap().is_empty());
    }
}

async fn a_rest_keeps_its_turn_and_breaks_the_stream_when_it_is_dropped() {
    let (near, _far) = pair().await;
    let rest = near.begin_send(vec![7_u8; 16 << 20]).unwrap();
    let (refused, _buf) = near.send(vec![1]).await;
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    // Not even polled once: the half of it that has left is enough.
    drop(rest.expect("more than any socket's buffer"));
    let broken = near.begin_send(vec![1]).map(drop).unwrap_err();
    assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
}

async fn dropped_receives_lose_nothing() {
    const TOTAL: u64 = 1 << 20;
    let (near, far) = pair().await;
    let sender = spawn_local(async move {
        for position in (0..TOTAL).step_by(4096) {
            near.send(pattern_from(3, position, 4096)).await.0.unwrap();
            tokio::task::yield_now().await;
        }
        near.shutdown_write().unwrap();
        assert!(near.recv().await.unwrap().is_empty());
    });
    let (mut received, mut dropped) = (0, 0);
    loop {
        let polled_once = {
            let mut receiving = std::pin::pin!(far.recv());
            poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx))).await
        };
        let Poll::Ready(bytes) = polled_once else {
            dropped += 1;
            tokio::task::yield_now().await;
            continue;
        };
        let bytes = bytes.unwrap();
        if bytes.is_empty() {
            break;
        }
        assert!(*bytes == *pattern_from(3, received, bytes.len()));
        received += bytes.len() as u64;
    }
    assert_eq!(received, TOTAL);
    assert!(dropped > 10, "only {dropped} receives were dropped");
    drop(far);
    finished(sender).await;
}

async fn concurrent_send_is_refused_and_a_dropped_one_breaks_the_stream() {
    let (near, far) = pair().await;
    {
        let mut large = std::pin::pin!(near.send(vec![0; 64 << 20]));
        tokio::select! {
            biased;
            _ = &mut large => panic!("64 MiB fit into no socket buffer"),
            () = tokio::task::yield_now() => {}
        }
        let (refused, back) = near.send(vec![1]).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(back, [1]);
    }
    let (broken, _) = near.send(vec![1]).await;
    assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    drop(near);
    while far.recv().await.is_ok_and(|bytes| !bytes.is_empty()) {}
}

async fn received_buffers_can_be_sent_on() {
    let (client, proxy_down) = pair().await;
    let (proxy_up, server) = pair().await;
    let relay = spawn_local(async move {
        loop {
            let mut bytes = proxy_down.recv().await.unwrap();
            if bytes.is_empty() {
                break;
            }
            // What is cut off in front is not sent, and changes in place are.
            bytes.advance(1);
            bytes
                .iter_mut()
                .for_each(|byte| *byte = byte.to_ascii_uppercase());
            proxy_up.send(bytes).await.0.unwrap();
        }
    });
    send(&client, b"_abc").await;
    assert_eq!(&*server.recv().await.unwrap(), b"ABC");
    drop(client);
    finished(relay).await;
}

async fn slow_reader_bounds_what_a_sender_queues() {
    let (near, far) = pair().await;
    SockRef::from(&near).set_send_buffer_size(64 << 10).unwrap();
    SockRef::from(&far).set_recv_buffer_size(64 << 10).unwrap();
    let mut accepted = 0;
    // The reader reads one buffer and stops: what the sender gets rid of is bounded by the kernel's two
    // socket buffers, because nothing is received ahead of a `recv`.
    send(&near, b"first").await;
    assert_eq!(&*far.recv().await.unwrap(), b"first");
    while timeout(Duration::from_millis(200), near.send(vec![7; 4096]))
        .await
        .is_ok()
    {
        accepted += 4096;
        assert!(
            accepted < 4 << 20,
            "unbounded: {accepted} bytes accepted unread"
        );
    }
    assert!(accepted > 0);
}

/// Conversations with threads of other cores, whose bytes arrive at any moment of a worker's turn, and are answered by
/// tasks that no completion wakes: each answer comes long before a second has passed. (A mark that the kernel leaves
/// behind its work once kept a driver turning while they waited.)
async fn nobody_waits_while_others_are_served() {
    const TALKERS: usize = 2;
    const CONVERSATIONS: usize = 32;
    const ROUNDS: usize = 2_000;
    let (listener, address) = listen(loopback(), 64);
    let talkers: Vec<_> = (0..TALKERS)
        .map(|_| {
            thread::spawn(move || -> io::Result<()> {
                let connect = |_| {
                    let stream = std::net::TcpStream::connect(address)?;
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                    Ok(stream)
                };
                let mut streams: Vec<_> =
                    (0..CONVERSATIONS).map(connect).collect::<io::Result<_>>()?;
                for _ in 0..ROUNDS {
                    for stream in &mut streams {
                        stream.write_all(b"x")?;
                    }
                    for stream in &mut streams {
                        stream.read_exact(&mut [0])?;
                    }
                }
                Ok(())
            })
        })
        .collect();
    let mut echoes = Vec::new();
    for _ in 0..TALKERS * CONVERSATIONS {
        let tcp = listener.accept().await.unwrap();
        let (pass, mut passed) = mpsc::unbounded_channel();
        let answering = tcp.clone();
        echoes.push(spawn_local(async move {
            while let Some(bytes) = passed.recv().await {
                answering.send(bytes).await.0.unwrap();
            }
        }));
        echoes.push(spawn_local(async move {
            loop {
                let bytes = tcp.recv().await.unwrap();
                if bytes.is_empty() {
                    break;
                }
                pass.send(bytes).unwrap();
            }
        }));
    }
    for echo in echoes {
        finished(echo).await;
    }
    for talker in talkers {
        talker.join().unwrap().unwrap();
    }
}
