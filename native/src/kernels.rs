//! The binding of the kernels to Python: tensors by DLPack, which says itself where they lie, of which type and shape.
#![allow(unsafe_code)]

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use std::ffi::{CStr, c_void};
use std::ops::Range;
use swarmnode_kernels::{Attention, Dtype, KernelError, Level, Session, View};

/// Below so many multiplications the GIL is kept: who gives it away for some microseconds may wait a thousand times as
/// long to have it back.
const KEEPS_GIL_WORK: usize = 1 << 18;

const NAME: &CStr = c"dltensor";

/// DLPack's `DLTensor`, version 0.x, field by field.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const CPU: i32 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;

fn refuse(error: KernelError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn unfit<T>(what: &str) -> PyResult<T> {
    Err(PyValueError::new_err(format!("not a tensor that the kernels take: {what}")))
}

/// The tensor in a capsule that nobody has consumed, with ones before its dimensions if they are fewer than four.
fn view(capsule: &Bound<'_, PyCapsule>) -> PyResult<View> {
    let Ok(tensor) = capsule.pointer_checked(Some(NAME)) else {
        return unfit("the capsule holds none");
    };
    // SAFETY: a capsule of this name points to a DLManagedTensor, which begins with a DLTensor and lives as long as the
    // capsule, whose reference is held.
    let tensor = unsafe { tensor.cast::<DlTensor>().as_ref() };
    let dtype = match (tensor.code, tensor.bits, tensor.lanes) {
        (FLOAT, 32, 1) => Dtype::F32,
        (FLOAT, 16, 1) => Dtype::F16,
        (BFLOAT, 16, 1) => Dtype::Bf16,
        _ => return unfit("its dtype"),
    };
    let dimensions = usize::try_from(tensor.ndim).unwrap_or(usize::MAX);
    if tensor.device_type != CPU || dimensions > 4 || tensor.strides.is_null() {
        return unfit("its device or its dimensions");
    }
    let (mut shape, mut strides) = ([1; 4], [1; 4]);
    for number in 0..dimensions {
        // SAFETY: DLPack has `ndim` lengths and as many strides there.
        let (length, stride) = unsafe { (*tensor.shape.add(number), *tensor.strides.add(number)) };
        let (Ok(length), Ok(stride)) = (usize::try_from(length), usize::try_from(stride)) else {
            return unfit("its strides");
        };
        let at = 4 - dimensions + number;
        if let (Some(to_length), Some(to_stride)) = (shape.get_mut(at), strides.get_mut(at)) {
            (*to_length, *to_stride) = (length, stride);
        }
    }
    let start = tensor.data.cast::<u8>().wrapping_add(usize::try_from(tensor.byte_offset)?);
    // SAFETY: the tensor's own word for where it lies; the capsule keeps it there while it is held.
    unsafe { View::new(start, dtype, shape, strides) }.map_err(refuse)
}

fn worked<T: Send>(py: Python<'_>, work: usize, call: impl FnOnce() -> T + Send) -> T {
    if work <= KEEPS_GIL_WORK { call() } else { py.detach(call) }
}

/// Whether this CPU has code of its own.
#[pyfunction]
pub fn kernels_available() -> bool {
    Level::best().is_some()
}

/// One session's keys and values in one block.
#[pyclass(frozen, module = "swarmnode._native")]
pub struct Room {
    keys: View,
    values: View,
    _held: [Py<PyCapsule>; 2],
}

#[pymethods]
impl Room {
    #[new]
    #[pyo3(signature = (keys, values, /))]
    fn new(keys: Bound<'_, PyCapsule>, values: Bound<'_, PyCapsule>) -> PyResult<Self> {
        Ok(Self { keys: view(&keys)?, values: view(&values)?, _held: [keys.unbind(), values.unbind()] })
    }
}

/// Puts each session's new key and value into its room and attends to what its query sees.
#[pyfunction]
#[pyo3(signature = (queries, keys, values, out, rooms, places, /, scale, threads, soft_cap=None, sinks=None))]
#[allow(clippy::too_many_arguments)] // the Python signature
#[allow(clippy::needless_pass_by_value)] // as pyo3 hands them over
pub fn attend(
    py: Python<'_>,
    queries: &Bound<'_, PyCapsule>,
    keys: &Bound<'_, PyCapsule>,
    values: &Bound<'_, PyCapsule>,
    out: &Bound<'_, PyCapsule>,
    rooms: Vec<PyRef<'_, Room>>,
    places: Vec<[usize; 3]>,
    scale: f32,
    threads: usize,
    soft_cap: Option<f32>,
    sinks: Option<Vec<f32>>,
) -> PyResult<()> {
    if rooms.len() != places.len() {
        return unfit("as many places as rooms are wanted");
    }
    let all = Attention {
        queries: view(queries)?,
        keys: view(keys)?,
        values: view(values)?,
        out: view(out)?,
        scale,
        soft_cap,
        sinks: sinks.as_deref(),
    };
    let sessions: Vec<Session> = rooms
        .iter()
        .zip(&places)
        .map(|(room, [token, at, first])| Session {
            keys: room.keys,
            values: room.values,
            token: *token,
            at: *at,
            first: *first,
        })
        .collect();
    let [_, heads, tokens, width] = all.queries.shape();
    let seen: usize = places.iter().map(|[_, at, first]| at.saturating_sub(*first)).max().unwrap_or(0);
    let work = heads.saturating_mul(tokens).saturating_mul(width).saturating_mul(seen);
    worked(py, work, || swarmnode_kernels::attend(&all, &sessions, threads)).map_err(refuse)
}

/// A linear layer's weights, `[outputs, inputs]`, and its bias, `[outputs]`.
#[pyclass(frozen, module = "swarmnode._native")]
pub struct Linear {
    weights: View,
    bias: Option<View>,
    _held: (Py<PyCapsule>, Option<Py<PyCapsule>>),
}

#[pymethods]
impl Linear {
    #[new]
    #[pyo3(signature = (weights, bias, /))]
    fn new(weights: Bound<'_, PyCapsule>, bias: Option<Bound<'_, PyCapsule>>) -> PyResult<Self> {
        Ok(Self {
            weights: view(&weights)?,
            bias: bias.as_ref().map(view).transpose()?,
            _held: (weights.unbind(), bias.map(Bound::unbind)),
        })
    }

    /// Writes the layer's results for the rows in `runs`.
    #[pyo3(signature = (rows, out, runs, /, threads))]
    #[allow(clippy::needless_pass_by_value)] // as pyo3 hands them over
    fn apply(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyCapsule>,
        out: &Bound<'_, PyCapsule>,
        runs: Vec<(usize, usize)>,
        threads: usize,
    ) -> PyResult<()> {
        let (rows, out) = (view(rows)?, view(out)?);
        let [_, _, outputs, inputs] = self.weights.shape();
        let [_, _, count, _] = rows.shape();
        let runs: Vec<Range<usize>> = runs.into_iter().map(|(start, end)| start..end).collect();
        let (weights, bias) = (&self.weights, self.bias.as_ref());
        let work = outputs.saturating_mul(inputs).saturating_mul(count);
        worked(py, work, || swarmnode_kernels::linear(&rows, weights, bias, &out, &runs, threads))
            .map_err(refuse)
    }
}
