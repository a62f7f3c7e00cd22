//! Noise and yamux between two nodes, over TCP and inside of a QUIC stream: streams, their ends, who is who, rudeness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use support::{block_on, read_to_end, stream_between, write_all};
use swarmnode_transport::channel::Channel;
use swarmnode_transport::{Connection, Error, Node, Stream};

fn node(seed: u8) -> (Node, SocketAddr) {
    let node = Node::new([seed; 32]).unwrap();
    let addr = node.listen_tcp(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    (node, addr)
}

struct Pair {
    one: Connection,
    two: Connection,
    _outer: Option<[Connection; 2]>,
    nodes: [Node; 2],
}

fn over_tcp() -> Pair {
    let ((here, _), (there, addr)) = (node(1), node(2));
    let one = block_on(here.dial_tcp(addr, there.peer())).unwrap();
    let two = block_on(there.accept()).unwrap();
    assert_eq!(one.remote_addr(), Some(addr));
    Pair { one, two, _outer: None, nodes: [here, there] }
}

fn inside_quic() -> Pair {
    let ((here, _), (there, _)) = (node(1), node(2));
    let addr = there.listen(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let outer = [block_on(here.dial(addr, there.peer())).unwrap(), block_on(there.accept()).unwrap()];
    let (near, far) = stream_between(&outer[0], &outer[1]);
    let (upgrading, answering) =
        (here.upgrade(carrying(near, &here), Some(there.peer())), there.upgrade(carrying(far, &there), None));
    let two = thread::spawn(move || block_on(answering).unwrap());
    let one = block_on(upgrading).unwrap();
    assert_eq!(one.remote_addr(), None);
    Pair { one, two: two.join().unwrap(), _outer: Some(outer), nodes: [here, there] }
}

fn carrying(stream: Stream, node: &Node) -> Arc<Channel> {
    Channel::new(stream, Arc::downgrade(node.runtime()))
}

fn each(test: impl Fn(Pair)) {
    test(over_tcp());
    test(inside_quic());
}

async fn read_some(stream: &Stream, most: usize) -> Result<Vec<u8>, Error> {
    let mut buffer = vec![0; most];
    let read = poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await?;
    buffer.truncate(read);
    Ok(buffer)
}

fn finish(stream: &Stream) -> Result<(), Error> {
    block_on(poll_fn(|cx| stream.poll_finish(cx)))
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 % 251) as u8).collect()
}

#[test]
fn echoes_with_half_close() {
    each(|pair| {
        assert!(pair.one.opened_by_us() && !pair.two.opened_by_us());
        assert_eq!(pair.one.peer(), pair.nodes[1].peer());
        assert_eq!(pair.two.peer(), pair.nodes[0].peer());
        assert_eq!(pair.one.exporter(b"label", b"", 32), pair.two.exporter(b"label", b"", 32));
        assert_ne!(pair.one.exporter(b"label", b"", 32), pair.two.exporter(b"other", b"", 32));
        let data = bytes(40_000_000); // more than any window
        let (near, far) = stream_between(&pair.one, &pair.two);
        let echo = thread::spawn(move || {
            let mut all = 0;
            loop {
                let piece = block_on(read_some(&far, 100_000)).unwrap();
                if piece.is_empty() {
                    break;
                }
                all += piece.len();
                block_on(write_all(&far, &piece)).unwrap();
            }
            finish(&far).unwrap();
            all
        });
        thread::scope(|scope| {
            scope.spawn(|| {
                block_on(write_all(&near, &data)).unwrap();
                finish(&near).unwrap();
            });
            assert!(block_on(read_to_end(&near)).unwrap() == data);
        });
        assert_eq!(echo.join().unwrap(), data.len());
        assert_eq!(block_on(write_all(&near, b"late")), Err(Error::Finished));
        assert!(pair.one.stats().sent_bytes > 40_000_000);
    });
}

#[test]
fn many_streams_both_ways_do_not_disturb_each_other() {
    each(|pair| {
        let (stalled, _unread) = stream_between(&pair.one, &pair.two);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Nobody reads this: it waits, and everybody else goes on.
                let error = block_on(write_all(&stalled, &bytes(60_000_000)));
                assert_eq!(error, Err(Error::Closed));
            });
            let lively: Vec<_> = (0..20)
                .map(|number| {
                    let (one, two) = (&pair.one, &pair.two);
                    let (from, to) = if number % 2 == 0 { (one, two) } else { (two, one) };
                    stream_between(from, to)
                })
                .map(|(near, far)| {
                    let reading = scope.spawn(move || block_on(read_to_end(&far)).unwrap());
                    scope.spawn(move || {
                        block_on(write_all(&near, &bytes(700_000))).unwrap();
                        finish(&near).unwrap();
                    });
                    reading
                })
                .collect();
            for reading in lively {
                assert!(reading.join().unwrap() == bytes(700_000));
            }
            pair.one.close();
        });
    });
}

#[test]
fn a_writer_waits_for_its_reader_however_long() {
    each(|pair| {
        let (near, far) = stream_between(&pair.one, &pair.two);
        let mut cx = Context::from_waker(Waker::noop());
        let mut written = 0;
        while let Poll::Ready(taken) = near.poll_write(&mut cx, &[5; 10_000]) {
            written += taken.unwrap();
        }
        assert_eq!(written, 256 * 1024 - 1, "the first window, less the byte that opened the stream");
        assert_eq!(block_on(read_some(&far, 200_000)).unwrap().len().min(1), 1);
        drop(near);
        let rest = block_on(async {
            loop {
                if let Err(error) = read_some(&far, 200_000).await {
                    return error;
                }
            }
        });
        assert_eq!(rest, Error::Reset(0), "who drops a stream in the middle resets it");
    });
}

