//! How streams and connections end, in order and otherwise.

use super::*;

#[test]
fn a_dropped_stream_is_a_reset_and_no_end() {
    on_both_backends(|| async {
        let node = Node::start(|incoming| async move {
            let mut stream = incoming.accept(&ConnectResponse::accepted(None));
            assert_eq!(stream.recv().await.unwrap().unwrap(), b"leave");
            // Dropped unfinished.
        });
        let pool = Pool::new();
        let mut stream = node.open(&pool).await.unwrap();
        stream.send(b"leave").await.unwrap();
        assert_eq!(
            stream.recv().await,
            Err(StreamError::Reset(ErrorCode::CANCEL))
        );
        assert_eq!(
            stream.send(b"x").await,
            Err(StreamError::Reset(ErrorCode::CANCEL))
        );
        // The waiting half learns of the other's reset.
        let (mut reader, writer) = node.open(&pool).await.unwrap().split();
        let waiting = spawn_local(async move { reader.recv().await });
        tokio::task::yield_now().await;
        writer.reset(ErrorCode::CONNECT_ERROR);
        assert!(matches!(waiting.await.unwrap(), Err(StreamError::Reset(_))));
    });
}

#[test]
fn a_broken_connection_breaks_its_streams_and_the_next_one_is_dialled_anew() {
    on_both_backends(|| async {
        let node = Node::start(|incoming| async move {
            let mut stream = incoming.accept(&ConnectResponse::accepted(None));
            while let Ok(Some(piece)) = stream.recv().await {
                stream.send(&piece).await.unwrap();
            }
        });
        let pool = Pool::new();
        let socket = Rc::new(std::cell::RefCell::new(None));
        let kept = Rc::clone(&socket);
        let dial = || {
            let (kept, alice, address) = (Rc::clone(&kept), Arc::clone(&node.alice), node.address);
            async move {
                let session = Node::dial(address, alice).await?;
                *kept.borrow_mut() = Some(session.tcp.clone());
                Ok(session)
            }
        };
        let mut stream = pool
            .open(node.key(), &request(), &mut FirstBytes::new(&[]), dial)
            .await
            .unwrap();
        stream.send(b"one").await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), b"one");
        let tcp: Option<Tcp> = socket.borrow_mut().take();
        tcp.unwrap().abort();
        let lost = stream.recv().await.unwrap_err();
        assert!(matches!(lost, StreamError::Lost(_)), "{lost:?}");
        assert!(stream.send(b"x").await.is_err());
        assert!(stream.finish().is_err());
        let mut again = node.open(&pool).await.unwrap();
        again.send(b"two").await.unwrap();
        assert_eq!(again.recv().await.unwrap().unwrap(), b"two");
        assert_eq!(node.accepted.get(), 2);
        assert_eq!(pool.connections(), 1);
    });
}

#[test]
fn a_draining_server_finishes_what_it_has_and_the_pool_goes_elsewhere() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let pool = Pool::new();
        let mut stream = node.open(&pool).await.unwrap();
        node.drain.send_replace(true);
        until("the client knows", || pool.connections() == 0).await;
        stream.send(b"still here").await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), b"still here");
        stream.finish().unwrap();
        assert_eq!(stream.recv().await, Ok(None));
        drop(stream);
        node.drain.send_replace(false);
        let mut next = node.open(&pool).await.unwrap();
        next.send(b"next").await.unwrap();
        assert_eq!(next.recv().await.unwrap().unwrap(), b"next");
        assert_eq!(node.accepted.get(), 2);
    });
}

#[test]
fn a_drained_pool_opens_no_more_and_lets_streams_finish() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let pool = Pool::new();
        let mut stream = node.open(&pool).await.unwrap();
        pool.drain();
        assert!(matches!(node.open(&pool).await, Err(OpenError::Closing)));
        stream.send(b"last").await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), b"last");
        stream.finish().unwrap();
        assert_eq!(stream.recv().await, Ok(None));
    });
}

#[test]
fn whoever_waits_for_a_dial_when_the_pool_is_drained_is_served() {
    on_both_backends(|| async {
        let node = Rc::new(Node::start(echo));
        let pool = Pool::new();
        let (asking, others) = (Rc::clone(&node), pool.clone());
        let waiting = spawn_local(async move { asking.open(&others).await });
        until("it dials", || node.accepted.get() == 1).await;
        pool.drain();
        let mut stream = waiting.await.unwrap().unwrap();
        stream.send(b"last").await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), b"last");
        assert_eq!(node.accepted.get(), 1);
    });
}

/// Accepts requests, and keeps them.
async fn say_nothing(incoming: Incoming) {
    std::future::pending::<()>().await;
    drop(incoming);
}

