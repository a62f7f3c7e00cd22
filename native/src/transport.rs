//! The transport's binding to Python: operations that are polled inline, and tokens that say when to poll again.
//!
//! Every call takes what is there at once and gives None when it has to be made again, once the bell has rung for its
//! token. The GIL is released while Rust works; the tokio thread never takes it.

use crate::buffers::{Bytes, BytesMut};
use pyo3::create_exception;
use pyo3::exceptions::{PyEOFError, PyException, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};
use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;
use swarmnode_transport as transport;
use transport::bell::{Bell, Clapper, Writes};
use transport::channel::Channel;
use transport::{Error, Pending};

/// The most that one read gives: what trio's own streams give, and enough to lose nothing over the call.
const MAX_READ_BYTES: usize = 256 << 10;

create_exception!(
    _native,
    TransportError,
    PyException,
    "A connection or a stream is gone, or never came about."
);
create_exception!(_native, BadMessage, PyValueError, "What came is no message.");

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("TransportError", module.py().get_type::<TransportError>())?;
    module.add("BadMessage", module.py().get_type::<BadMessage>())?;
    module.add_class::<PyBell>()?;
    module.add_class::<Transport>()?;
    module.add_class::<Operation>()?;
    module.add_class::<Connection>()?;
    module.add_class::<Stream>()?;
    module.add_class::<Body>()
}

fn raise(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::BadMessage(_) => BadMessage::new_err(message),
        Error::Misuse(_) => PyValueError::new_err(message),
        Error::Closed | Error::Finished | Error::Lost(_) | Error::Reset(_) => {
            TransportError::new_err(message)
        }
    }
}

fn address(host: &str, port: u16) -> PyResult<SocketAddr> {
    let host: IpAddr = host.parse().map_err(|_| PyValueError::new_err(format!("{host} is no IP address")))?;
    Ok(SocketAddr::new(host, port))
}

fn pair(addr: SocketAddr) -> (String, u16) {
    (addr.ip().to_canonical().to_string(), addr.port())
}

/// What rings for all transports of one event loop.
#[pyclass(frozen, module = "swarmnode._native", name = "Bell")]
struct PyBell(Arc<Bell>);

#[pymethods]
impl PyBell {
    #[new]
    fn new(handle: i64) -> PyResult<Self> {
        Ok(Self(Bell::new(Box::new(Writes(Mutex::new(handles::copy(handle)?))))))
    }

    /// Tokens of what is worth polling again.
    fn drain(&self) -> Vec<u64> {
        let mut ready = Vec::new();
        self.0.drain(&mut ready);
        ready
    }
}

/// One node's transport: its thread, its sockets.
#[pyclass(frozen, module = "swarmnode._native")]
struct Transport {
    /// None once it is closed: what the thread held is given back then, not when the last reference is gone.
    node: RwLock<Option<transport::Node>>,
    bell: Arc<Bell>,
}

#[pymethods]
impl Transport {
    #[new]
    fn new(py: Python<'_>, seed: [u8; 32], bell: &PyBell) -> PyResult<Self> {
        let node = py.detach(|| transport::Node::new(seed)).map_err(raise)?;
        Ok(Self { node: RwLock::new(Some(node)), bell: Arc::clone(&bell.0) })
    }

    fn listen(&self, py: Python<'_>, socket: i64) -> PyResult<(String, u16)> {
        let socket = handles::udp(socket)?;
        py.detach(|| self.with(|node| node.listen(socket))).map(pair).map_err(raise)
    }

    fn dial(&self, host: &str, port: u16, peer: &str) -> PyResult<Operation> {
        let peer = peer.parse().map_err(|_| PyValueError::new_err("no peer id"))?;
        let addr = address(host, port)?;
        self.operation(|node| Ok(node.dial(addr, peer)))
    }

    fn listen_tcp(&self, py: Python<'_>, socket: i64) -> PyResult<(String, u16)> {
        let socket = handles::tcp(socket)?;
        py.detach(|| self.with(|node| node.listen_tcp(socket))).map(pair).map_err(raise)
    }

    fn dial_tcp(&self, host: &str, port: u16, peer: &str) -> PyResult<Operation> {
        let peer = peer.parse().map_err(|_| PyValueError::new_err("no peer id"))?;
        let addr = address(host, port)?;
        self.operation(|node| Ok(node.dial_tcp(addr, peer)))
    }

