//! Two nodes over real sockets: streams, their ends, who is who. No Python.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use libp2p_identity::Keypair;
use quinn::crypto::rustls::QuicClientConfig;
use std::future::poll_fn;
use std::net::UdpSocket;
use std::sync::Arc;
use support::{block_on, node, pair, read_to_end, write_all};
use swarmnode_transport::Error;

#[test]
fn echoes_with_half_close_both_ways() {
    let pair = pair();
    assert!(pair.one.opened_by_us() && !pair.two.opened_by_us());
    assert_eq!(pair.one.exporter(b"label", b"", 32), pair.two.exporter(b"label", b"", 32));
    assert_ne!(pair.one.exporter(b"label", b"", 32), pair.two.exporter(b"other", b"", 32));
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7) as u8).collect();
    let two = pair.two.clone();
    let echo = std::thread::spawn(move || {
        block_on(async {
            let stream = two.accept().await?;
            let all = read_to_end(&stream).await?;
            write_all(&stream, &all).await?;
            poll_fn(|cx| stream.poll_finish(cx)).await?;
            read_to_end(&stream).await // the other end has finished: this is at its end already
        })
    });
    let stream = block_on(pair.one.open()).unwrap();
    assert_eq!(pair.one.open_streams(), 1);
    block_on(write_all(&stream, &data)).unwrap();
    block_on(poll_fn(|cx| stream.poll_finish(cx))).unwrap();
    assert_eq!(block_on(read_to_end(&stream)).unwrap(), data);
    assert!(echo.join().unwrap().unwrap().is_empty());
    assert_eq!(block_on(poll_fn(|cx| stream.poll_write(cx, b"late"))), Err(Error::Finished));
    drop(stream);
    assert_eq!(pair.one.open_streams(), 0);
}

#[test]
fn tells_a_reset_from_an_end_and_carries_its_code() {
    let pair = pair();
    let stream = block_on(pair.one.open()).unwrap();
    block_on(write_all(&stream, b"half a mess")).unwrap();
    let theirs = block_on(pair.two.accept()).unwrap();
    stream.reset(77);
    assert_eq!(block_on(read_to_end(&theirs)), Err(Error::Reset(77)));
    let refused = block_on(async {
        loop {
            if let Err(error) = write_all(&theirs, &[0; 1 << 16]).await {
                return error;
            }
        }
    });
    assert_eq!(refused, Error::Reset(77));
    assert_eq!(block_on(read_to_end(&stream)), Err(Error::Finished));
}

/// An example of docs/PROTOCOL.md.
fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/../../tests/protocols/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let digits: Vec<u8> = text.chars().filter_map(|digit| Some(digit.to_digit(16)? as u8)).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn answers_a_ping_in_a_datagram_and_nothing_else_in_one() {
    let (there, addr) = node(2);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pong = runtime.block_on(async {
        let keypair = Keypair::ed25519_from_bytes([1; 32]).unwrap();
        let tls = libp2p_tls::make_client_config(&keypair, Some(there.peer())).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let here = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = here.connect_with(config, addr, "libp2p").unwrap().await.unwrap();
        let ping = golden("datagram_ping");
        for sent in [&[][..], &[0; 8], &[0; 10], &[2; 9], &golden("datagram_pong"), &ping] {
            connection.send_datagram(sent.to_vec().into()).unwrap();
        }
        connection.read_datagram().await.unwrap()
    });
    assert_eq!(pong, golden("datagram_pong"));
}

#[test]
fn refuses_another_peer_than_the_one_dialled() {
    let ((here, _), (_there, addr), (other, _)) = (node(1), node(2), node(3));
    let error = block_on(here.dial(addr, other.peer())).unwrap_err();
    assert_eq!(error, Error::Lost("another peer answers at its address".into()));
}

#[test]
fn says_at_once_that_it_closes() {
    let pair = pair();
    let stream = block_on(pair.one.open()).unwrap();
    block_on(write_all(&stream, b"hello")).unwrap();
    let theirs = block_on(pair.two.accept()).unwrap();
    pair.one.close();
    assert_eq!(block_on(pair.two.ended()), Ok(Error::Closed));
    assert_eq!(block_on(read_to_end(&theirs)).unwrap_err(), Error::Closed);
    assert_eq!(block_on(pair.two.open()).err(), Some(Error::Closed));
}

#[test]
fn closing_a_node_ends_its_connections() {
    let pair = pair();
    let [here, there] = &pair.nodes;
    here.close();
    assert_eq!(block_on(pair.two.ended()), Ok(Error::Closed));
    here.close();
    drop(there.dial("127.0.0.1:1".parse().unwrap(), here.peer()));
}

#[test]
fn pings_by_datagram_and_counts() {
    let pair = pair();
    let took = block_on(pair.one.ping()).unwrap();
    assert!(took.as_secs() < 5);
    let stats = pair.one.stats();
    assert!(stats.sent_bytes > 0 && stats.received_bytes > 0 && stats.cwnd > 0 && stats.mtu >= 1200);
    assert_eq!(stats.queued_bytes, 0);
}

#[test]
fn a_flood_of_handshakes_is_asked_for_its_address_and_honest_peers_get_in() {
    use std::time::Duration;
    const DIALS: usize = 60;
    let (dialler, (listener, addr)) = (node(1).0, node(2));
    // What a dialler sends first, caught by a socket that never answers, then sent on from another.
    let caught = UdpSocket::bind("127.0.0.1:0").unwrap();
    caught.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    flood.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut dials = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut buffer = [0u8; 2048];
    while seen.len() < DIALS {
        dials.push(dialler.dial(caught.local_addr().unwrap(), listener.peer()));
        let before = seen.len();
        while seen.len() == before {
            let length = caught.recv(&mut buffer).unwrap();
            flood.send_to(&buffer[..length], addr).unwrap();
            seen.insert(buffer[6..6 + usize::from(buffer[5])].to_vec()); // its destination connection id
        }
    }
    drop(dials);
    // A long header whose type is "retry": prove that you get what is sent to you.
    loop {
        let length = flood.recv(&mut buffer).expect("no newcomer was asked for its address");
        if length > 0 && buffer[0] & 0xF0 == 0xF0 {
            break;
        }
    }
    let connection = block_on(dialler.dial(addr, listener.peer())).unwrap();
    assert_eq!(connection.peer(), listener.peer());
}

#[test]
fn connections_come_and_go_without_leaving_their_seat() {
    let ((here, _), (there, addr)) = (node(1), node(2));
    for _ in 0..3 * swarmnode_transport::limits::MAX_CONNECTIONS_PER_PEER {
        let one = block_on(here.dial(addr, there.peer())).unwrap();
        let two = block_on(there.accept()).unwrap();
        one.close();
        assert_eq!(block_on(two.ended()), Ok(Error::Closed));
        assert_eq!(block_on(one.ended()), Ok(Error::Closed));
    }
}

#[test]
fn one_peer_gets_so_many_connections_and_no_more() {
    let ((here, _), (there, addr)) = (node(1), node(2));
    let mut held = Vec::new();
    for _ in 0..swarmnode_transport::limits::MAX_CONNECTIONS_PER_PEER {
        held.push(block_on(here.dial(addr, there.peer())).unwrap());
        held.push(block_on(there.accept()).unwrap());
    }
    assert!(block_on(here.dial(addr, there.peer())).is_err());
}