#[test]
fn a_server_that_answers_no_request_is_given_up() {
    on_both_backends(|| async {
        let node = Node::start(say_nothing);
        let pool = Pool::with(Patience {
            answer: Duration::from_millis(50),
            ..Patience::default()
        });
        let error = node.open(&pool).await.unwrap_err();
        assert!(matches!(error, OpenError::Unanswered), "{error:?}");
        let error = node.ask(&pool, b"first").await.unwrap_err();
        let OpenError::Unsure(error) = error else {
            panic!("{error:?}")
        };
        assert!(matches!(*error, OpenError::Unanswered), "{error:?}");
        assert_eq!(node.accepted.get(), 1, "others may have better luck");
    });
}

#[test]
fn a_server_that_allows_no_streams_is_not_dialled_for_ever() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        socket.listen(64).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let listener = Listener::from_fd(socket.into()).unwrap();
        let bob = Arc::clone(&node.bob);
        let server = spawn_local(async move {
            let mut sessions = Vec::new();
            loop {
                let tcp = listener.accept().await.unwrap();
                let mut session = tls::accept(tcp, &bob, soon()).await.unwrap();
                let (mut frames, mut out) = (Vec::new(), Vec::new());
                frame::push_settings(&mut frames, &[(frame::setting::MAX_CONCURRENT_STREAMS, 0)]);
                session.sealer.append(&mut out, &frames).unwrap();
                session.sealer.finish(&mut out).unwrap();
                session.tcp.send(out).await.0.unwrap();
                sessions.push(session);
            }
        });
        let pool = Pool::with(Patience {
            answer: Duration::from_millis(50),
            ..Patience::default()
        });
        let dials = Cell::new(0);
        for _ in 0..3 {
            let dial = || {
                dials.set(dials.get() + 1);
                Node::dial(address, Arc::clone(&node.alice))
            };
            let mut first = FirstBytes::new(&[]);
            let error = pool.open(node.key(), &request(), &mut first, dial).await;
            let error = error.unwrap_err();
            let is_given_up = matches!(error, OpenError::Refused | OpenError::Unanswered);
            assert!(is_given_up, "{error:?}");
        }
        assert!(dials.get() <= 9, "{} dials", dials.get());
        server.abort();
    });
}

#[test]
fn a_forgotten_pod_loses_its_tunnels_and_no_other_does() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let pool = Pool::new();
        let mut gone = node.open(&pool).await.unwrap();
        let other = PoolKey {
            pod: WorkloadUid::new("other"),
            ..node.key()
        };
        let dial = || Node::dial(node.address, Arc::clone(&node.alice));
        let mut stays = pool
            .open(other, &request(), &mut FirstBytes::new(&[]), dial)
            .await
            .unwrap();
        pool.forget(&WorkloadUid::new("pod"));
        assert_eq!(gone.recv().await, Err(StreamError::Lost(Lost::TakenDown)));
        stays.send(b"here").await.unwrap();
        assert_eq!(stays.recv().await.unwrap().unwrap(), b"here");
        assert_eq!(pool.connections(), 1);
    });
}

#[test]
fn one_dials_while_others_wait_and_all_learn_of_a_failure() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let pool = Pool::new();
        let dials = Rc::new(Cell::new(0));
        let attempt = |works: bool| {
            let (pool, key, dials) = (pool.clone(), node.key(), Rc::clone(&dials));
            let (alice, address) = (Arc::clone(&node.alice), node.address);
            spawn_local(async move {
                let dial = || {
                    dials.set(dials.get() + 1);
                    let alice = Arc::clone(&alice);
                    async move {
                        tokio::task::yield_now().await;
                        if works {
                            Node::dial(address, alice).await
                        } else {
                            Err(DialError::Connect(
                                std::io::ErrorKind::ConnectionRefused.into(),
                            ))
                        }
                    }
                };
                pool.open(key, &request(), &mut FirstBytes::new(&[]), dial)
                    .await
                    .map(drop)
            })
        };
        let failing: Vec<_> = (0..20).map(|_| attempt(false)).collect();
        for task in failing {
            let error = task.await.unwrap().unwrap_err();
            let OpenError::Dial(error) = error else {
                panic!("{error:?}")
            };
            assert!(matches!(&*error, DialError::Connect(error)
                if error.kind() == std::io::ErrorKind::ConnectionRefused));
        }
        assert_eq!(dials.get(), 1);
        let working: Vec<_> = (0..20).map(|_| attempt(true)).collect();
        for task in working {
            task.await.unwrap().unwrap();
        }
        assert_eq!(dials.get(), 2);
        // Whoever began the dial may leave: it goes on for the others.
        pool.forget(&WorkloadUid::new("pod"));
        let (first, second) = (attempt(true), attempt(true));
        tokio::task::yield_now().await;
        first.abort();
        second.await.unwrap().unwrap();
        assert_eq!(dials.get(), 3);
    });
}

