//! Two QUIC endpoints over a link that exists only in memory and in simulated time: quinn's state machine without sockets, tasks or clocks.
//!
//! A day takes as long as its packets take to compute, and a busy machine changes no figure. Used by `tests/idle.rs` and `examples/wan.rs`.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use libp2p_identity::Keypair;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, Event, ServerConfig,
    TransportConfig,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What a UDP datagram over IPv4 is longer than what is in it.
const HEADER_BYTES: usize = 28;
/// How exactly tokio's timers fire; quinn's pacing depends on it.
const TIMER_GRAIN: Duration = Duration::from_millis(1);
/// Longer than any timer runs.
const NEVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// How many datagrams a driver hands to the socket at a time.
const MAX_SEGMENTS: usize = 10;

/// One direction and the other are alike.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub round_trip: Duration,
    pub bits_per_second: f64,
    /// What waits before the bottleneck; the rest is dropped.
    pub queue_bytes: f64,
    /// The part of the datagrams that is lost on the way, each by its own throw.
    pub loss: f64,
}

/// One direction of the link.
struct Wire {
    link: Link,
    free_at: Instant,
    under_way: VecDeque<(Instant, BytesMut)>,
    rng: StdRng,
    sent: u64,
    dropped: u64,
}

impl Wire {
    fn new(link: Link, now: Instant, seed: u64) -> Self {
        Self {
            link,
            free_at: now,
            under_way: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed),
            sent: 0,
            dropped: 0,
        }
    }

    fn send(&mut self, now: Instant, datagram: &[u8]) {
        self.sent += 1;
        let begins = self.free_at.max(now);
        let waiting = (begins - now).as_secs_f64() * self.link.bits_per_second / 8.0;
        let length = (datagram.len() + HEADER_BYTES) as f64;
        if waiting + length > self.link.queue_bytes || self.rng.random::<f64>() < self.link.loss {
            self.dropped += 1;
            return;
        }
        self.free_at = begins + Duration::from_secs_f64(length * 8.0 / self.link.bits_per_second);
        self.under_way.push_back((self.free_at + self.link.round_trip / 2, BytesMut::from(datagram)));
    }

    fn arrived(&mut self, now: Instant) -> Option<BytesMut> {
        match self.under_way.front() {
            Some((at, _)) if *at <= now => self.under_way.pop_front().map(|(_, datagram)| datagram),
            _ => None,
        }
    }
}

/// One end: an endpoint and its connections.
pub struct Side {
    pub endpoint: Endpoint,
    pub connections: HashMap<ConnectionHandle, Connection>,
    pub lost: Vec<String>,
    pub accepted: Vec<ConnectionHandle>,
    address: SocketAddr,
    scratch: Vec<u8>,
}

impl Side {
    fn take(&mut self, now: Instant, from: SocketAddr, datagram: BytesMut, out: &mut Wire) {
        self.scratch.clear();
        match self.endpoint.handle(now, from, None, None, datagram, &mut self.scratch) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(connection) = self.connections.get_mut(&handle) {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let (handle, connection) = self
                    .endpoint
                    .accept(incoming, now, &mut self.scratch, None)
                    .expect("an honest peer is accepted");
                self.connections.insert(handle, connection);
                self.accepted.push(handle);
            }
            Some(DatagramEvent::Response(transmit)) => out.send(now, &self.scratch[..transmit.size]),
            None => {}
        }
    }

    /// Do what is due now; whatever it sends goes into `out`.
    fn drive(&mut self, now: Instant, out: &mut Wire) {
        let mut gone = Vec::new();
        for (handle, connection) in &mut self.connections {
            if connection.poll_timeout().is_some_and(|at| at <= now) {
                connection.handle_timeout(now);
            }
            loop {
                self.scratch.clear();
                let Some(transmit) = connection.poll_transmit(now, MAX_SEGMENTS, &mut self.scratch) else {
                    break;
                };
                let datagrams = &self.scratch[..transmit.size];
                for datagram in datagrams.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                    out.send(now, datagram);
                }
            }
            while let Some(event) = connection.poll_endpoint_events() {
                if event.is_drained() {
                    gone.push(*handle);
                }
                if let Some(answer) = self.endpoint.handle_event(*handle, event) {
                    connection.handle_event(answer);
                }
            }
            while let Some(event) = connection.poll() {
                if let Event::ConnectionLost { reason } = event {
                    self.lost.push(reason.to_string());
                }
            }
        }
        for handle in gone {
            self.connections.remove(&handle);
        }
    }

    fn next_timeout(&mut self) -> Option<Instant> {
        self.connections.values_mut().filter_map(Connection::poll_timeout).min()
    }
}

