//! What a multiplexed connection runs over: a TCP socket, or a stream of another connection.

use crate::channel::Channel;
use crate::error::Error;
use crate::limits;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::net::TcpStream;

/// A run of bytes both ways. Reading and writing do not disturb each other; all calls may come from any thread.
pub(crate) enum Carrier {
    Tcp(TcpStream),
    Stream(Arc<Channel>),
}

impl Carrier {
    /// Over a connected socket, which is set up so that the kernel notices a dead link.
    pub(crate) fn tcp(socket: TcpStream) -> Self {
        let options = SockRef::from(&socket);
        // Each is a help, none is needed; some systems lack some.
        let _ = options.set_tcp_nodelay(true);
        let alive =
            TcpKeepalive::new().with_time(limits::TCP_PROBE_AFTER).with_interval(limits::TCP_PROBE_EVERY);
        #[cfg(not(any(target_os = "openbsd", target_os = "solaris")))]
        let alive = alive.with_retries(limits::TCP_PROBES);
        let _ = options.set_tcp_keepalive(&alive);
        #[cfg(target_os = "linux")]
        let _ = options.set_tcp_user_timeout(Some(limits::TCP_UNACKNOWLEDGED));
        Self::Tcp(socket)
    }

    /// Where the other end is; `None` inside of another connection.
    pub(crate) fn remote_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.peer_addr().ok(),
            Self::Stream(_) => None,
        }
    }

    /// Whether the other end is on this machine.
    pub(crate) fn near(&self) -> bool {
        let Self::Tcp(socket) = self else { return false };
        let (Ok(remote), Ok(local)) = (socket.peer_addr(), socket.local_addr()) else { return false };
        let remote = remote.ip().to_canonical();
        remote.is_loopback() || local.ip().to_canonical() == remote
    }

    /// Bytes that have come, 0 at the end.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, Error>> {
        match self {
            Self::Tcp(socket) => loop {
                ready!(socket.poll_read_ready(cx)).map_err(lost)?;
                match socket.try_read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return Poll::Ready(done.map_err(lost)),
                }
            },
            Self::Stream(stream) => stream.poll_read(cx, buffer),
        }
    }

    /// Take some of `data`, at least one byte.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        match self {
            Self::Tcp(socket) => loop {
                ready!(socket.poll_write_ready(cx)).map_err(lost)?;
                match socket.try_write(data) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return Poll::Ready(done.map_err(lost)),
                }
            },
            Self::Stream(stream) => stream.poll_write(cx, data),
        }
    }

    /// Take what there is room for at once, perhaps nothing. Not while somebody waits in [`Self::poll_write`].
    pub(crate) fn try_write(&self, data: &[u8]) -> Result<usize, Error> {
        match self {
            Self::Tcp(socket) => match socket.try_write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                done => done.map_err(lost),
            },
            Self::Stream(stream) => match stream.poll_write(&mut Context::from_waker(Waker::noop()), data) {
                Poll::Ready(done) => done,
                Poll::Pending => Ok(0),
            },
        }
    }

    /// Say that nothing more will be written.
    pub(crate) fn finish(&self) {
        match self {
            // An error says that the other end has gone already.
            Self::Tcp(socket) => drop(SockRef::from(socket).shutdown(std::net::Shutdown::Write)),
            Self::Stream(stream) => {
                drop(stream.stream().poll_finish(&mut Context::from_waker(Waker::noop())))
            }
        }
    }
}

fn lost(error: io::Error) -> Error {
    Error::Lost(match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "the other end is gone".into(),
        io::ErrorKind::TimedOut => "nothing came from the other end".into(),
        _ => format!("the connection broke ({error})"),
    })
}
