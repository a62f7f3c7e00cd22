//! One node's transport: its thread, its sockets, the connections that come in.

use crate::carrier::Carrier;
use crate::channel::Channel;
use crate::error::Error;
use crate::limits;
use crate::muxed::{Connection, Pending};
use crate::quic::{self, Endpoint, Setup};
use crate::tcp;
use libp2p_identity::{Keypair, PeerId};
use socket2::SockRef;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

/// A node's transport. Dropping it closes everything.
///
/// Its thread must not exist before a fork: make it where it is used.
pub struct Node {
    peer: PeerId,
    /// Whoever else holds it, holds it weakly: it keeps the runtime's files open.
    runtime: Arc<Handle>,
    setup: Arc<Setup>,
    tcp: Arc<tcp::Setup>,
    endpoints: Mutex<Vec<Endpoint>>,
    incoming: Arc<AsyncMutex<mpsc::Receiver<Connection>>>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Node {
    /// Start the thread of a node with this Ed25519 seed.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] when the system gives no thread or no certificate can be made.
    pub fn new(seed: [u8; 32]) -> Result<Self, Error> {
        let keypair =
            Keypair::ed25519_from_bytes(seed).map_err(|_| Error::Misuse("the seed has 32 bytes"))?;
        let (accepted, incoming) = mpsc::channel(limits::MAX_WAITING_CONNECTIONS);
        let setup = Setup::new(&keypair, accepted.clone())?;
        let tcp = tcp::Setup::new(&keypair, setup.seats(), accepted)?;
        let no_thread = |error: std::io::Error| Error::Lost(format!("no thread can be started ({error})"));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let handle = Arc::new(runtime.handle().clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("swarmnode-net".into())
            .spawn(move || {
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })
            .map_err(no_thread)?;
        Ok(Self {
            peer: keypair.public().to_peer_id(),
            runtime: handle,
            setup,
            tcp,
            endpoints: Mutex::default(),
            incoming: Arc::new(AsyncMutex::new(incoming)),
            stop: Mutex::new(Some(stop)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The peer id of the key.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The runtime, for other kinds of connections that live on it.
    pub fn runtime(&self) -> &Arc<Handle> {
        &self.runtime
    }

    /// Take connections over a bound UDP socket, and dial from it.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] when the socket is of no use.
    pub fn listen(&self, socket: UdpSocket) -> Result<SocketAddr, Error> {
        let endpoint = self.endpoint(socket)?;
        endpoint.local_addr().ok_or(Error::Misuse("the socket is not bound"))
    }

    /// Connect to a peer; any other that answers there is refused.
    pub fn dial(&self, addr: SocketAddr, peer: PeerId) -> Pending<Connection> {
        let endpoint = match self.endpoint_for(addr) {
            Ok(endpoint) => endpoint,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        self.dialling(async move { endpoint.dial(addr, peer).await })
    }

    /// Take connections over a listening TCP socket.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] when the socket is of no use.
    pub fn listen_tcp(&self, listener: TcpListener) -> Result<SocketAddr, Error> {
        let _inside = self.runtime.enter();
        self.tcp.listen(listener)
    }

    /// Connect to a peer over TCP; any other that answers there is refused.
    pub fn dial_tcp(&self, addr: SocketAddr, peer: PeerId) -> Pending<Connection> {
        let tcp = Arc::clone(&self.tcp);
        self.dialling(async move { tcp.dial(addr, peer).await })
    }

    /// Make a connection inside of another one's stream. `expected` is whom we have reached by it, `None` when it has
    /// reached us. The stream is not to be used by others any more.
    pub fn upgrade(&self, stream: Arc<Channel>, expected: Option<PeerId>) -> Pending<Connection> {
        let tcp = Arc::clone(&self.tcp);
        self.dialling(async move { tcp.upgrade(Carrier::Stream(stream), expected).await })
    }

    /// Do this on the runtime; a connection that nobody waits for any more is closed.
    fn dialling(
        &self,
        dial: impl Future<Output = Result<Connection, Error>> + Send + 'static,
    ) -> Pending<Connection> {
        let (done, result) = oneshot::channel();
        let task = self.runtime.spawn(async move {
            if let Err(Ok(unwanted)) = done.send(dial.await) {
                unwanted.close();
            }
        });
        let given_up = AbortOnDrop(task.abort_handle());
        Box::pin(async move {
            let result = result.await.unwrap_or(Err(Error::Closed));
            drop(given_up);
            result
        })
    }

    /// The next connection that others have made to us.
    pub fn accept(&self) -> Pending<Connection> {
        let incoming = Arc::clone(&self.incoming);
        Box::pin(async move { incoming.lock().await.recv().await.ok_or(Error::Closed) })
    }

    /// Send random datagrams to an address, from the socket that listens, for a while: a NAT on our side then lets in
    /// what comes from there.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] when there is no socket to send from.
    pub fn punch(&self, addr: SocketAddr, time: Duration) -> Result<(), Error> {
        let endpoint = self.endpoint_for(addr)?;
        self.runtime.spawn(quic::punch(endpoint, addr, time));
        Ok(())
    }

    /// End all connections, tell the other ends, and stop the thread. Blocks for a moment.
    pub fn close(&self) {
        let endpoints = std::mem::take(&mut *self.endpoints.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(stop) = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let tcp = Arc::clone(&self.tcp);
        self.runtime.spawn(async move {
            tcp.close();
            for endpoint in &endpoints {
                endpoint.close();
            }
            tokio::time::sleep(limits::CLOSE_TIME).await;
            let _ = stop.send(());
        });
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }

    fn endpoint(&self, socket: UdpSocket) -> Result<Endpoint, Error> {
        if self.stop.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(Error::Closed);
        }
        let _inside = self.runtime.enter();
        let endpoint = Endpoint::new(socket, Arc::clone(&self.setup), Arc::downgrade(&self.runtime))?;
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).push(endpoint.clone());
        Ok(endpoint)
    }

    /// The socket from which an address can be reached: one that listens, or a new one of that family.
    fn endpoint_for(&self, addr: SocketAddr) -> Result<Endpoint, Error> {
        let reaches = |from: SocketAddr| {
            let scope = from.ip().is_unspecified() || from.ip().is_loopback() == addr.ip().is_loopback();
            from.is_ipv4() == addr.is_ipv4() && scope
        };
        let known = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .find(|endpoint| endpoint.local_addr().is_some_and(reaches))
            .cloned();
        if let Some(endpoint) = known {
            return Ok(endpoint);
        }
        let any: IpAddr =
            if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket =
            UdpSocket::bind((any, 0)).map_err(|error| Error::Lost(format!("no socket ({error})")))?;
        let options = SockRef::from(&socket);
        // A burst that finds the buffer full waits for a timer. The kernel gives what it allows.
        let _ = options.set_recv_buffer_size(limits::SOCKET_BUFFER_BYTES);
        let _ = options.set_send_buffer_size(limits::SOCKET_BUFFER_BYTES);
        self.endpoint(socket)
    }
}

/// A dial that nobody waits for any more is not carried on.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.close();
    }
}
