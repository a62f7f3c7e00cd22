//! What congestion controllers and initial windows do on wide links, in simulated time: one JSON line for each combination.
//!
//! `cargo run --release --example wan -- --controllers cubic,bbr --windows 14720,262144 --round-trips 20,100 --mbits 20,100
//! --losses 0,0.01 --queues 20,100 --seconds 10 --seeds 1,2,3`; a queue is given in milliseconds at the link's rate. Each line
//! says how long a message takes over a fresh connection, its handshake apart, and what a stream carries that is always full.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)] // what a connection tells of itself is of no use here
#[path = "../src/quic/congestion.rs"]
mod congestion;
#[path = "../tests/simulated/mod.rs"]
mod simulated;

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use congestion::SteadyConfig;
use quinn_proto::congestion::{BbrConfig, Controller, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn_proto::{ConnectionHandle, Dir, RttEstimator, StreamId, TransportConfig, VarInt};
use simulated::{Link, Pair};

/// As our transport has it.
const WINDOW_BYTES: u32 = 16 << 20;
const MESSAGE_BYTES: u64 = 4 << 20;
const GIVE_UP: Duration = Duration::from_secs(120);

fn factory(name: &str, window: u64) -> Arc<dyn ControllerFactory + Send + Sync> {
    match name {
        "cubic" => {
            let mut config = CubicConfig::default();
            config.initial_window(window);
            Arc::new(config)
        }
        "newreno" => {
            let mut config = NewRenoConfig::default();
            config.initial_window(window);
            Arc::new(config)
        }
        "bbr" => {
            let mut config = BbrConfig::default();
            config.initial_window(window);
            Arc::new(config)
        }
        "steady" => Arc::new(SteadyConfig),
        _ => {
            let part = name.strip_prefix("bbr*").expect("a controller's name").parse().expect("a part");
            let mut inner = BbrConfig::default();
            inner.initial_window((window as f64 / part) as u64);
            Arc::new(PartOfBbr { inner: Arc::new(inner), part })
        }
    }
}

/// BBR with a part of its window. quinn paces by the window and not by the rate that BBR asks for, and that window is twice
/// what the link holds.
#[derive(Clone)]
struct PartOfBbr {
    inner: Arc<BbrConfig>,
    part: f64,
}

impl ControllerFactory for PartOfBbr {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.inner.clone().build(now, current_mtu);
        Box::new(Part { inner, part: self.part, least: 4 * u64::from(current_mtu) })
    }
}

struct Part {
    inner: Box<dyn Controller>,
    part: f64,
    least: u64,
}

impl Controller for Part {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        ((self.inner.window() as f64 * self.part) as u64).max(self.least)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), part: self.part, least: self.least })
    }

    fn initial_window(&self) -> u64 {
        self.window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn transport(controller: &str, window: u64) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.congestion_controller_factory(factory(controller, window));
    config.stream_receive_window(VarInt::from_u32(WINDOW_BYTES));
    config.send_window(WINDOW_BYTES.into());
    config
}

/// A sender that always has something to send, and a reader that takes everything at once.
struct Flow {
    pair: Pair,
    sender: ConnectionHandle,
    receiver: Option<ConnectionHandle>,
    stream: Option<StreamId>,
    connected: Option<f64>,
    round_trips: Vec<f64>,
    to_send: u64,
    received: u64,
}

impl Flow {
    fn begin(link: Link, controller: &str, window: u64, seed: u64, to_send: u64) -> Self {
        let mut pair = Pair::new(link, transport(controller, window), seed);
        let sender = pair.connect(transport(controller, window));
        Self {
            pair,
            sender,
            receiver: None,
            stream: None,
            connected: None,
            round_trips: Vec::new(),
            to_send,
            received: 0,
        }
    }

    /// False when the connection is lost or the time is over.
    fn step(&mut self) -> bool {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let connection = self.pair.client.connections.get_mut(&self.sender).expect("the sender is there");
        if !connection.is_handshaking() {
            self.connected.get_or_insert((self.pair.now - self.pair.began).as_secs_f64());
            let stream = *self
                .stream
                .get_or_insert_with(|| connection.streams().open(Dir::Uni).expect("room for one"));
            while self.to_send > 0 {
                let piece = &ZEROS[..usize::try_from(self.to_send.min(ZEROS.len() as u64)).unwrap()];
                match connection.send_stream(stream).write(piece) {
                    Ok(taken) => self.to_send -= taken as u64,
                    Err(_) => break,
                }
            }
        }
        self.round_trips.push(connection.rtt().as_secs_f64() * 1e3);
        let going = self.pair.step();
        self.receive();
        going && self.pair.client.lost.is_empty() && self.pair.elapsed() < GIVE_UP
    }

