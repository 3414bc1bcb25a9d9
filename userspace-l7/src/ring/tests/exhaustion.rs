//! Receive slots run out: everyone goes on.

use super::*;
use crate::ring::buffers::SLOTS;

on_every_carrier!(
    held_buffers_starve_nobody,
    many_receives_at_once_all_complete,
    idle_sockets_hold_no_slot,
);

async fn held_buffers_starve_nobody() {
    let (near, far) = pair().await;
    let mut held = Vec::new();
    for round in 0..SLOTS * 3 {
        send(&near, &round.to_be_bytes()).await;
        let bytes = far.recv().await.unwrap();
        assert_eq!(*bytes, round.to_be_bytes());
        held.push(bytes);
    }
    tokio::join!(
        send_pattern(&near, 5, 1 << 20),
        expect_pattern(&far, 5, 1 << 20)
    );
    for (round, bytes) in held.iter().enumerate() {
        assert_eq!(
            **bytes,
            (round as u16).to_be_bytes(),
            "a held buffer was overwritten"
        );
    }
    drop(held);
    let (near, far) = pair().await;
    tokio::join!(
        send_pattern(&near, 6, 1 << 20),
        expect_pattern(&far, 6, 1 << 20)
    );
}

async fn many_receives_at_once_all_complete() {
    let mut pairs = Vec::new();
    for _ in 0..SLOTS * 3 {
        pairs.push(pair().await);
    }
    let (nears, fars): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let receivers: Vec<_> = fars
        .into_iter()
        .map(|far| {
            spawn_local(async move {
                let bytes = far.recv().await.unwrap();
                // Held while the others receive.
                tokio::task::yield_now().await;
                bytes.to_vec()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    for (number, near) in nears.iter().enumerate() {
        send(near, &number.to_be_bytes()).await;
    }
    for (number, receiver) in receivers.into_iter().enumerate() {
        assert_eq!(finished(receiver).await, number.to_be_bytes());
    }
}

async fn idle_sockets_hold_no_slot() {
    const MESSAGE: usize = 48 * 1024;
    let mut idle = Vec::new();
    for _ in 0..SLOTS * 2 {
        let (near, far) = pair().await;
        let waiting = far.clone();
        spawn_local(async move { waiting.recv().await.map(drop) });
        idle.push((near, far));
    }
    let (near, far) = pair().await;
    let waiting = spawn_local(async move { far.recv().await.unwrap().len() });
    tokio::task::yield_now().await;
    send(&near, &vec![9; MESSAGE]).await;
    // All in one slot: the heap's stand-ins are smaller, so the idle ones hold no slots.
    assert_eq!(finished(waiting).await, MESSAGE);
}
