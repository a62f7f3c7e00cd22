//! QUIC: quinn's endpoints, connections and streams, with libp2p's TLS.

mod config;
mod congestion;
mod connection;
mod driving;
mod endpoint;
mod stream;

pub use connection::Connection;
pub(crate) use connection::Seats;
pub(crate) use endpoint::{Endpoint, Setup, punch};
pub use stream::Stream;
