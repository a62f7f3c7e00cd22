//! One UDP socket: connections come in over it, go out over it, and holes are punched from it.

use super::config;
use super::connection::{Connection, Seats};
use super::driving::Driving;
use crate::error::Error;
use crate::limits;
use crate::muxed;
use crate::tls::{self, Credentials};
use libp2p_identity::{Keypair, PeerId};
use quinn::{Incoming, ServerConfig, TransportConfig, VarInt};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// What all sockets of a node share.
pub(crate) struct Setup {
    credentials: Credentials,
    far: Arc<TransportConfig>,
    /// For peers on this machine.
    near: Arc<TransportConfig>,
    near_server: Arc<ServerConfig>,
    seats: Arc<Seats>,
    handshakes: AtomicUsize,
    accepted: mpsc::Sender<muxed::Connection>,
}

impl Setup {
    pub(crate) fn new(
        keypair: &Keypair,
        accepted: mpsc::Sender<muxed::Connection>,
    ) -> Result<Arc<Self>, Error> {
        let credentials = Credentials::new(keypair)?;
        let near = config::transport(limits::NEAR_UDP_PAYLOAD_BYTES)?;
        Ok(Arc::new(Self {
            far: config::transport(limits::MAX_UDP_PAYLOAD_BYTES)?,
            near_server: Arc::new(config::server(&credentials, Arc::clone(&near))?),
            near,
            credentials,
            seats: Arc::default(),
            handshakes: AtomicUsize::new(0),
            accepted,
        }))
    }

    fn transport(&self, addr: SocketAddr) -> Arc<TransportConfig> {
        Arc::clone(if is_near(addr) { &self.near } else { &self.far })
    }

    /// The seats that all connections of the node take, whatever they run over.
    pub(crate) fn seats(&self) -> Arc<Seats> {
        Arc::clone(&self.seats)
    }
}

/// One socket.
#[derive(Clone)]
pub(crate) struct Endpoint {
    quinn: quinn::Endpoint,
    /// The same socket once more, for datagrams that are no QUIC.
    socket: Arc<UdpSocket>,
    setup: Arc<Setup>,
}

impl Endpoint {
    /// Take over a bound socket, and take connections over it. Must be called inside of the runtime.
    pub(crate) fn new(socket: UdpSocket, setup: Arc<Setup>, runtime: Weak<Handle>) -> Result<Self, Error> {
        let server = config::server(&setup.credentials, Arc::clone(&setup.far))?;
        let broken = |error: std::io::Error| Error::Lost(format!("the socket cannot be used ({error})"));
        let extra = Arc::new(socket.try_clone().map_err(broken)?);
        let quinn =
            quinn::Endpoint::new(config::endpoint()?, Some(server), socket, Arc::new(Driving::on(runtime)))
                .map_err(broken)?;
        tokio::spawn(accept(quinn.clone(), Arc::clone(&setup)));
        Ok(Self { quinn, socket: extra, setup })
    }

    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.quinn.local_addr().ok()
    }

    /// Connect to a peer, and to nobody else. Must run inside of the runtime.
    pub(crate) async fn dial(&self, addr: SocketAddr, peer: PeerId) -> Result<muxed::Connection, Error> {
        let config = config::client(&self.setup.credentials, self.setup.transport(addr), peer)?;
        let connecting = self
            .quinn
            .connect_with(config, addr, "libp2p") // a name is demanded and means nothing
            .map_err(|error| Error::Lost(error.to_string()))?;
        let connection = match timeout(limits::HANDSHAKE_TIME, connecting).await {
            Ok(connected) => connected.map_err(of_handshake)?,
            Err(_) => return Err(Error::Lost("the handshake took too long".into())),
        };
        // The verifier has seen to this; once more, because everything rests on it.
        if tls::peer_of(&connection) != Some(peer) {
            connection.close(VarInt::from_u32(0), b"");
            return Err(Error::Lost("another peer answers at its address".into()));
        }
        match self.setup.seats.take(peer) {
            Some(seat) => Ok(muxed::Connection::Quic(Connection::new(connection, peer, true, seat))),
            None => {
                connection.close(VarInt::from_u32(0), b"");
                Err(Error::Lost("too many connections to one peer".into()))
            }
        }
    }

    /// Send one datagram that is no QUIC.
    pub(crate) fn poke(&self, addr: SocketAddr, bytes: &[u8]) {
        // Lost or refused makes no difference: another follows.
        let _ = self.socket.send_to(bytes, addr);
    }

    /// End all connections and say so.
    pub(crate) fn close(&self) {
        self.quinn.close(VarInt::from_u32(0), b"");
    }
}

