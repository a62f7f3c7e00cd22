//! Our congestion controller on simulated links: fast on a fresh connection and after small talk, through loss, without a queue of its own making.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../src/quic/congestion.rs"]
mod congestion;
mod simulated;

use std::sync::Arc;
use std::time::Duration;

use congestion::{Steady, SteadyConfig};
use quinn_proto::{ConnectionHandle, Dir, StreamId, TransportConfig, VarInt};
use simulated::{Link, Pair};

const MESSAGE_BYTES: usize = 4 << 20;
const WINDOW_BYTES: u32 = 16 << 20;

fn link(round_trip_ms: u64, mbit: f64, loss: f64) -> Link {
    Link {
        round_trip: Duration::from_millis(round_trip_ms),
        bits_per_second: mbit * 1e6,
        queue_bytes: 0.02 * mbit * 1e6 / 8.0, // 20 ms
        loss,
    }
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .congestion_controller_factory(Arc::new(SteadyConfig))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into());
    config
}

/// A connection with one stream, over which messages go one after another.
struct Talk {
    pair: Pair,
    sender: ConnectionHandle,
    stream: StreamId,
    said: usize,
    heard: usize,
}

impl Talk {
    fn new(link: Link) -> Self {
        let mut pair = Pair::new(link, transport(), 7);
        let sender = pair.connect(transport());
        while pair.client.connections[&sender].is_handshaking() {
            assert!(pair.step(), "no handshake");
        }
        let connection = pair.client.connections.get_mut(&sender).unwrap();
        let stream = connection.streams().open(Dir::Uni).unwrap();
        Self { pair, sender, stream, said: 0, heard: 0 }
    }

    /// Say so much; the time until all of it is there.
    fn say(&mut self, bytes: usize) -> Duration {
        let began = self.pair.now;
        let whole = self.said + bytes;
        let zeros = vec![0; bytes];
        while self.heard < whole {
            let connection = self.pair.client.connections.get_mut(&self.sender).unwrap();
            while self.said < whole {
                match connection.send_stream(self.stream).write(&zeros[..whole - self.said]) {
                    Ok(count) => self.said += count,
                    Err(_) => break,
                }
            }
            assert!(self.pair.step(), "nothing will happen any more");
            assert!(self.pair.client.lost.is_empty(), "lost: {:?}", self.pair.client.lost);
            self.hear();
        }
        self.pair.now - began
    }

    fn hear(&mut self) {
        let Some(handle) = self.pair.server.accepted.first() else { return };
        let connection = self.pair.server.connections.get_mut(handle).unwrap();
        while connection.streams().accept(Dir::Uni).is_some() {}
        if let Ok(mut chunks) = connection.recv_stream(self.stream).read(true) {
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                self.heard += chunk.bytes.len();
            }
            let _ = chunks.finalize();
        }
    }

    fn round_trip(&self) -> Duration {
        self.pair.client.connections[&self.sender].rtt()
    }

    /// The part of what was sent that did not arrive.
    fn lost(&self) -> f64 {
        let (sent, dropped) = self.pair.sent_and_dropped();
        dropped as f64 / sent as f64
    }
}

#[test]
fn a_prompt_on_a_fresh_connection_does_not_crawl() {
    // At 100 Mbit/s the bytes alone take 0.34 s, and 50 ms to arrive.
    let time = Talk::new(link(100, 100.0, 0.0)).say(MESSAGE_BYTES);
    assert!(time < Duration::from_millis(1100), "{time:?}");
}

#[test]
fn one_datagram_in_a_hundred_lost_costs_little() {
    let mut talk = Talk::new(link(100, 100.0, 0.01));
    let time = talk.say(10 * MESSAGE_BYTES);
    // 3.4 s at the line's rate; Cubic needs minutes
    assert!(time < Duration::from_millis(5000), "{time:?}");
}

#[test]
fn the_queue_stays_short_and_nothing_is_lost_by_our_doing() {
    let mut talk = Talk::new(link(100, 20.0, 0.0));
    let time = talk.say(5 * MESSAGE_BYTES);
    assert!(time < Duration::from_millis(10_500), "{time:?}"); // 8.4 s at the line's rate
    assert!(talk.round_trip() < Duration::from_millis(112), "{:?}", talk.round_trip());
    assert!(talk.lost() < 0.03, "{}", talk.lost()); // of the start
}

#[test]
fn small_talk_does_not_make_a_long_message_crawl() {
    let mut talk = Talk::new(link(100, 100.0, 0.0));
    for _ in 0..50 {
        talk.say(5 << 10);
    }
    let first = talk.say(MESSAGE_BYTES);
    assert!(first < Duration::from_millis(1100), "{first:?}");
    for _ in 0..50 {
        talk.say(5 << 10);
    }
    talk.pair.wait(Duration::from_secs(20));
    let second = talk.say(MESSAGE_BYTES);
    assert!(second < Duration::from_millis(1100), "{second:?}");
}

#[test]
fn a_fast_long_link_survives_the_start() {
    // quinn's own controllers overshoot so far here that the receiver gives up ("too many gaps in stream buffer").
    let mut talk = Talk::new(link(100, 1000.0, 0.0));
    let time = talk.say(25 * MESSAGE_BYTES);
    assert!(time < Duration::from_millis(2500), "{time:?}"); // 0.84 s at the line's rate
}

#[test]
fn on_a_short_path_the_first_long_message_after_small_talk_is_fast() {
    let mut talk = Talk::new(Link { queue_bytes: 2e6, ..link(1, 4000.0, 0.0) });
    for _ in 0..200 {
        talk.say(5 << 10);
    }
    let time = talk.say(MESSAGE_BYTES);
    assert!(time < Duration::from_millis(25), "{time:?}"); // 8.4 ms at the line's rate
}

#[test]
fn what_a_path_delivers_is_known_once_it_was_filled() {
    for (mbit, loss) in [(20.0, 0.0), (100.0, 0.01)] {
        let mut talk = Talk::new(link(50, mbit, loss));
        let delivers = |talk: &Talk| {
            Steady::delivers(talk.pair.client.connections[&talk.sender].congestion_state().clone_box())
        };
        talk.say(2000);
        assert_eq!(delivers(&talk), None);
        talk.say(2 * MESSAGE_BYTES);
        let measured = delivers(&talk).expect("it was filled") as f64 * 8.0 / 1e6;
        assert!((0.8 * mbit..1.2 * mbit).contains(&measured), "{measured} of {mbit} Mbit/s");
    }
}
