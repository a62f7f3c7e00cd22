//! TCP: sockets that listen and dial, and what makes a connection of any run of bytes: Noise, then yamux.

use crate::carrier::Carrier;
use crate::error::Error;
use crate::limits;
use crate::muxed;
use crate::noise::{self, Keys, Opener, Session};
use crate::quic::Seats;
use crate::select::{self, Pipe};
use crate::yamux::{self, Start};
use libp2p_identity::{Keypair, PeerId};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// What all TCP connections of a node share.
pub(crate) struct Setup {
    keys: Keys,
    seats: Arc<Seats>,
    accepted: mpsc::Sender<muxed::Connection>,
    /// Those that may still have to be told good-bye.
    made: Mutex<Vec<yamux::Weak>>,
}

impl Setup {
    pub(crate) fn new(
        keypair: &Keypair,
        seats: Arc<Seats>,
        accepted: mpsc::Sender<muxed::Connection>,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self { keys: Keys::new(keypair)?, seats, accepted, made: Mutex::default() }))
    }

    /// Take connections over a listening socket, for ever. Must be called inside of the runtime.
    pub(crate) fn listen(self: &Arc<Self>, listener: std::net::TcpListener) -> Result<SocketAddr, Error> {
        let broken = |error: std::io::Error| Error::Lost(format!("the socket cannot be used ({error})"));
        listener.set_nonblocking(true).map_err(broken)?;
        let addr = listener.local_addr().map_err(broken)?;
        let listener = TcpListener::from_std(listener).map_err(broken)?;
        tokio::spawn(accept(listener, Arc::clone(self)));
        Ok(addr)
    }

    /// Connect to a peer, and to nobody else. Must run inside of the runtime.
    pub(crate) async fn dial(&self, addr: SocketAddr, peer: PeerId) -> Result<muxed::Connection, Error> {
        let connected = timeout(limits::HANDSHAKE_TIME, TcpStream::connect(addr)).await;
        let socket = connected
            .map_err(|_| Error::Lost("no answer".into()))?
            .map_err(|error| Error::Lost(format!("it cannot be dialled ({error})")))?;
        self.upgrade(Carrier::tcp(socket), Some(peer)).await
    }

    /// Make a connection of a run of bytes; `expected` is whom we dialled, `None` when it dialled us. Must run inside
    /// of the runtime.
    pub(crate) async fn upgrade(
        &self,
        carrier: Carrier,
        expected: Option<PeerId>,
    ) -> Result<muxed::Connection, Error> {
        let start = timeout(limits::HANDSHAKE_TIME, self.prove(carrier, expected))
            .await
            .map_err(|_| Error::Lost("the handshake took too long".into()))??;
        let Some(seat) = self.seats.take(start.session.peer) else {
            return Err(Error::Lost("too many connections with one peer".into()));
        };
        let connection = yamux::Connection::new(start, Box::new(seat));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(yamux::Weak::lives);
        made.push(connection.downgrade());
        Ok(muxed::Connection::Yamux(connection))
    }

    /// End all connections and say so.
    pub(crate) fn close(&self) {
        for connection in self.made.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            connection.close();
        }
    }

    async fn prove(&self, carrier: Carrier, expected: Option<PeerId>) -> Result<Start, Error> {
        let mut plain = Plain { carrier, came: Vec::new() };
        let (session, last) = if let Some(peer) = expected {
            let (begun, first) = noise::begin(&self.keys)?;
            // What follows the wish is for who speaks it; a round trip is saved.
            plain.write(&[select::wish(noise::PROTOCOL), first].concat()).await?;
            select::granted(&mut plain, noise::PROTOCOL).await?;
            begun.finish(&mut plain, &self.keys, peer).await?
        } else {
            select::offer(&mut plain, noise::PROTOCOL).await?;
            (noise::answer(&mut plain, &self.keys).await?, Vec::new())
        };
        let mut sealed = Sealed { plain, session, opened: Vec::new() };
        if expected.is_some() {
            let mut first = last;
            sealed.session.sealer.seal(&[&select::wish(yamux::PROTOCOL)], &mut first)?;
            sealed.plain.write(&first).await?;
            select::granted(&mut sealed, yamux::PROTOCOL).await?;
        } else {
            select::offer(&mut sealed, yamux::PROTOCOL).await?;
        }
        let Sealed { plain: Plain { carrier, came }, session, opened } = sealed;
        Ok(Start { carrier, session, opened_by_us: expected.is_some(), sealed: came, plain: opened })
    }
}