/// Whether packets to there never leave this machine.
fn is_near(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

async fn accept(endpoint: quinn::Endpoint, setup: Arc<Setup>) {
    while let Some(incoming) = endpoint.accept().await {
        let under_way = setup.handshakes.load(Ordering::Relaxed);
        if setup.seats.full() || under_way >= limits::MAX_HANDSHAKES {
            incoming.refuse();
        } else if under_way >= limits::RETRY_ABOVE_HANDSHAKES && incoming.may_retry() {
            let _ = incoming.retry(); // fails only for those that may not retry
        } else {
            setup.handshakes.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(welcome(incoming, Arc::clone(&setup)));
        }
    }
}

async fn welcome(incoming: Incoming, setup: Arc<Setup>) {
    let near = is_near(incoming.remote_address()).then(|| Arc::clone(&setup.near_server));
    let proving = async move {
        match near {
            Some(config) => incoming.accept_with(config)?.await,
            None => incoming.accept()?.await,
        }
    };
    let proved = timeout(limits::HANDSHAKE_TIME, proving).await;
    setup.handshakes.fetch_sub(1, Ordering::Relaxed);
    let Ok(Ok(connection)) = proved else { return };
    let Some(peer) = tls::peer_of(&connection) else {
        connection.close(VarInt::from_u32(0), b"");
        return;
    };
    let Some(seat) = setup.seats.take(peer) else {
        connection.close(VarInt::from_u32(0), b"too many connections");
        return;
    };
    let connection = muxed::Connection::Quic(Connection::new(connection, peer, false, seat));
    if let Err(refused) = setup.accepted.try_send(connection) {
        refused.into_inner().close(); // nobody takes them up: they must not pile up
    }
}

/// The one failure of a handshake that deserves words of its own.
fn of_handshake(error: quinn::ConnectionError) -> Error {
    /// TLS alert `certificate_unknown` … `access_denied`: 0x100 + 40 … 49 in QUIC (RFC 9001, 4.8).
    const CERTIFICATE_ALERTS: std::ops::RangeInclusive<u64> = 0x128..=0x131;
    match error {
        quinn::ConnectionError::TransportError(failed)
            if CERTIFICATE_ALERTS.contains(&u64::from(failed.code)) =>
        {
            Error::Lost("another peer answers at its address".into())
        }
        quinn::ConnectionError::TimedOut => Error::Lost("nobody answers".into()),
        other => other.into(),
    }
}

/// Send random datagrams to an address for a while, so that packets from there may come in through a NAT.
pub(crate) async fn punch(endpoint: Endpoint, addr: SocketAddr, time: std::time::Duration) {
    let _ = timeout(time.min(limits::MAX_PUNCH_TIME), async {
        loop {
            let mut bytes = [0u8; limits::PUNCH_BYTES];
            let mut pause = [0u8; 8];
            if aws_lc_fill(&mut bytes).is_err() || aws_lc_fill(&mut pause).is_err() {
                return;
            }
            endpoint.poke(addr, &bytes);
            let span = limits::PUNCH_PAUSE.end - limits::PUNCH_PAUSE.start;
            let pause = limits::PUNCH_PAUSE.start + u64::from_le_bytes(pause) % span;
            sleep(std::time::Duration::from_millis(pause)).await;
        }
    })
    .await;
}

fn aws_lc_fill(bytes: &mut [u8]) -> Result<(), rustls::crypto::GetRandomFailed> {
    rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(bytes)
}
