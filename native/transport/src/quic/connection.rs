//! A QUIC connection: its streams, its seat among the others, its pings.

use super::congestion::Steady;
use super::stream::Stream;
use crate::error::Error;
use crate::limits;
use crate::muxed::{self, Pending, Stats};
use bytes::Bytes;
use libp2p_identity::PeerId;
use quinn::VarInt;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const PING: u8 = 0;
const PONG: u8 = 1;
const PING_BYTES: usize = 9;

/// A connection over UDP; clones are the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: quinn::Connection,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    peer: PeerId,
    opened_by_us: bool,
    near: bool,
    counts: Arc<Counts>,
    pings: Mutex<Pings>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) streams: AtomicUsize,
    pub(super) queued_bytes: AtomicIsize,
}

#[derive(Debug, Default)]
struct Pings {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Instant>>,
}

impl Connection {
    /// A proved connection, watched from now on: must be called inside of the runtime.
    pub(crate) fn new(inner: quinn::Connection, peer: PeerId, opened_by_us: bool, seat: Seat) -> Self {
        let near = is_near(&inner);
        let shared =
            Arc::new(Shared { peer, opened_by_us, near, counts: Arc::default(), pings: Mutex::default() });
        tokio::spawn(watch(inner.clone(), Arc::clone(&shared), seat));
        Self { inner, shared }
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.shared.peer
    }

    pub(crate) fn opened_by_us(&self) -> bool {
        self.shared.opened_by_us
    }

    pub(crate) fn remote_addr(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    pub(crate) fn near(&self) -> bool {
        self.shared.near
    }

    pub(crate) fn open(&self) -> Pending<muxed::Stream> {
        let (connection, counts) = (self.inner.clone(), Arc::clone(&self.shared.counts));
        Box::pin(async move {
            let (send, receive) = connection.open_bi().await?;
            Ok(muxed::Stream::Quic(Stream::new(send, receive, counts)))
        })
    }

    pub(crate) fn accept(&self) -> Pending<muxed::Stream> {
        let (connection, counts) = (self.inner.clone(), Arc::clone(&self.shared.counts));
        Box::pin(async move {
            let (send, receive) = connection.accept_bi().await?;
            Ok(muxed::Stream::Quic(Stream::new(send, receive, counts)))
        })
    }

    pub(crate) fn ended(&self) -> Pending<Error> {
        let connection = self.inner.clone();
        Box::pin(async move { Ok(connection.closed().await.into()) })
    }

    pub(crate) fn end(&self) -> Option<Error> {
        self.inner.close_reason().map(Error::from)
    }

    pub(crate) fn close(&self) {
        self.inner.close(VarInt::from_u32(0), b"");
    }

    pub(crate) fn open_streams(&self) -> usize {
        self.shared.counts.streams.load(Ordering::Relaxed)
    }

    pub(crate) fn exporter(&self, label: &[u8], context: &[u8], length: usize) -> Result<Vec<u8>, Error> {
        let mut made = vec![0; length];
        self.inner
            .export_keying_material(&mut made, label, context)
            .map_err(|_| Error::Misuse("so many bytes cannot be exported"))?;
        Ok(made)
    }

    pub(crate) fn ping(&self) -> Pending<Duration> {
        let connection = self.clone();
        Box::pin(async move {
            let (answered, answer) = oneshot::channel();
            let nonce = {
                let mut pings = connection.shared.pings.lock().unwrap_or_else(PoisonError::into_inner);
                pings.waiting.retain(|_, waiting| !waiting.is_closed());
                if pings.waiting.len() >= limits::MAX_PINGS {
                    return Err(Error::Misuse("too many pings at once"));
                }
                let nonce = pings.next;
                pings.next += 1;
                pings.waiting.insert(nonce, answered);
                nonce
            };
            let asked = Instant::now();
            connection.inner.send_datagram(datagram(PING, nonce)).map_err(|error| match error {
                quinn::SendDatagramError::ConnectionLost(error) => error.into(),
                other => Error::Lost(other.to_string()),
            })?;
            match answer.await {
                Ok(at) => Ok(at.saturating_duration_since(asked)),
                Err(_) => Err(connection.end().unwrap_or(Error::Closed)),
            }
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        let stats = self.inner.stats();
        let queued = self.shared.counts.queued_bytes.load(Ordering::Relaxed);
        Stats {
            rtt: stats.path.rtt,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            cwnd: stats.path.cwnd,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            queued_bytes: u64::try_from(queued).unwrap_or(0),
            mtu: stats.path.current_mtu,
            delivers: Steady::delivers(self.inner.congestion_state()),
        }
    }
}

/// Whether the other end is on this machine.
fn is_near(connection: &quinn::Connection) -> bool {
    let there = connection.remote_address();
    let remote = there.ip().to_canonical();
    let local = || connection.local_ip().or_else(|| source_for(SocketAddr::new(remote, there.port())));
    remote.is_loopback() || local().is_some_and(|local| local.to_canonical() == remote)
}

/// The address of ours from which the system reaches another. quinn tells it only to who was dialled. Nothing is sent.
fn source_for(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn datagram(kind: u8, nonce: u64) -> Bytes {
    let mut bytes = [kind; PING_BYTES];
    if let Some((_, tail)) = bytes.split_first_mut() {
        tail.copy_from_slice(&nonce.to_le_bytes());
    }
    Bytes::copy_from_slice(&bytes)
}

/// Answer pings until the connection ends; then its seat is free.
async fn watch(connection: quinn::Connection, shared: Arc<Shared>, seat: Seat) {
    while let Ok(came) = connection.read_datagram().await {
        let Some((&kind, nonce)) = came.split_first() else { continue };
        let Ok(nonce) = nonce.try_into().map(u64::from_le_bytes) else { continue };
        match kind {
            // A full buffer drops the oldest: a flood of pings is answered as far as there is room.
            PING => drop(connection.send_datagram(datagram(PONG, nonce))),
            PONG => {
                let waiting =
                    shared.pings.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&nonce);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(Instant::now());
                }
            }
            _ => {}
        }
    }
    shared.pings.lock().unwrap_or_else(PoisonError::into_inner).waiting.clear();
    drop(seat);
}

/// How many connections there are, in all and for each peer.
#[derive(Debug, Default)]
pub(crate) struct Seats(Mutex<HashMap<PeerId, usize>>);

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    peer: PeerId,
    seats: Arc<Seats>,
}

impl Seats {
    /// Whether all are taken.
    pub(crate) fn full(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum::<usize>()
            >= limits::MAX_CONNECTIONS
    }

    /// A seat for a peer, unless it has too many.
    pub(crate) fn take(self: &Arc<Self>, peer: PeerId) -> Option<Seat> {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seats.entry(peer).or_default();
        if *count >= limits::MAX_CONNECTIONS_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Seat { peer, seats: Arc::clone(self) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = seats.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                seats.remove(&self.peer);
            }
        }
    }
}
