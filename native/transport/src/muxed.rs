//! What every kind of connection and stream can do, whatever it runs over.
//!
//! A new kind is one more variant in [`Connection`] and [`Stream`]. All calls may come from any thread, none blocks,
//! and none needs to be inside of the runtime.

use crate::error::Error;
use crate::{quic, yamux};
use libp2p_identity::PeerId;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Something under way; dropping it gives it up.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// What a connection knows of its path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// The round trip as estimated now.
    pub rtt: Duration,
    /// Packets sent.
    pub sent_packets: u64,
    /// Of these, how many were lost.
    pub lost_packets: u64,
    /// What may be under way at a time, bytes.
    pub cwnd: u64,
    /// Bytes sent, everything included.
    pub sent_bytes: u64,
    /// Bytes that came, everything included.
    pub received_bytes: u64,
    /// Bytes of messages that callers want to send and the connection has not taken yet.
    pub queued_bytes: u64,
    /// The largest datagram that fits the path.
    pub mtu: u16,
    /// Bytes a second that the path was seen to deliver while there was more to send.
    pub delivers: Option<u64>,
}

/// A connection to a peer that has proved who it is.
#[derive(Debug, Clone)]
pub enum Connection {
    /// Over UDP.
    Quic(quic::Connection),
    /// Over TCP, or inside of another connection.
    Yamux(yamux::Connection),
}

impl Connection {
    /// Who is at the other end.
    pub fn peer(&self) -> PeerId {
        match self {
            Self::Quic(connection) => connection.peer(),
            Self::Yamux(connection) => connection.peer(),
        }
    }

    /// Whether this end dialled.
    pub fn opened_by_us(&self) -> bool {
        match self {
            Self::Quic(connection) => connection.opened_by_us(),
            Self::Yamux(connection) => connection.opened_by_us(),
        }
    }

    /// What it runs over: `quic`, `tcp`, or a `stream` of another connection.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Quic(_) => "quic",
            Self::Yamux(connection) if connection.remote_addr().is_some() => "tcp",
            Self::Yamux(_) => "stream",
        }
    }

    /// Where the other end is; `None` when the connection runs inside of another.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Quic(connection) => Some(connection.remote_addr()),
            Self::Yamux(connection) => connection.remote_addr(),
        }
    }

    /// Whether the other end is on this machine, so that nothing goes over a wire.
    pub fn near(&self) -> bool {
        match self {
            Self::Quic(connection) => connection.near(),
            Self::Yamux(connection) => connection.near(),
        }
    }

    /// A new stream, as soon as the other end allows one more.
    pub fn open(&self) -> Pending<Stream> {
        match self {
            Self::Quic(connection) => connection.open(),
            Self::Yamux(connection) => connection.open(),
        }
    }

    /// The next stream that the other end opens.
    pub fn accept(&self) -> Pending<Stream> {
        match self {
            Self::Quic(connection) => connection.accept(),
            Self::Yamux(connection) => connection.accept(),
        }
    }

    /// Wait for the end; the error says whether it was meant ([`Error::Closed`]).
    pub fn ended(&self) -> Pending<Error> {
        match self {
            Self::Quic(connection) => connection.ended(),
            Self::Yamux(connection) => connection.ended(),
        }
    }

    /// Why it has ended, if it has.
    pub fn end(&self) -> Option<Error> {
        match self {
            Self::Quic(connection) => connection.end(),
            Self::Yamux(connection) => connection.end(),
        }
    }

    /// End it and all its streams at once, and tell the other end that it is meant.
    pub fn close(&self) {
        match self {
            Self::Quic(connection) => connection.close(),
            Self::Yamux(connection) => connection.close(),
        }
    }

    /// How many streams are open, in both directions.
    pub fn open_streams(&self) -> usize {
        match self {
            Self::Quic(connection) => connection.open_streams(),
            Self::Yamux(connection) => connection.open_streams(),
        }
    }

    /// Bytes that only the two ends of this very connection can make (RFC 5705).
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] when so many bytes cannot be made.
    pub fn exporter(&self, label: &[u8], context: &[u8], length: usize) -> Result<Vec<u8>, Error> {
        match self {
            Self::Quic(connection) => connection.exporter(label, context, length),
            Self::Yamux(connection) => connection.exporter(label, context, length),
        }
    }

    /// One datagram there and one back; how long it took.
    pub fn ping(&self) -> Pending<Duration> {
        match self {
            Self::Quic(connection) => connection.ping(),
            Self::Yamux(connection) => connection.ping(),
        }
    }

    /// What is known of the path.
    pub fn stats(&self) -> Stats {
        match self {
            Self::Quic(connection) => connection.stats(),
            Self::Yamux(connection) => connection.stats(),
        }
    }
}

/// One stream. Reading and writing do not disturb each other; two readers or two writers at once are a mistake, and
/// the earlier one is not woken.
#[derive(Debug)]
pub enum Stream {
    /// Of a QUIC connection.
    Quic(quic::Stream),
    /// Of a connection over TCP or inside of another.
    Yamux(yamux::Stream),
}

impl Stream {
    /// Bytes that have come, into the start of `buffer`; 0 once the other end has finished.
    ///
    /// # Errors
    ///
    /// Any but [`Error::BadMessage`].
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, Error>> {
        match self {
            Self::Quic(stream) => stream.poll_read(cx, buffer),
            Self::Yamux(stream) => stream.poll_read(cx, buffer),
        }
    }

    /// Take as much of `data` as there is room for now, at least one byte.
    ///
    /// # Errors
    ///
    /// Any but [`Error::BadMessage`].
    pub fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        match self {
            Self::Quic(stream) => stream.poll_write(cx, data),
            Self::Yamux(stream) => stream.poll_write(cx, data),
        }
    }

    /// Say that nothing more will be written; reading goes on.
    ///
    /// # Errors
    ///
    /// [`Error::Finished`] when it has been said, and whatever writing would fail with.
    pub fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Self::Quic(stream) => stream.poll_finish(cx),
            Self::Yamux(stream) => stream.poll_finish(cx),
        }
    }

    /// Close politely: what was written still goes out, what comes is refused.
    pub fn close(&self) {
        match self {
            Self::Quic(stream) => stream.close(),
            Self::Yamux(stream) => stream.close(),
        }
    }

    /// Drop both directions; the other end sees an error with this code.
    pub fn reset(&self, code: u64) {
        match self {
            Self::Quic(stream) => stream.reset(code),
            Self::Yamux(stream) => stream.reset(code),
        }
    }

    /// Note bytes that wait for [`Self::poll_write`], for [`Stats::queued_bytes`]; negative when they wait no more.
    pub fn queued(&self, change: isize) {
        match self {
            Self::Quic(stream) => stream.queued(change),
            Self::Yamux(stream) => stream.queued(change),
        }
    }
}