    fn upgrade(&self, stream: &Stream, expected: Option<&str>) -> PyResult<Operation> {
        let expected = expected.map(|peer| peer.parse().map_err(|_| PyValueError::new_err("no peer id")));
        let expected = expected.transpose()?;
        self.operation(|node| Ok(node.upgrade(Arc::clone(&stream.channel), expected)))
    }

    fn accept(&self) -> PyResult<Operation> {
        self.operation(|node| Ok(node.accept()))
    }

    fn punch(&self, host: &str, port: u16, seconds: f64) -> PyResult<()> {
        let time =
            Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let addr = address(host, port)?;
        self.with(|node| node.punch(addr, time)).map_err(raise)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.node.write().unwrap_or_else(PoisonError::into_inner).take()));
    }
}

impl Transport {
    fn with<T>(&self, act: impl FnOnce(&transport::Node) -> Result<T, Error>) -> Result<T, Error> {
        self.node.read().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(Err(Error::Closed), act)
    }

    fn operation(
        &self,
        begin: impl FnOnce(&transport::Node) -> Result<Pending<transport::Connection>, Error>,
    ) -> PyResult<Operation> {
        Ok(Operation::new(&self.bell, Work::Connection(self.with(begin).map_err(raise)?)))
    }
}

enum Work {
    Connection(Pending<transport::Connection>),
    Stream(Pending<transport::Stream>),
    Ping(Pending<Duration>),
    End(Pending<Error>),
}

enum Done {
    Connection(transport::Connection),
    Stream(transport::Stream),
    Ping(Duration),
    End(Error),
}

impl Work {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Done, Error>> {
        match self {
            Self::Connection(work) => work.as_mut().poll(cx).map_ok(Done::Connection),
            Self::Stream(work) => work.as_mut().poll(cx).map_ok(Done::Stream),
            Self::Ping(work) => work.as_mut().poll(cx).map_ok(Done::Ping),
            Self::End(work) => work.as_mut().poll(cx).map_ok(Done::End),
        }
    }
}

/// Something under way. Dropping it gives it up.
#[pyclass(frozen, module = "swarmnode._native")]
struct Operation {
    work: Mutex<Option<Work>>,
    clapper: Clapper,
    bell: Arc<Bell>,
}

impl Operation {
    fn new(bell: &Arc<Bell>, work: Work) -> Self {
        Self { work: Mutex::new(Some(work)), clapper: bell.clapper(), bell: Arc::clone(bell) }
    }
}

#[pymethods]
impl Operation {
    #[getter]
    fn token(&self) -> u64 {
        self.clapper.token()
    }

    fn poll(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let done = py.detach(|| {
            let mut slot = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(work) = slot.as_mut() else { return Poll::Ready(Err(Error::Misuse("it is done"))) };
            let done = work.poll(&mut Context::from_waker(self.clapper.waker()));
            if done.is_ready() {
                *slot = None;
            }
            done
        });
        Ok(Some(match done {
            Poll::Pending => return Ok(None),
            Poll::Ready(Err(error)) => return Err(raise(error)),
            Poll::Ready(Ok(Done::Connection(inner))) => {
                Py::new(py, Connection { inner, bell: Arc::clone(&self.bell) })?.into_any()
            }
            Poll::Ready(Ok(Done::Stream(inner))) => Py::new(py, Stream::new(inner, &self.bell))?.into_any(),
            Poll::Ready(Ok(Done::Ping(took))) => took.as_secs_f64().into_pyobject(py)?.into_any().unbind(),
            Poll::Ready(Ok(Done::End(why))) => {
                (matches!(why, Error::Closed), why.to_string()).into_pyobject(py)?.into_any().unbind()
            }
        }))
    }
}

/// A connection to a peer that has proved who it is.
#[pyclass(frozen, module = "swarmnode._native")]
struct Connection {
    inner: transport::Connection,
    bell: Arc<Bell>,
}

#[pymethods]
impl Connection {
    #[getter]
    fn peer(&self) -> String {
        self.inner.peer().to_base58()
    }

