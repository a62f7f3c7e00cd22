//! Many streams over one run of bytes: Noise messages that hold yamux frames, as all libp2p implementations speak them.

mod connection;
mod frame;
mod parser;
mod stream;
mod table;

pub use connection::Connection;
pub(crate) use connection::{PROTOCOL, Start, Weak};
pub use stream::Stream;