#[test]
fn tells_a_reset_from_an_end() {
    each(|pair| {
        let (near, far) = stream_between(&pair.one, &pair.two);
        near.reset(77);
        assert_eq!(block_on(read_to_end(&far)), Err(Error::Reset(0)));
        assert_eq!(block_on(write_all(&far, b"to nobody")), Err(Error::Reset(0)));
        assert_eq!(block_on(read_to_end(&near)), Err(Error::Finished));
        let (near, far) = stream_between(&pair.one, &pair.two);
        block_on(write_all(&near, b"all")).unwrap();
        near.close();
        assert_eq!(block_on(read_to_end(&far)), Ok(b"all".to_vec()));
        far.close();
        assert!(pair.one.end().is_none());
    });
}

#[test]
fn says_at_once_that_it_closes_and_loses_nothing_that_was_finished() {
    each(|pair| {
        let (near, far) = stream_between(&pair.one, &pair.two);
        let (open, waiting) = stream_between(&pair.one, &pair.two);
        block_on(write_all(&near, b"last words")).unwrap();
        finish(&near).unwrap();
        pair.one.close();
        pair.one.close();
        assert_eq!(block_on(pair.two.ended()), Ok(Error::Closed));
        assert_eq!(block_on(read_to_end(&far)), Ok(b"last words".to_vec()));
        assert_eq!(block_on(read_to_end(&waiting)), Err(Error::Closed));
        assert_eq!(block_on(read_to_end(&open)), Err(Error::Closed));
        assert_eq!(block_on(pair.two.open()).err(), Some(Error::Closed));
        assert_eq!(block_on(pair.two.accept()).err(), Some(Error::Closed));
        assert_eq!(block_on(pair.one.ended()), Ok(Error::Closed));
    });
}

#[test]
fn closing_a_node_says_so_too() {
    each(|pair| {
        pair.nodes[0].close();
        assert_eq!(block_on(pair.two.ended()), Ok(Error::Closed));
    });
}

#[test]
fn pings() {
    each(|pair| {
        let rtt = block_on(pair.one.ping()).unwrap();
        assert_eq!(pair.one.stats().rtt, rtt);
        pair.two.close();
        assert_eq!(block_on(pair.one.ended()), Ok(Error::Closed));
        assert!(block_on(pair.one.ping()).is_err());
    });
}

#[test]
fn streams_that_nobody_takes_up_are_bounded() {
    let pair = over_tcp();
    let streams: Vec<_> = (0..700).map(|_| block_on(pair.one.open()).unwrap()).collect();
    block_on(pair.one.ping()).unwrap(); // the other end has seen all of them
    let refused = streams
        .iter()
        .filter(|stream| stream.poll_read(&mut Context::from_waker(Waker::noop()), &mut [0]).is_ready())
        .count();
    assert_eq!(refused, 700 - 256);
}

#[test]
fn refuses_another_peer_than_the_one_dialled() {
    let ((here, _), (_there, addr), (other, _)) = (node(1), node(2), node(3));
    let error = block_on(here.dial_tcp(addr, other.peer())).unwrap_err();
    assert_eq!(error, Error::Lost("another peer answers at its address".into()));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(block_on(here.dial_tcp(nobody, other.peer())), Err(Error::Lost(_))));
}

#[test]
fn one_peer_has_so_many_connections() {
    let ((here, _), (there, addr)) = (node(1), node(2));
    let eight: Vec<_> = (0..8).map(|_| block_on(here.dial_tcp(addr, there.peer())).unwrap()).collect();
    let error = block_on(here.dial_tcp(addr, there.peer())).unwrap_err();
    assert_eq!(error, Error::Lost("too many connections with one peer".into()));
    drop(eight);
}

#[test]
fn garbage_on_the_port_then_honest_service() {
    let ((here, _), (there, addr)) = (node(1), node(2));
    let hello = b"\x13/multistream/1.0.0\n\x07/noise\n";
    let mut open = Vec::new();
    for number in 0..300u32 {
        let mut stranger = TcpStream::connect(addr).unwrap();
        let sent: &[u8] = match number % 5 {
            0 => &bytes(number as usize),
            1 => &hello[..number as usize % hello.len()],
            2 => &[hello, b"\x00\x20".as_slice(), &bytes(100)].concat(),
            3 => &[hello, b"\xff\xff".as_slice(), &[0; 70_000]].concat(),
            _ => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        let _ = stranger.write_all(sent); // it may have been thrown out by now
        if number % 2 == 0 {
            open.push(stranger);
        }
    }
    let one = block_on(here.dial_tcp(addr, there.peer())).unwrap();
    let two = block_on(there.accept()).unwrap();
    assert_eq!(two.peer(), here.peer());
    stream_between(&one, &two);
}

#[test]
fn plain_text_is_not_spoken() {
    let (_there, addr) = node(2);
    let mut stranger = TcpStream::connect(addr).unwrap();
    stranger.write_all(b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n").unwrap();
    let mut answer = [0; 24];
    stranger.read_exact(&mut answer[..20]).unwrap();
    assert_eq!(&answer[..20], b"\x13/multistream/1.0.0\n");
    stranger.read_exact(&mut answer[..4]).unwrap();
    assert_eq!(&answer[..4], b"\x03na\n");
}
