//! How quinn is set up, from `limits.rs`.

use super::congestion::SteadyConfig;
use crate::error::Error;
use crate::limits;
use crate::tls::Credentials;
use libp2p_identity::PeerId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;

/// Of connections whose largest datagrams have so many bytes.
pub(crate) fn transport(max_udp_payload_bytes: u16) -> Result<Arc<TransportConfig>, Error> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(max_udp_payload_bytes);
    let idle =
        IdleTimeout::try_from(limits::IDLE_TIME).map_err(|_| Error::Misuse("the idle time is too long"))?;
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(limits::KEEP_ALIVE_TIME))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES)
        .initial_rtt(limits::INITIAL_RTT)
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(Some(limits::DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(limits::DATAGRAM_BUFFER_BYTES)
        .congestion_controller_factory(Arc::new(SteadyConfig));
    Ok(Arc::new(config))
}

/// A socket's: peers on this machine may send us the largest datagrams.
pub(crate) fn endpoint() -> Result<EndpointConfig, Error> {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(limits::NEAR_UDP_PAYLOAD_BYTES)
        .map_err(|_| Error::Misuse("the datagrams are too small"))?;
    Ok(config)
}

pub(crate) fn server(
    credentials: &Credentials,
    transport: Arc<TransportConfig>,
) -> Result<quinn::ServerConfig, Error> {
    let crypto = QuicServerConfig::try_from(credentials.server()?).map_err(no_cipher)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport).max_incoming(limits::MAX_HANDSHAKES);
    Ok(config)
}

pub(crate) fn client(
    credentials: &Credentials,
    transport: Arc<TransportConfig>,
    peer: PeerId,
) -> Result<quinn::ClientConfig, Error> {
    let crypto = QuicClientConfig::try_from(credentials.client(peer)?).map_err(no_cipher)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport);
    Ok(config)
}

fn no_cipher(error: impl std::fmt::Display) -> Error {
    Error::Lost(format!("TLS cannot be set up ({error})"))
}
