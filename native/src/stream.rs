//! A stream of the transport as Python polls it: bytes, and whole messages. See `transport.rs` for how polling goes.

use crate::buffers::{Bytes, BytesMut};
use crate::transport::{Home, raise};
use pyo3::exceptions::{PyEOFError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};
use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll};
use swarmnode_transport as transport;
use transport::bell::Clapper;
use transport::channel::Channel;

/// The most that one read gives: what trio's own streams give, and enough to lose nothing over the call.
const MAX_READ_BYTES: usize = 256 << 10;

/// One stream of a connection. Receiving and sending have a token each.
#[pyclass(frozen, module = "swarmnode._native")]
pub struct Stream {
    channel: Arc<Channel>,
    reading: Clapper,
    writing: Clapper,
}

impl Stream {
    pub fn new(inner: transport::Stream, home: &Home) -> Self {
        let channel = Channel::new(inner, home.runtime.clone());
        Self { channel, reading: home.bell.clapper(), writing: home.bell.clapper() }
    }

    pub fn channel(&self) -> Arc<Channel> {
        Arc::clone(&self.channel)
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
            self.channel.poll_receive(&mut Context::from_waker(self.reading.waker()), max_body_bytes)
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
            self.channel.poll_receive_into(&mut Context::from_waker(self.reading.waker()), memory)
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
pub struct Body(transport::message::Body);

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