    #[getter]
    fn opened_by_us(&self) -> bool {
        self.inner.opened_by_us()
    }

    #[getter]
    fn remote_addr(&self) -> Option<(String, u16)> {
        self.inner.remote_addr().map(pair)
    }

    #[getter]
    fn transport(&self) -> &'static str {
        self.inner.transport()
    }

    #[getter]
    fn near(&self) -> bool {
        self.inner.near()
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.end().is_some())
    }

    #[getter]
    fn open_streams(&self) -> usize {
        self.inner.open_streams()
    }

    fn open(&self) -> Operation {
        Operation::new(&self.bell, Work::Stream(self.inner.open()))
    }

    fn accept(&self) -> Operation {
        Operation::new(&self.bell, Work::Stream(self.inner.accept()))
    }

    fn ended(&self) -> Operation {
        Operation::new(&self.bell, Work::End(self.inner.ended()))
    }

    fn ping(&self) -> Operation {
        Operation::new(&self.bell, Work::Ping(self.inner.ping()))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }

    fn exporter<'py>(
        &self,
        py: Python<'py>,
        label: &[u8],
        context: &[u8],
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let made = self.inner.exporter(label, context, length).map_err(raise)?;
        Ok(PyBytes::new(py, &made))
    }

    /// (round trip seconds, sent packets, lost packets, window bytes, sent bytes, received bytes, queued bytes, mtu)
    fn stats(&self, py: Python<'_>) -> (f64, u64, u64, u64, u64, u64, u64, u16) {
        let stats = py.detach(|| self.inner.stats());
        (
            stats.rtt.as_secs_f64(),
            stats.sent_packets,
            stats.lost_packets,
            stats.cwnd,
            stats.sent_bytes,
            stats.received_bytes,
            stats.queued_bytes,
            stats.mtu,
        )
    }
}

/// One stream of a connection. Receiving and sending have a token each.
#[pyclass(frozen, module = "swarmnode._native")]
struct Stream {
    channel: Arc<Channel>,
    reading: Clapper,
    writing: Clapper,
}

impl Stream {
    fn new(inner: transport::Stream, bell: &Arc<Bell>) -> Self {
        Self { channel: Arc::new(Channel::new(inner)), reading: bell.clapper(), writing: bell.clapper() }
    }
}

