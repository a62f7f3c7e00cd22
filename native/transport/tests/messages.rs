//! Whole messages between two nodes, and who is woken for them, how often.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use support::{Pair, block_on, pair, stream_between, write_all};
use swarmnode_transport::Error;
use swarmnode_transport::channel::Channel;

const HEADER: &[u8] = b"\x80";
const LIMIT: usize = 8 << 20;

fn channels(pair: &Pair) -> (Arc<Channel>, Arc<Channel>) {
    let (near, far) = stream_between(&pair.one, &pair.two);
    let [here, there] = &pair.nodes;
    (Channel::new(near, Arc::downgrade(here.runtime())), Channel::new(far, Arc::downgrade(there.runtime())))
}

fn some_body(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 31) as u8).collect()
}

#[test]
fn a_receiver_is_woken_once_for_a_long_message() {
    #[derive(Default)]
    struct Count(AtomicUsize, Option<std::thread::Thread>);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            self.1.as_ref().unwrap().unpark();
        }
    }
    let pair = pair();
    let (near, far) = channels(&pair);
    let count = Arc::new(Count(AtomicUsize::new(0), Some(std::thread::current())));
    let waker = Waker::from(Arc::clone(&count));
    let body = some_body(4 << 20);
    assert!(far.poll_receive(&mut Context::from_waker(&waker), LIMIT).is_pending());
    block_on(poll_fn(|cx| near.poll_send(cx, HEADER, &body))).unwrap();
    while count.0.load(Ordering::SeqCst) == 0 {
        std::thread::park();
    }
    let done = far.poll_receive(&mut Context::from_waker(Waker::noop()), LIMIT);
    let std::task::Poll::Ready(Ok(Some(message))) = done else { panic!("woken for {done:?}") };
    assert_eq!(message.body.bytes(), body);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
}

#[test]
fn what_nobody_waits_for_any_more_is_there_for_the_next_who_asks() {
    let pair = pair();
    let (near, far) = channels(&pair);
    let body = some_body(100_000);
    for into in [false, true] {
        assert!(far.poll_receive(&mut Context::from_waker(Waker::noop()), LIMIT).is_pending());
        block_on(poll_fn(|cx| near.poll_send(cx, HEADER, &body))).unwrap();
        let mut memory = vec![0; 100_001];
        let message = if into {
            block_on(poll_fn(|cx| far.poll_receive_into(cx, &mut memory)))
        } else {
            block_on(poll_fn(|cx| far.poll_receive(cx, LIMIT)))
        };
        let message = message.unwrap().unwrap();
        assert_eq!((message.header.as_slice(), message.body_bytes), (HEADER, body.len()));
        assert_eq!(if into { &memory[..100_000] } else { message.body.bytes() }, body);
    }
}

#[test]
fn a_message_that_does_not_fit_the_memory_of_the_next_who_asks_is_refused() {
    let pair = pair();
    let (near, far) = channels(&pair);
    assert!(far.poll_receive(&mut Context::from_waker(Waker::noop()), LIMIT).is_pending());
    block_on(poll_fn(|cx| near.poll_send(cx, HEADER, b"too much"))).unwrap();
    let refused = block_on(poll_fn(|cx| far.poll_receive_into(cx, &mut [0; 3])));
    assert!(matches!(refused, Err(Error::BadMessage(_))), "{refused:?}");
}

#[test]
fn the_end_and_rubbish_reach_who_waits() {
    let pair = pair();
    let (near, far) = channels(&pair);
    let waiting = std::thread::spawn({
        let far = Arc::clone(&far);
        move || block_on(poll_fn(|cx| far.poll_receive(cx, LIMIT)))
    });
    block_on(poll_fn(|cx| near.stream().poll_finish(cx))).unwrap();
    assert_eq!(waiting.join().unwrap(), Ok(None));
    let (near, far) = channels(&pair);
    assert!(far.poll_receive(&mut Context::from_waker(Waker::noop()), LIMIT).is_pending());
    block_on(write_all(near.stream(), &[b'?'; 64])).unwrap();
    for _ in 0..2 {
        let refused = block_on(poll_fn(|cx| far.poll_receive(cx, LIMIT)));
        assert!(matches!(refused, Err(Error::BadMessage(_))), "{refused:?}");
    }
}

#[test]
fn a_message_leaves_while_the_senders_runtime_is_busy() {
    let pair = pair();
    let (near, far) = channels(&pair);
    let ((busy, is_busy), (go_on, may_go_on)) = (mpsc::channel(), mpsc::channel::<()>());
    pair.nodes[0].runtime().spawn(async move {
        busy.send(()).unwrap();
        let _ = may_go_on.recv(); // holds the one thread on which all else of this node happens
    });
    is_busy.recv().unwrap();
    block_on(poll_fn(|cx| near.poll_send(cx, HEADER, b"at once"))).unwrap();
    let message = block_on(poll_fn(|cx| far.poll_receive(cx, LIMIT))).unwrap().unwrap();
    assert_eq!(message.body.bytes(), b"at once");
    drop(go_on);
}

#[test]
fn many_threads_send_at_once_and_nothing_is_lost() {
    const THREADS: usize = 8;
    const MESSAGES: usize = 50;
    let pair = pair();
    let ends: Vec<_> = (0..THREADS).map(|_| channels(&pair)).collect();
    std::thread::scope(|scope| {
        for (near, far) in &ends {
            scope.spawn(move || {
                for size in 0..MESSAGES {
                    let body = some_body(size * 997);
                    block_on(poll_fn(|cx| near.poll_send(cx, HEADER, &body))).unwrap();
                }
            });
            scope.spawn(move || {
                for size in 0..MESSAGES {
                    let message = block_on(poll_fn(|cx| far.poll_receive(cx, LIMIT))).unwrap().unwrap();
                    assert_eq!(message.body.bytes(), some_body(size * 997));
                }
            });
        }
    });
}