async fn accept(listener: TcpListener, setup: Arc<Setup>) {
    let mut handshakes: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            sleep(limits::ACCEPT_RETRY_TIME).await; // no file descriptors: others may go meanwhile
            continue;
        };
        handshakes.retain(|handshake| !handshake.is_finished());
        // A newcomer is worth more than who has not proved itself for longest.
        if handshakes.len() >= limits::MAX_HANDSHAKES
            && let Some(oldest) = handshakes.pop_front()
        {
            oldest.abort();
        }
        if !setup.seats.full() {
            handshakes.push_back(tokio::spawn(welcome(socket, Arc::clone(&setup))).abort_handle());
        }
    }
}

async fn welcome(socket: TcpStream, setup: Arc<Setup>) {
    if let Ok(connection) = setup.upgrade(Carrier::tcp(socket), None).await
        && let Err(refused) = setup.accepted.try_send(connection)
    {
        refused.into_inner().close(); // nobody takes them up: they must not pile up
    }
}

/// A carrier before anything is sealed.
struct Plain {
    carrier: Carrier,
    came: Vec<u8>,
}

impl Pipe for Plain {
    async fn read(&mut self, bytes: usize) -> Result<Vec<u8>, Error> {
        while self.came.len() < bytes {
            let mut buffer = [0; 1024];
            let length = poll_fn(|cx| self.carrier.poll_read(cx, &mut buffer)).await?;
            if length == 0 {
                return Err(Error::Lost("the other end hung up".into()));
            }
            self.came.extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
        let rest = self.came.split_off(bytes);
        Ok(std::mem::replace(&mut self.came, rest))
    }

    async fn write(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            let length = poll_fn(|cx| self.carrier.poll_write(cx, data)).await?;
            data = data.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A carrier after the handshake, before there are streams.
struct Sealed {
    plain: Plain,
    session: Session,
    opened: Vec<u8>,
}

impl Pipe for Sealed {
    async fn read(&mut self, bytes: usize) -> Result<Vec<u8>, Error> {
        while self.opened.len() < bytes {
            let mut message = self.plain.read(2).await?;
            let length = Opener::length(&message).unwrap_or_default();
            message.extend(self.plain.read(length - message.len()).await?);
            let plain = self.session.opener.open(&mut message)?;
            self.opened.extend_from_slice(plain);
        }
        let rest = self.opened.split_off(bytes);
        Ok(std::mem::replace(&mut self.opened, rest))
    }

    async fn write(&mut self, data: &[u8]) -> Result<(), Error> {
        let mut sealed = Vec::new();
        self.session.sealer.seal(&[data], &mut sealed)?;
        self.plain.write(&sealed).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;
    use proptest::prelude::*;
    use std::sync::OnceLock;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A listening node, and the runtime of a peer that will prove itself to it and then say what it must not.
    fn node() -> (Node, SocketAddr, tokio::runtime::Runtime) {
        let node = Node::new([1; 32]).unwrap();
        let addr = node.listen_tcp(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        (node, addr, runtime())
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn rude() -> Arc<Setup> {
        let (accepted, _) = mpsc::channel(1);
        Setup::new(&Keypair::ed25519_from_bytes([2; 32]).unwrap(), Arc::default(), accepted).unwrap()
    }

    /// What comes back, opened, after a proved peer has sent these plain bytes; empty when nothing does.
    async fn after(setup: &Setup, addr: SocketAddr, peer: PeerId, plain: &[u8]) -> Vec<u8> {
        let socket = TcpStream::connect(addr).await.unwrap();
        let mut start = setup.prove(Carrier::tcp(socket), Some(peer)).await.unwrap();
        let Carrier::Tcp(mut socket) = start.carrier else { unreachable!() };
        let mut sealed = Vec::new();
        for piece in plain.chunks(noise::MAX_PLAIN_BYTES) {
            start.session.sealer.seal(&[piece], &mut sealed).unwrap();
        }
        let _ = socket.write_all(&sealed).await; // it may be thrown out before all is said
        let _ = socket.shutdown().await;
        let mut back = start.sealed;
        let _ = timeout(Duration::from_secs(20), socket.read_to_end(&mut back)).await.unwrap();
        let (mut opened, mut at) = (start.plain, 0);
        while let Some(length) = Opener::length(&back[at..])
            && let Some(message) = back.get_mut(at..at + length)
        {
            opened.extend_from_slice(start.session.opener.open(message).unwrap());
            at += length;
        }
        opened
    }

    fn frame(kind: u8, flags: u8, stream: u32, value: u32) -> Vec<u8> {
        [&[0, kind, 0, flags], stream.to_be_bytes().as_slice(), value.to_be_bytes().as_slice()].concat()
    }

    #[test]
    fn who_breaks_the_protocol_is_told_so_and_cut_off() {
        let (node, addr, runtime) = node();
        let setup = rude();
        let gone = frame(3, 0, 0, 1);
        let mut flood = frame(1, 1, 1, 0);
        for _ in 0..200 {
            flood.extend(frame(0, 0, 1, 5000)); // far beyond the window
            flood.extend([0; 5000]);
        }
        for (rudeness, bytes) in [
            ("another version", vec![9; 12]),
            ("no kind of frame", frame(4, 0, 0, 0)),
            ("our stream ids", frame(1, 1, 2, 0)),
            ("stream 0", frame(1, 1, 0, 0)),
            ("a stream twice", [frame(1, 1, 1, 0), frame(1, 1, 1, 0)].concat()),
            ("a huge frame", frame(0, 0, 7, u32::MAX)),
            ("a flood", flood),
        ] {
            let said = runtime.block_on(after(&setup, addr, node.peer(), &bytes));
            assert!(said.ends_with(&gone), "{rudeness}: {said:?}");
        }
    }

    #[test]
    fn streams_beyond_the_bound_are_reset() {
        let (node, addr, runtime) = node();
        let opening: Vec<u8> = (0..600).flat_map(|number| frame(1, 1, 2 * number + 1, 0)).collect();
        let said = runtime.block_on(after(&rude(), addr, node.peer(), &opening));
        let reset = said.chunks(12).filter(|answer| answer[3] == 8).count();
        assert!(reset >= 600 - usize::try_from(limits::MAX_STREAMS).unwrap(), "{reset}");
    }

    #[test]
    fn a_flood_of_pings_is_answered_or_cut_off() {
        let (node, addr, runtime) = node();
        let pings: Vec<u8> = (0..100_000).flat_map(|number| frame(2, 1, 0, number)).collect();
        let said = runtime.block_on(after(&rude(), addr, node.peer(), &pings));
        assert!(said.starts_with(&frame(2, 2, 0, 0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_plain_bytes_harm_the_node(bytes in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                (0u8..5, 0u8..16, 0u32..8, 0u32..300_000).prop_map(|(kind, flags, stream, value)| frame(kind, flags, stream, value)),
            ],
            0..12,
        )) {
            static NODE: OnceLock<(Node, SocketAddr)> = OnceLock::new();
            let (node, addr) = NODE.get_or_init(|| { let (node, addr, _) = self::node(); (node, addr) });
            let (addr, runtime) = (*addr, runtime());
            runtime.block_on(after(&rude(), addr, node.peer(), &bytes.concat()));
            let setup = rude();
            runtime.block_on(async {
                let socket = TcpStream::connect(addr).await.unwrap();
                setup.upgrade(Carrier::tcp(socket), Some(node.peer())).await.unwrap();
            });
        }
    }
}
