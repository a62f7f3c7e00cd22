//! The transport's binding to Python: operations that are polled inline, and tokens that say when to poll again.
//!
//! Every call takes what is there at once and gives None when it has to be made again, once the bell has rung for its
//! token. The GIL is released while Rust works; the tokio thread never takes it.

use crate::handles;
use crate::stream::{Body, Stream};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use swarmnode_transport as transport;
use transport::bell::{Bell, Clapper, Writes};
use transport::{Error, Handle, Pending};

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

pub fn raise(error: Error) -> PyErr {
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

/// Where what a node has under way lives, and where it rings.
#[derive(Clone)]
pub struct Home {
    pub bell: Arc<Bell>,
    pub runtime: Weak<Handle>,
}

/// One node's transport: its thread, its sockets.
#[pyclass(frozen, module = "swarmnode._native")]
struct Transport {
    /// None once it is closed: what the thread held is given back then, not when the last reference is gone.
    node: RwLock<Option<transport::Node>>,
    home: Home,
}

#[pymethods]
impl Transport {
    #[new]
    fn new(py: Python<'_>, seed: [u8; 32], bell: &PyBell) -> PyResult<Self> {
        let node = py.detach(|| transport::Node::new(seed)).map_err(raise)?;
        let home = Home { bell: Arc::clone(&bell.0), runtime: Arc::downgrade(node.runtime()) };
        Ok(Self { node: RwLock::new(Some(node)), home })
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
        self.operation(|node| Ok(node.upgrade(stream.channel(), expected)))
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
        Ok(Operation::new(&self.home, Work::Connection(self.with(begin).map_err(raise)?)))
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
    home: Home,
}

impl Operation {
    fn new(home: &Home, work: Work) -> Self {
        Self { work: Mutex::new(Some(work)), clapper: home.bell.clapper(), home: home.clone() }
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
                Py::new(py, Connection { inner, home: self.home.clone() })?.into_any()
            }
            Poll::Ready(Ok(Done::Stream(inner))) => Py::new(py, Stream::new(inner, &self.home))?.into_any(),
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
    home: Home,
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
        Operation::new(&self.home, Work::Stream(self.inner.open()))
    }

    fn accept(&self) -> Operation {
        Operation::new(&self.home, Work::Stream(self.inner.accept()))
    }

    fn ended(&self) -> Operation {
        Operation::new(&self.home, Work::End(self.inner.ended()))
    }

    fn ping(&self) -> Operation {
        Operation::new(&self.home, Work::Ping(self.inner.ping()))
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

    /// (round trip seconds, sent packets, lost packets, window bytes, sent bytes, received bytes, queued bytes, mtu,
    /// delivered bytes a second or None)
    #[allow(clippy::type_complexity)]
    fn stats(&self, py: Python<'_>) -> (f64, u64, u64, u64, u64, u64, u64, u16, Option<u64>) {
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
            stats.delivers,
        )
    }
}
