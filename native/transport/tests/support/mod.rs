//! What tests of two nodes share: polling as Python does, from a thread that is not the node's.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::{Future, poll_fn};
use std::net::{SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use swarmnode_transport::{Connection, Error, Node, Stream};

/// Runs a future on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// A node that listens on loopback over QUIC.
pub fn node(seed: u8) -> (Node, SocketAddr) {
    let node = Node::new([seed; 32]).unwrap();
    let addr = node.listen(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    (node, addr)
}

/// A connection over QUIC from both ends, and its nodes.
pub struct Pair {
    pub one: Connection,
    pub two: Connection,
    pub nodes: [Node; 2],
}

pub fn pair() -> Pair {
    let ((here, _), (there, addr)) = (node(1), node(2));
    let one = block_on(here.dial(addr, there.peer())).unwrap();
    let two = block_on(there.accept()).unwrap();
    Pair { one, two, nodes: [here, there] }
}

/// A stream and its other end; one byte makes QUIC tell of it.
pub fn stream_between(one: &Connection, two: &Connection) -> (Stream, Stream) {
    let near = block_on(one.open()).unwrap();
    block_on(write_all(&near, b"!")).unwrap();
    let far = block_on(two.accept()).unwrap();
    let mut first = [0];
    assert_eq!(block_on(poll_fn(|cx| far.poll_read(cx, &mut first))), Ok(1));
    (near, far)
}

pub async fn write_all(stream: &Stream, mut data: &[u8]) -> Result<(), Error> {
    while !data.is_empty() {
        let written = poll_fn(|cx| stream.poll_write(cx, data)).await?;
        data = &data[written..];
    }
    Ok(())
}

pub async fn read_to_end(stream: &Stream) -> Result<Vec<u8>, Error> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await? {
            0 => return Ok(all),
            read => all.extend_from_slice(&buffer[..read]),
        }
    }
}
