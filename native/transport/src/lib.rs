//! The transport of swarmnode: libp2p connections and streams, polled from outside the runtime. Knows no Python.
//!
//! A [`Node`] owns one tokio thread, on which packets move and timers run. Whoever uses it polls operations and
//! streams from a thread of their own: inline first, and when that is pending, the [`bell`] rings once the operation
//! is worth another look.

pub mod bell;
mod carrier;
pub mod channel;
pub mod checksum;
pub mod error;
pub mod limits;
pub mod message;
pub mod muxed;
pub mod node;
mod noise;
pub mod quic;
mod select;
mod tcp;
mod tls;
pub mod yamux;

pub use error::Error;
pub use muxed::{Connection, Pending, Stream};
pub use node::Node;
pub use tokio::runtime::Handle;
