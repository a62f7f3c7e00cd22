//! The codec's binding to Python: buffers of bytes in, buffers of bytes out, the GIL released while much is worked on.
//!
//! A message of one token takes less than a microsecond, so the calls are made to be cheap: all arguments may be given by
//! position, which costs Python and pyo3 least.

use crate::buffers::{Bytes, BytesMut, NewBytearray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use swarmnode_codec::{CodecError, Dtype, Plan, Scheme, Source};

/// Below so many bytes of values the GIL is kept: the work takes at most some microseconds, and who gives the GIL away for
/// that may wait a thousand times as long to have it back.
const KEEPS_GIL_BYTES: usize = 16 << 10;

fn worked<T: Send>(py: Python<'_>, value_bytes: usize, work: impl FnOnce() -> T + Send) -> T {
    if value_bytes <= KEEPS_GIL_BYTES { work() } else { py.detach(work) }
}

fn refuse(error: CodecError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The most bytes that the blob of such a tensor may have, whatever its values are.
#[pyfunction]
#[pyo3(signature = (scheme, dtype, rows, cols, group=0))]
pub fn codec_size(scheme: u64, dtype: u64, rows: u64, cols: u64, group: u64) -> PyResult<usize> {
    let (scheme, dtype) = kinds(scheme, dtype)?;
    swarmnode_codec::most_bytes(scheme, dtype, rows, cols, group).map_err(refuse)
}

/// A blob that holds `rows` x `cols` values, exactly as long as it has to be.
#[pyfunction]
#[pyo3(signature = (scheme, dtype, rows, cols, values, /, row_stride_bytes=None, group=0, zstd_level=1))]
#[allow(clippy::too_many_arguments)] // the Python signature
pub fn codec_encode<'py>(
    py: Python<'py>,
    scheme: u64,
    dtype: u64,
    rows: u64,
    cols: u64,
    values: &Bound<'py, PyAny>,
    row_stride_bytes: Option<usize>,
    group: u64,
    zstd_level: i64,
) -> PyResult<Bound<'py, PyByteArray>> {
    let (scheme, dtype) = kinds(scheme, dtype)?;
    let values = Bytes::of(values)?;
    let values = values.as_slice();
    let source = Source::new(values, dtype, rows, cols, row_stride_bytes).map_err(refuse)?;
    let plan = Plan::new(scheme, dtype, rows, cols, group, zstd_level).map_err(refuse)?;
    let write = |plan: &Plan| {
        let mut blob = NewBytearray::new(py, plan.bytes())?;
        let out = blob.as_mut_slice();
        let written = worked(py, values.len(), || plan.write(&source, out));
        Ok::<_, PyErr>((blob, written))
    };
    let (blob, written) = match write(&plan)? {
        (_, Err(CodecError::NotFinite)) => write(&plan.raw().map_err(refuse)?)?,
        done => done,
    };
    blob.shortened(written.map_err(refuse)?)
}

/// The same into the start of `out`, which has room for `codec_size` bytes; says how many it took.
#[pyfunction]
#[pyo3(signature = (scheme, dtype, rows, cols, values, out, /, row_stride_bytes=None, group=0, zstd_level=1))]
#[allow(clippy::too_many_arguments)] // the Python signature
pub fn codec_encode_into(
    py: Python<'_>,
    scheme: u64,
    dtype: u64,
    rows: u64,
    cols: u64,
    values: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    row_stride_bytes: Option<usize>,
    group: u64,
    zstd_level: i64,
) -> PyResult<usize> {
    let (scheme, dtype) = kinds(scheme, dtype)?;
    let (values, mut out) = (Bytes::of(values)?, BytesMut::of(out)?);
    let (values, out) = (values.as_slice(), out.as_mut_slice());
    let source = Source::new(values, dtype, rows, cols, row_stride_bytes).map_err(refuse)?;
    let plan = Plan::new(scheme, dtype, rows, cols, group, zstd_level).map_err(refuse)?;
    worked(py, values.len(), || swarmnode_codec::encode_into(&plan, &source, out)).map_err(refuse)
}

/// Scheme, dtype, rows and columns of a blob, from its header alone, which has to make sense.
#[pyfunction]
pub fn codec_inspect(blob: &Bound<'_, PyAny>) -> PyResult<(u8, u8, u32, u32)> {
    let blob = Bytes::of(blob)?;
    let header = swarmnode_codec::inspect(blob.as_slice()).map_err(refuse)?;
    Ok((header.scheme.number(), header.dtype.number(), header.rows, header.cols))
}

/// Decodes a blob into `out`, which has exactly the bytes of `rows` x `cols` values of `out_dtype`.
#[pyfunction]
#[pyo3(signature = (blob, out, /, out_dtype, rows, cols))]
pub fn codec_decode_into(
    py: Python<'_>,
    blob: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    out_dtype: u64,
    rows: u64,
    cols: u64,
) -> PyResult<()> {
    let dtype = Dtype::try_from(out_dtype).map_err(refuse)?;
    let (blob, mut out) = (Bytes::of(blob)?, BytesMut::of(out)?);
    let (blob, out) = (blob.as_slice(), out.as_mut_slice());
    worked(py, out.len(), || swarmnode_codec::decode_into(blob, dtype, rows, cols, out)).map_err(refuse)
}

fn kinds(scheme: u64, dtype: u64) -> PyResult<(Scheme, Dtype)> {
    Ok((Scheme::try_from(scheme).map_err(refuse)?, Dtype::try_from(dtype).map_err(refuse)?))
}