/// Two ends and the link between them.
pub struct Pair {
    pub began: Instant,
    pub now: Instant,
    pub client: Side,
    pub server: Side,
    there: Wire,
    back: Wire,
    /// A link that is cut swallows everything.
    pub cut: bool,
}

impl Pair {
    pub fn new(link: Link, server: TransportConfig, seed: u64) -> Self {
        let now = Instant::now();
        let key = Keypair::generate_ed25519();
        let crypto = libp2p_tls::make_server_config(&key).unwrap();
        let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).unwrap()));
        config.transport_config(Arc::new(server));
        let side = |port: u16, config: Option<ServerConfig>| Side {
            endpoint: Endpoint::new(
                Arc::new(EndpointConfig::default()),
                config.map(Arc::new),
                true,
                Some([seed as u8; 32]),
            ),
            connections: HashMap::new(),
            lost: Vec::new(),
            accepted: Vec::new(),
            address: SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            scratch: Vec::new(),
        };
        Self {
            began: now,
            now,
            client: side(1, None),
            server: side(2, Some(config)),
            there: Wire::new(link, now, seed),
            back: Wire::new(link, now, seed + 1),
            cut: false,
        }
    }

    pub fn connect(&mut self, transport: TransportConfig) -> ConnectionHandle {
        let crypto = libp2p_tls::make_client_config(&Keypair::generate_ed25519(), None).unwrap();
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
        config.transport_config(Arc::new(transport));
        let (handle, connection) =
            self.client.endpoint.connect(self.now, config, self.server.address, "l").unwrap();
        self.client.connections.insert(handle, connection);
        handle
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.began
    }

    /// The datagrams sent and dropped so far, from the client to the server.
    pub fn sent_and_dropped(&self) -> (u64, u64) {
        (self.there.sent, self.there.dropped)
    }

    /// The same from the server to the client.
    pub fn sent_and_dropped_back(&self) -> (u64, u64) {
        (self.back.sent, self.back.dropped)
    }

    /// Let so much time pass.
    pub fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until && self.step_until(until) {}
        self.now = until;
    }

    /// Let both ends do what is due, then move the clock to what happens next. False when nothing ever will.
    pub fn step(&mut self) -> bool {
        self.step_until(self.now + NEVER)
    }

    fn step_until(&mut self, until: Instant) -> bool {
        self.client.drive(self.now, &mut self.there);
        self.server.drive(self.now, &mut self.back);
        if self.cut {
            self.there.under_way.clear();
            self.back.under_way.clear();
        }
        let timers = [self.client.next_timeout(), self.server.next_timeout()]
            .into_iter()
            .flatten()
            .map(|at| self.grained(at));
        let arrivals = [&self.there, &self.back]
            .into_iter()
            .filter_map(|wire| wire.under_way.front().map(|(at, _)| *at));
        let Some(next) = timers.chain(arrivals).min() else { return false };
        if next > until {
            return false;
        }
        self.now = next.max(self.now);
        while let Some(datagram) = self.there.arrived(self.now) {
            self.server.take(self.now, self.client.address, datagram, &mut self.back);
        }
        while let Some(datagram) = self.back.arrived(self.now) {
            self.client.take(self.now, self.server.address, datagram, &mut self.there);
        }
        true
    }

    fn grained(&self, at: Instant) -> Instant {
        let grains = (at - self.began).as_nanos().div_ceil(TIMER_GRAIN.as_nanos());
        self.began + TIMER_GRAIN * u32::try_from(grains).expect("49 days are enough")
    }
}
