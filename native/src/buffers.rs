//! The memory of Python objects as slices of bytes, whatever the objects say their elements are.
//!
//! The only place where the binding touches foreign memory. Overlap is the caller's to avoid, as in C: a blob and the
//! buffer it is decoded into are never the same memory, and nobody writes to either from another thread meanwhile.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use std::mem::MaybeUninit;
use std::ptr;

/// A contiguous buffer, held until dropped. Not `Send`: it is released by the thread that has the GIL.
struct Held(ffi::Py_buffer);

impl Held {
    fn new(object: &Bound<'_, PyAny>, flags: std::ffi::c_int) -> PyResult<Self> {
        let mut view = MaybeUninit::<ffi::Py_buffer>::uninit();
        // SAFETY: `object` is alive, `view` has room for what is written; a contiguous view of bytes is asked for
        // because no shape or stride is.
        let failed = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), flags) } != 0;
        if failed {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: the call succeeded, so it filled the view.
        Ok(Self(unsafe { view.assume_init() }))
    }

    fn len(&self) -> usize {
        usize::try_from(self.0.len).unwrap_or(0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the view was filled by PyObject_GetBuffer and is released once. Values of this type live in functions
        // called by Python and are not sent elsewhere, so the GIL is held.
        unsafe { ffi::PyBuffer_Release(&mut self.0) }
    }
}

/// Bytes to read.
pub struct Bytes(Held);

impl Bytes {
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Held::new(object, ffi::PyBUF_SIMPLE).map(Self)
    }

    pub fn as_slice(&self) -> &[u8] {
        if self.0.len() == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps `len` bytes at `buf` in place until the view is released, and the slice borrows it.
        unsafe { std::slice::from_raw_parts(self.0.0.buf.cast::<u8>(), self.0.len()) }
    }
}

/// Bytes to write.
pub struct BytesMut(Held);

impl BytesMut {
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Held::new(object, ffi::PyBUF_WRITABLE).map(Self)
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.0.len() == 0 {
            return &mut [];
        }
        // SAFETY: as in `Bytes`, and the exporter said that the memory may be written.
        unsafe { std::slice::from_raw_parts_mut(self.0.0.buf.cast::<u8>(), self.0.len()) }
    }
}

/// A bytearray that nobody else has seen yet.
pub struct NewBytearray<'py>(Bound<'py, PyByteArray>, usize);

impl<'py> NewBytearray<'py> {
    /// Its bytes are whatever the allocator left there.
    pub fn new(py: Python<'py>, bytes: usize) -> PyResult<Self> {
        let size = ffi::Py_ssize_t::try_from(bytes)?;
        // SAFETY: a null pointer asks for room without content; the result is a new reference or null with an error set.
        let array = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyByteArray_FromStringAndSize(ptr::null(), size))?
        };
        Ok(Self(array.cast_into::<PyByteArray>()?, bytes))
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.1 == 0 {
            return &mut [];
        }
        // SAFETY: the array has this many bytes, and no one but us has a reference to it, so it is neither resized nor
        // read. Memory from a foreign allocator holds some bytes, whichever they are.
        unsafe {
            let start = ffi::PyByteArray_AsString(self.0.as_ptr()).cast::<u8>();
            std::slice::from_raw_parts_mut(start, self.1)
        }
    }

    /// The array, cut to its first `bytes`.
    pub fn shortened(self, bytes: usize) -> PyResult<Bound<'py, PyByteArray>> {
        if bytes != self.1 {
            self.0.resize(bytes)?;
        }
        Ok(self.0)
    }
}