    fn receive(&mut self) {
        if self.receiver.is_none() {
            self.receiver = self.pair.server.accepted.first().copied();
        }
        let Some(connection) = self.receiver.and_then(|handle| self.pair.server.connections.get_mut(&handle))
        else {
            return;
        };
        while connection.streams().accept(Dir::Uni).is_some() {}
        let Some(stream) = self.stream else { return };
        if let Ok(mut chunks) = connection.recv_stream(stream).read(true) {
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                self.received += chunk.bytes.len() as u64;
            }
            let _ = chunks.finalize();
        }
    }
}

/// Seconds of the handshake, and from there until the last byte is there.
fn message(link: Link, controller: &str, window: u64, seed: u64) -> (f64, f64) {
    let mut flow = Flow::begin(link, controller, window, seed, MESSAGE_BYTES);
    while flow.received < MESSAGE_BYTES && flow.step() {}
    let handshake = flow.connected.unwrap_or(f64::NAN);
    let all = if flow.received < MESSAGE_BYTES { f64::NAN } else { flow.pair.elapsed().as_secs_f64() };
    (handshake, all - handshake)
}

/// Megabits a second over all of the time and over its second half, the part of the datagrams that was dropped, the late round trip.
fn bulk(link: Link, controller: &str, window: u64, seed: u64, seconds: u64) -> (f64, f64, f64, f64) {
    let mut flow = Flow::begin(link, controller, window, seed, u64::MAX);
    let (whole, half) = (Duration::from_secs(seconds), Duration::from_secs(seconds) / 2);
    let mut by_half = None;
    while flow.pair.elapsed() < whole && flow.step() {
        if by_half.is_none() && flow.pair.elapsed() >= half {
            by_half = Some(flow.received);
        }
    }
    let late = flow.received - by_half.unwrap_or(flow.received);
    let rtts = flow.round_trips.iter().copied().skip(flow.round_trips.len() / 2).collect();
    let (sent, dropped) = flow.pair.sent_and_dropped();
    let megabits = |bytes: u64, time: Duration| bytes as f64 * 8e-6 / time.as_secs_f64();
    (megabits(flow.received, whole), megabits(late, half), dropped as f64 / sent as f64, median(rtts))
}

fn main() {
    let mut options: HashMap<String, Vec<String>> = [
        ("--controllers", "cubic,newreno,bbr"),
        ("--windows", "12000"),
        ("--round-trips", "20,100"),
        ("--mbits", "20,100,1000"),
        ("--losses", "0,0.001,0.01"),
        ("--queues", "50"),
        ("--seconds", "10"),
        ("--seeds", "1,2,3"),
    ]
    .iter()
    .map(|(name, value)| ((*name).to_owned(), value.split(',').map(str::to_owned).collect()))
    .collect();
    let given: Vec<String> = std::env::args().skip(1).collect();
    for pair in given.chunks(2) {
        assert!(options.contains_key(&pair[0]), "no such option: {}", pair[0]);
        options.insert(pair[0].clone(), pair[1].split(',').map(str::to_owned).collect());
    }
    let numbers =
        |name: &str| -> Vec<f64> { options[name].iter().map(|text| text.parse().unwrap()).collect() };
    let seconds = numbers("--seconds")[0] as u64;
    for controller in &options["--controllers"] {
        for (window, queue) in product(&numbers("--windows"), &numbers("--queues")) {
            for (round_trip, mbit) in product(&numbers("--round-trips"), &numbers("--mbits")) {
                for loss in numbers("--losses") {
                    let link = Link {
                        round_trip: Duration::from_secs_f64(round_trip / 1e3),
                        bits_per_second: mbit * 1e6,
                        queue_bytes: queue / 1e3 * mbit * 1e6 / 8.0,
                        loss,
                    };
                    let mut taken: [Vec<f64>; 6] = Default::default();
                    for seed in numbers("--seeds") {
                        let (handshake, message) = message(link, controller, window as u64, seed as u64);
                        taken[0].push(handshake);
                        taken[1].push(message);
                        if seconds > 0 {
                            let (whole, late, dropped, rtt) =
                                bulk(link, controller, window as u64, seed as u64, seconds);
                            taken[2].push(whole);
                            taken[3].push(late);
                            taken[4].push(dropped);
                            taken[5].push(rtt);
                        }
                    }
                    let [handshake, message, whole, late, dropped, rtt] = taken.map(median);
                    println!(
                        "{{\"controller\": \"{controller}\", \"initial_window\": {window}, \"round_trip_ms\": {round_trip}, \
                         \"mbit\": {mbit}, \"loss\": {loss}, \"queue_ms\": {queue}, \"handshake_s\": {handshake:.3}, \
                         \"message_s\": {message:.3}, \"bulk_mbit\": {whole:.1}, \"late_mbit\": {late:.1}, \
                         \"dropped\": {dropped:.4}, \"rtt_ms\": {rtt:.0}}}"
                    );
                }
            }
        }
    }
}

fn product(one: &[f64], other: &[f64]) -> Vec<(f64, f64)> {
    one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))).collect()
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}
