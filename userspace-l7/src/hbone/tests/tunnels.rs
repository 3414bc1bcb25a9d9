//! What streams carry, and how they share connections.

use super::*;

async fn read_all(reader: &mut StreamReader) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = reader.recv().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    all
}

#[test]
fn a_tunnel_echoes_and_half_closes_byte_for_byte() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let pool = Pool::new();
        let (mut reader, mut writer) = node.open(&pool).await.unwrap().split();
        let sent: Vec<u8> = (0..12_000_000_u32)
            .map(|at| ((at * 31) >> 3).to_le_bytes()[0])
            .collect();
        let up = async {
            for piece in sent.chunks(100_003) {
                writer.send(piece).await.unwrap();
            }
            writer.finish().unwrap();
            assert_eq!(writer.send(b"x").await, Err(StreamError::Finished));
        };
        let (received, ()) = tokio::join!(read_all(&mut reader), up);
        assert!(received == sent);
        assert_eq!(reader.recv().await, Ok(None), "the end stays");
    });
}

#[test]
fn the_handler_sees_who_asks_for_what_and_its_answer_arrives() {
    on_both_backends(|| async {
        let node = Node::start(|incoming| async move {
            assert_eq!(incoming.peer().id(), &id(ALICE));
            assert_eq!(incoming.request().forwarded_host(), Some("reviews.web"));
            if incoming.request().authority == Authority::parse("10.0.0.1:80").unwrap() {
                let baggage = Baggage {
                    namespace: "shop".into(),
                    ..Baggage::default()
                };
                let mut stream = incoming.accept(&ConnectResponse::accepted(Some(&baggage)));
                stream.finish().unwrap();
                assert_eq!(stream.recv().await, Ok(None));
            } else {
                incoming.reject(&ConnectResponse::refused(401, None));
            }
        });
        let pool = Pool::new();
        let client = "10.0.0.9:1".parse().unwrap();
        let ask = |to: &str| {
            ConnectRequest::to_address(to.parse().unwrap())
                .forwarded(Some(client), Some("reviews.web"))
        };
        let dial = || Node::dial(node.address, Arc::clone(&node.alice));
        let mut stream = pool
            .open(
                node.key(),
                &ask("10.0.0.1:80"),
                &mut FirstBytes::new(&[]),
                dial,
            )
            .await
            .unwrap();
        assert_eq!(&*stream.destination().unwrap().namespace, "shop");
        assert_eq!(stream.recv().await, Ok(None));
        stream.finish().unwrap();
        drop(stream);
        let denied = node.open_with(&pool, ask("10.0.0.2:80")).await;
        assert!(
            matches!(denied, Err(OpenError::Status { status: 401, .. })),
            "{denied:?}"
        );
        assert_eq!(node.accepted.get(), 1);
    });
}

#[test]
fn streams_share_connections_a_hundred_at_a_time() {
    on_both_backends(|| async {
        let node = Rc::new(Node::start(echo));
        let pool = Pool::new();
        let gate = Rc::new(tokio::sync::Semaphore::new(150));
        let open = Rc::new(Cell::new((0, 0)));
        let mut tasks = Vec::new();
        for number in 0..1000_u32 {
            let (node, pool, gate, open) = (
                Rc::clone(&node),
                pool.clone(),
                Rc::clone(&gate),
                Rc::clone(&open),
            );
            tasks.push(spawn_local(async move {
                let _turn = gate.acquire().await.unwrap();
                let mut stream = node.open(&pool).await.unwrap();
                let (now, most) = open.get();
                open.set((now + 1, most.max(now + 1)));
                let payload = number.to_be_bytes().repeat(1 + number as usize % 700);
                stream.send(&payload).await.unwrap();
                stream.finish().unwrap();
                assert!(read_all(&mut stream.split().0).await == payload);
                open.set((open.get().0 - 1, open.get().1));
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert!(open.get().1 > 100, "{:?}", open.get());
        assert_eq!(node.accepted.get(), 2);
        assert_eq!(pool.connections(), 2);
    });
}

#[test]
fn a_slow_reader_holds_up_its_own_stream_only_and_within_its_window() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let pool = Pool::new();
        let (mut slow, mut writer) = node.open(&pool).await.unwrap().split();
        let sent = Rc::new(Cell::new(0_usize));
        let count = Rc::clone(&sent);
        let sender = spawn_local(async move {
            let piece = vec![7; 64 << 10];
            while count.get() < 64 << 20 {
                writer.send(&piece).await.unwrap();
                count.set(count.get() + piece.len());
            }
            writer.finish().unwrap();
        });
        let mut last = 0;
        // Stuck once a whole round trip of another stream moved nothing.
        loop {
            let mut other = node.open(&pool).await.unwrap();
            other.send(&vec![1; 1 << 20]).await.unwrap();
            other.finish().unwrap();
            let mut echoed = 0;
            while let Some(piece) = other.recv().await.unwrap() {
                echoed += piece.len();
            }
            assert_eq!(echoed, 1 << 20);
            if sent.get() == last && last > 4 << 20 {
                break;
            }
            last = sent.get();
        }
        // Two windows (there and back), and what each side holds between them.
        assert!(last <= 14 << 20, "{last}");
        assert_eq!(node.accepted.get(), 1);
        assert_eq!(read_all(&mut slow).await.len(), 64 << 20);
        sender.await.unwrap();
    });
}

#[test]
fn a_bulk_sender_leaves_turns_to_the_others() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let pool = Pool::new();
        let mut tasks = Vec::new();
        for _stream in 0..4 {
            let (mut reader, mut writer) = node.open(&pool).await.unwrap().split();
            tasks.push(spawn_local(async move {
                writer.send(&vec![1; 8 << 20]).await.unwrap();
                writer.finish().unwrap();
            }));
            tasks.push(spawn_local(async move {
                assert_eq!(read_all(&mut reader).await.len(), 8 << 20);
            }));
        }
        // A small one gets through while they are at it.
        let mut small = node.open(&pool).await.unwrap();
        small.send(b"small").await.unwrap();
        assert_eq!(small.recv().await.unwrap().unwrap(), b"small");
        assert!(tasks.iter().any(|task| !task.is_finished()));
        for task in tasks {
            task.await.unwrap();
        }
    });
}
