//! What Python opened, as Rust wants it: sockets and what an event loop sleeps on.
#![allow(unsafe_code)]

#[cfg(unix)]
pub use unix::{copy, tcp, udp};
#[cfg(windows)]
pub use windows::{copy, tcp, udp};

#[cfg(unix)]
mod unix {
    use pyo3::prelude::*;
    use std::fs::File;
    use std::io;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

    /// A copy of a handle that stays Python's.
    pub fn copy(handle: i64) -> PyResult<File> {
        let fd = number(handle)?;
        // SAFETY: Python keeps it open during this call.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().map(File::from)?)
    }

    /// A socket that Python has let go of.
    pub fn udp(handle: i64) -> PyResult<UdpSocket> {
        let fd = number(handle)?;
        // SAFETY: the caller detached it, so it is ours alone.
        let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// A listening socket that Python has let go of.
    pub fn tcp(handle: i64) -> PyResult<TcpListener> {
        // SAFETY: the caller detached it, so it is ours alone.
        Ok(TcpListener::from(unsafe { OwnedFd::from_raw_fd(number(handle)?) }))
    }

    fn number(handle: i64) -> io::Result<RawFd> {
        match RawFd::try_from(handle) {
            Ok(fd) if fd >= 0 => Ok(fd),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }
}

#[cfg(windows)]
mod windows {
    use pyo3::prelude::*;
    use std::io;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::windows::io::{BorrowedSocket, FromRawSocket, OwnedSocket, RawSocket};

    /// A copy of a handle that stays Python's: one end of a socket pair, which is TCP there.
    pub fn copy(handle: i64) -> PyResult<TcpStream> {
        // SAFETY: Python keeps it open during this call.
        let socket = unsafe { BorrowedSocket::borrow_raw(number(handle)?) };
        Ok(socket.try_clone_to_owned().map(TcpStream::from)?)
    }

    /// A socket that Python has let go of.
    pub fn udp(handle: i64) -> PyResult<UdpSocket> {
        // SAFETY: the caller detached it, so it is ours alone.
        let socket = UdpSocket::from(unsafe { OwnedSocket::from_raw_socket(number(handle)?) });
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// A listening socket that Python has let go of.
    pub fn tcp(handle: i64) -> PyResult<TcpListener> {
        // SAFETY: the caller detached it, so it is ours alone.
        Ok(TcpListener::from(unsafe { OwnedSocket::from_raw_socket(number(handle)?) }))
    }

    fn number(handle: i64) -> io::Result<RawSocket> {
        RawSocket::try_from(handle).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    }
}
