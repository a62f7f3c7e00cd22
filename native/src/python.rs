//! The binding to Python: buffers in, small values out, the GIL released while they are worked on.

use crate::codec::{codec_decode_into, codec_encode, codec_encode_into, codec_inspect, codec_size};
use crate::kernels::{Linear, Room, attend, kernels_available};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

/// CRC-32C of the parts as if they were one run of bytes.
#[pyfunction]
#[pyo3(signature = (*parts))]
fn frame_checksum(py: Python<'_>, parts: Vec<PyBuffer<u8>>) -> PyResult<u32> {
    let slices = parts.iter().map(bytes_of).collect::<PyResult<Vec<&[u8]>>>()?;
    Ok(py.detach(|| crate::checksum::frame_checksum(slices)))
}

/// SHA-256 of a model's config and weights index, both JSON objects.
#[pyfunction]
fn model_digest(py: Python<'_>, config: &[u8], index: &[u8]) -> PyResult<[u8; 32]> {
    py.detach(|| crate::identity::model_digest(config, index))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let names = [
        "BadMessage",
        "Bell",
        "Body",
        "Connection",
        "Linear",
        "Operation",
        "Room",
        "Stream",
        "Transport",
        "TransportError",
        "attend",
        "codec_decode_into",
        "codec_encode",
        "codec_encode_into",
        "codec_inspect",
        "codec_size",
        "frame_checksum",
        "kernels_available",
        "model_digest",
    ];
    module.add("__all__", names)?;
    crate::transport::register(module)?;
    module.add_class::<Linear>()?;
    module.add_class::<Room>()?;
    module.add_function(wrap_pyfunction!(attend, module)?)?;
    module.add_function(wrap_pyfunction!(kernels_available, module)?)?;
    module.add_function(wrap_pyfunction!(codec_decode_into, module)?)?;
    module.add_function(wrap_pyfunction!(codec_encode, module)?)?;
    module.add_function(wrap_pyfunction!(codec_encode_into, module)?)?;
    module.add_function(wrap_pyfunction!(codec_inspect, module)?)?;
    module.add_function(wrap_pyfunction!(codec_size, module)?)?;
    module.add_function(wrap_pyfunction!(frame_checksum, module)?)?;
    module.add_function(wrap_pyfunction!(model_digest, module)?)
}

/// The bytes behind a contiguous Python buffer, for as long as the buffer is held.
#[allow(unsafe_code)]
fn bytes_of(buffer: &PyBuffer<u8>) -> PyResult<&[u8]> {
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("a frame's bytes must be contiguous"));
    }
    if buffer.len_bytes() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the exporter keeps `len_bytes` bytes at `buf_ptr` alive and in place until the buffer is released, and
    // the slice borrows the buffer. A caller that writes to the memory from another thread meanwhile gets a checksum
    // of some mixture, as it would in C; the protocols room hands over buffers nobody else writes to.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) })
}