async fn panicking() -> Result<Session, DialError> {
    panic!("a dial that panics")
}

#[test]
fn a_dial_that_panics_fails_those_who_wait_for_it_and_no_later_one() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let pool = Pool::new();
        let mut first = FirstBytes::new(&[]);
        let failed = pool
            .open(node.key(), &request(), &mut first, panicking)
            .await;
        let error = failed.unwrap_err();
        assert!(matches!(error, OpenError::Closing), "{error:?}");
        let mut stream = node.open(&pool).await.unwrap();
        stream.send(b"again").await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), b"again");
        assert_eq!(pool.connections(), 1);
    });
}

#[test]
fn a_handler_ends_with_its_server() {
    on_both_backends(|| async {
        let node = Node::start(|incoming| async move {
            let _stream = incoming.accept(&ConnectResponse::accepted(None));
            std::future::pending::<()>().await;
        });
        let pool = Pool::new();
        let mut stream = node.open(&pool).await.unwrap();
        node.task.abort();
        let lost = stream.recv().await.unwrap_err();
        assert!(matches!(lost, StreamError::Lost(_)), "{lost:?}");
    });
}

#[test]
fn a_silent_peer_is_given_up_and_a_quiet_one_is_not() {
    on_both_backends(|| async {
        let liveness = Liveness {
            ping_after: Duration::from_millis(20),
            dead_after: Duration::from_millis(200),
        };
        let node = Node::start(echo);
        let session = Node::dial(node.address, Arc::clone(&node.alice))
            .await
            .unwrap();
        let quiet = Connection::start(session, Role::Client, liveness);
        let mut stream = quiet
            .open(&request(), &mut FirstBytes::new(&[]))
            .await
            .unwrap();
        // Many pings long, and all are answered.
        let early = timeout(Duration::from_millis(500), stream.recv()).await;
        assert!(early.is_err(), "{early:?}");
        // Nobody serves the other end of this one.
        let session = node.silent().await;
        let silent = Connection::start(session, Role::Client, liveness);
        let lost = silent
            .open(&request(), &mut FirstBytes::new(&[]))
            .await
            .unwrap_err();
        assert!(matches!(lost, OpenError::Lost(Lost::Silent)), "{lost:?}");
        assert!(silent.is_closing());
    });
}

#[test]
fn a_tunnel_that_carries_nothing_for_long_is_let_go_and_a_used_one_is_not() {
    on_both_backends(|| async {
        let idle = Duration::from_millis(100);
        let node = Node::start(echo);
        let pool = Pool::with(Patience {
            idle,
            ..Patience::default()
        });
        let mut stream = node.open(&pool).await.unwrap();
        // A stream that says nothing is an application's silence, and no reason to end its tunnel.
        let early = timeout(idle * 5, stream.recv()).await;
        assert!(early.is_err(), "{early:?}");
        stream.send(b"still here").await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), b"still here");
        drop(stream);
        let since = Instant::now();
        until("the tunnel is let go", || pool.connections() == 0).await;
        assert!(since.elapsed() >= idle, "{:?}", since.elapsed());
        // The next one is dialled anew.
        drop(node.open(&pool).await.unwrap());
        assert_eq!(node.accepted.get(), 2);
    });
}

#[test]
fn a_broken_protocol_is_told_to_the_peer() {
    on_both_backends(|| async {
        let node = Node::start(echo);
        let mut session = Node::dial(node.address, Arc::clone(&node.alice))
            .await
            .unwrap();
        let mut out = Vec::new();
        session
            .sealer
            .append(&mut out, b"GET / HTTP/1.1\r\n\r\n, and so on")
            .unwrap();
        session.sealer.finish(&mut out).unwrap();
        session.tcp.send(out).await.0.unwrap();
        let mut told = Vec::new();
        loop {
            let mut received = session.tcp.recv().await.unwrap();
            assert!(!received.is_empty(), "close_notify comes before the end");
            let keep = |piece: &[u8]| {
                told.extend_from_slice(piece);
                Ok::<_, tls::RecordError>(())
            };
            if !session.opener.open(&mut received, keep).unwrap() {
                break;
            }
        }
        // The last frame is GOAWAY: stream 0, PROTOCOL_ERROR.
        assert!(
            told.ends_with(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            "{told:?}"
        );
    });
}