thread_local! {
    /// Where `read` reads to before it knows how long the bytes object is to be.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[pymethods]
impl Stream {
    #[getter]
    fn read_token(&self) -> u64 {
        self.reading.token()
    }

    #[getter]
    fn write_token(&self) -> u64 {
        self.writing.token()
    }

    #[getter]
    fn moved_bytes(&self) -> u64 {
        self.channel.moved_bytes()
    }

    fn read<'py>(&self, py: Python<'py>, max_bytes: usize) -> PyResult<Option<Bound<'py, PyBytes>>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let want = max_bytes.clamp(1, MAX_READ_BYTES);
            if scratch.len() < want {
                scratch.resize(want, 0);
            }
            let buffer = scratch.get_mut(..want).unwrap_or_default();
            match py.detach(|| self.channel.poll_read(&mut Context::from_waker(self.reading.waker()), buffer))
            {
                Poll::Pending => Ok(None),
                Poll::Ready(Err(error)) => Err(raise(error)),
                Poll::Ready(Ok(read)) => Ok(Some(PyBytes::new(py, buffer.get(..read).unwrap_or_default()))),
            }
        })
    }

    fn read_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
        let mut buffer = BytesMut::of(buffer)?;
        let memory = buffer.as_mut_slice();
        if memory.is_empty() {
            return Err(PyValueError::new_err("the buffer is empty"));
        }
        match py.detach(|| self.channel.poll_read(&mut Context::from_waker(self.reading.waker()), memory)) {
            Poll::Pending => Ok(None),
            Poll::Ready(read) => read.map(Some).map_err(raise),
        }
    }

    fn unread(&self, data: &[u8]) {
        self.channel.unread(data);
    }

    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>, start: usize) -> PyResult<Option<usize>> {
        let data = Bytes::of(data)?;
        let data = data.as_slice().get(start..).unwrap_or_default();
        let written = py.detach(|| {
            let cx = &mut Context::from_waker(self.writing.waker());
            let mut written = 0;
            while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
                match self.channel.poll_write(cx, rest) {
                    Poll::Ready(Ok(some)) => written += some,
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending if written == 0 => return Ok(None),
                    Poll::Pending => break,
                }
            }
            Ok(Some(written))
        });
        written.map_err(raise)
    }

    fn finish(&self, py: Python<'_>) -> PyResult<Option<bool>> {
        let done =
            py.detach(|| self.channel.stream().poll_finish(&mut Context::from_waker(self.writing.waker())));
        match done {
            Poll::Pending => Ok(None),
            Poll::Ready(done) => done.map(|()| Some(true)).map_err(raise),
        }
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.channel.stream().close());
    }

    fn reset(&self, py: Python<'_>, code: u64) {
        py.detach(|| self.channel.stream().reset(code));
    }

    fn receive<'py>(
        &self,
        py: Python<'py>,
        max_body_bytes: usize,
    ) -> PyResult<Option<(Bound<'py, PyBytes>, Bound<'py, PyMemoryView>)>> {
        let done = py.detach(|| {
            self.channel.poll_receive(&mut Context::from_waker(self.reading.waker()), max_body_bytes, None)
        });
        match done {
            Poll::Pending => Ok(None),
            Poll::Ready(Err(error)) => Err(raise(error)),
            Poll::Ready(Ok(None)) => Err(PyEOFError::new_err("the other end has finished")),
            Poll::Ready(Ok(Some(message))) => {
                let header = PyBytes::new(py, &message.header);
                let body = Bound::new(py, Body(message.body))?;
                Ok(Some((header, PyMemoryView::from(body.as_any())?)))
            }
        }
    }

    fn receive_into<'py>(
        &self,
        py: Python<'py>,
        buffer: &Bound<'_, PyAny>,
    ) -> PyResult<Option<(Bound<'py, PyBytes>, usize)>> {
        let mut buffer = BytesMut::of(buffer)?;
        let memory = buffer.as_mut_slice();
        let done = py.detach(|| {
            self.channel.poll_receive(&mut Context::from_waker(self.reading.waker()), 0, Some(memory))
        });
        match done {
            Poll::Pending => Ok(None),
            Poll::Ready(Err(error)) => Err(raise(error)),
            Poll::Ready(Ok(None)) => Err(PyEOFError::new_err("the other end has finished")),
            Poll::Ready(Ok(Some(message))) => {
                Ok(Some((PyBytes::new(py, &message.header), message.body_bytes)))
            }
        }
    }

    fn give_up_receive(&self) {
        self.channel.give_up_receive();
    }

    fn send(&self, py: Python<'_>, header: &[u8], body: &Bound<'_, PyAny>) -> PyResult<bool> {
        let body = Bytes::of(body)?;
        let body = body.as_slice();
        match py
            .detach(|| self.channel.poll_send(&mut Context::from_waker(self.writing.waker()), header, body))
        {
            Poll::Pending => Ok(false),
            Poll::Ready(done) => done.map(|()| true).map_err(raise),
        }
    }

    fn give_up_send(&self, py: Python<'_>) {
        py.detach(|| self.channel.give_up_send());
    }
}

/// The memory of a message's body, writable, at a multiple of 64.
#[pyclass(module = "swarmnode._native")]
struct Body(transport::message::Body);

#[pymethods]
impl Body {
    #[allow(unsafe_code)]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: std::ffi::c_int,
    ) -> PyResult<()> {
        let (start, length) = {
            let mut body = slf.borrow_mut();
            let bytes = body.0.bytes_mut();
            (bytes.as_mut_ptr(), ffi::Py_ssize_t::try_from(bytes.len())?)
        };
        // SAFETY: `view` is Python's to fill. The memory lives as long as this object, which the view holds a
        // reference to, and never moves: nothing of the object changes after it is made.
        let failed =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast(), length, 0, flags) } != 0;
        if failed { Err(PyErr::fetch(slf.py())) } else { Ok(()) }
    }
}

/// What Python opened, as Rust wants it.
#[cfg(unix)]
#[allow(unsafe_code)]
mod handles {
    use super::*;
    use std::fs::File;
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
#[allow(unsafe_code)]
mod handles {
    use super::*;
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
