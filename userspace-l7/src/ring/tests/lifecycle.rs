//! How sockets and workers begin and end.

use super::*;

on_every_carrier!(
    abort_resets_the_peer_though_clones_and_receives_remain,
    refused_connections_say_so,
    connect_gives_up_in_time,
    closing_a_listener_ends_accept_and_the_queue,
    listener_closes_without_disturbing_another_holder,
    accepted_sockets_have_the_options,
    mapped_addresses_are_canonical,
    a_panicking_task_leaves_the_worker_alive,
    sockets_survive_until_their_last_clone,
);

async fn abort_resets_the_peer_though_clones_and_receives_remain() {
    let (near, far) = pair().await;
    let other = near.clone();
    let receiving = spawn_local(async move { other.recv().await });
    send(&near, b"x").await;
    assert_eq!(&*far.recv().await.unwrap(), b"x");
    near.abort();
    let error = far.recv().await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
    // The own receive ends too, with an error or the end of the stream.
    let ended = finished(receiving).await;
    assert!(ended.is_err() || ended.is_ok_and(|bytes| bytes.is_empty()));
}

async fn refused_connections_say_so() {
    let (listener, address) = listen(loopback(), 1);
    listener.close();
    drop(listener);
    let within = Tcp::connect_within(tcp_socket(), address, PATIENCE);
    for refused in [connect(address).await, within.await] {
        let error = refused.map(drop).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}

async fn connect_gives_up_in_time() {
    // A full accept queue drops the next SYN, and backlog 0 has room for very few.
    let (_listener, address) = listen(loopback(), 0);
    let mut queued = Vec::new();
    let little = Duration::from_millis(200);
    let error = loop {
        match Tcp::connect_within(tcp_socket(), address, little).await {
            Ok(tcp) => queued.push(tcp),
            Err(error) => break error,
        }
        assert!(queued.len() < 16, "the queue never fills");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    let late = Tcp::connect(tcp_socket(), address, little).await;
    let error = late.map(drop).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
}

async fn closing_a_listener_ends_accept_and_the_queue() {
    let (listener, address) = listen(loopback(), 16);
    let listener = std::rc::Rc::new(listener);
    let accepting = spawn_local({
        let listener = std::rc::Rc::clone(&listener);
        async move { listener.accept().await.map(drop) }
    });
    tokio::task::yield_now().await;
    listener.close();
    let error = finished(accepting).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
    assert_eq!(
        listener
            .accept()
            .await
            .map(drop)
            .unwrap_err()
            .raw_os_error(),
        Some(libc::ECANCELED)
    );
    // The socket is gone as soon as the wait for it was cancelled.
    while connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

async fn listener_closes_without_disturbing_another_holder() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&loopback().into()).unwrap();
    socket.listen(16).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let ours = Listener::from_fd(socket.try_clone().unwrap().into()).unwrap();
    let next = Listener::from_fd(socket.into()).unwrap();
    ours.close();
    let (client, accepted) = tokio::join!(connect(address), next.accept());
    assert_eq!(
        client.unwrap().local_addr().unwrap(),
        accepted.unwrap().peer_addr().unwrap()
    );
}

async fn accepted_sockets_have_the_options() {
    let (near, far) = pair().await;
    for tcp in [&near, &far] {
        let socket = SockRef::from(tcp);
        assert!(socket.nonblocking().unwrap());
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(180)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(180)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
    }
}

async fn mapped_addresses_are_canonical() {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())
        .unwrap();
    socket.listen(1).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let listener = Listener::from_fd(socket.into()).unwrap();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (near, far) = tokio::join!(connect(to), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!(far.local_addr().unwrap(), to);
    assert_eq!(far.peer_addr().unwrap(), near.local_addr().unwrap());
}

async fn a_panicking_task_leaves_the_worker_alive() {
    let (near, far) = pair().await;
    let panicked = spawn_local(async move {
        let _socket = near;
        panic!("on purpose");
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert!(
        far.recv().await.unwrap().is_empty(),
        "the dead task's socket is closed"
    );
    let (near, far) = pair().await;
    send(&near, b"alive").await;
    assert_eq!(&*far.recv().await.unwrap(), b"alive");
}

async fn sockets_survive_until_their_last_clone() {
    let (near, far) = pair().await;
    let clone = near.clone();
    drop(near);
    send(&clone, b"open").await;
    assert_eq!(&*far.recv().await.unwrap(), b"open");
    drop(clone);
    assert!(far.recv().await.unwrap().is_empty());
}

#[test]
fn a_worker_ends_with_operations_in_flight() {
    for backend in [Backend::Uring, Backend::Epoll] {
        let kept = run(backend, async {
            let (near, far) = pair().await;
            let (listener, _) = listen(loopback(), 1);
            spawn_local(async move {
                let sending = far.send(vec![0; 64 << 20]);
                let _ended = tokio::join!(far.recv(), sending, listener.accept());
            });
            tokio::task::yield_now().await;
            // A buffer outlives its worker.
            near.recv().await.unwrap()
        })
        .unwrap();
        assert!(kept.iter().all(|&byte| byte == 0));
        assert!(!kept.is_empty());
    }
}

#[test]
fn sockets_need_a_worker_and_workers_do_not_nest() {
    assert!(Tcp::from_fd(tcp_socket()).is_err());
    for backend in [Backend::Uring, Backend::Epoll] {
        assert!(
            run(backend, async { run(backend, async {}) })
                .unwrap()
                .is_err()
        );
    }
}
