//! zstd for one plane of bytes, with contexts that each thread keeps; and the room that a thread keeps for encoding.

use crate::error::CodecError;
use crate::isa::Level;
use crate::layout::GROUP;
use crate::literals;
use std::cell::RefCell;
use zstd_safe::{CCtx, CParameter, DCtx, ResetDirective};

/// A thread that once encoded a larger message gives the room back.
const MOST_KEPT_BYTES: usize = 4 << 20;

/// The level that only counts how often each byte occurs, which [`literals`] does: exponents and 8-bit floats hold no
/// strings worth looking for. What zstd finds by chance costs more than the bytes' own code, in time and in size.
const ENTROPY_ONLY: i32 = 1;

#[derive(Default)]
struct Kept {
    packer: Option<CCtx<'static>>,
    unpacker: Option<DCtx<'static>>,
    plane: Vec<u8>,
    row: Vec<[f32; GROUP]>,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Runs `work` with `bytes` bytes of room, whose content is anything.
pub(crate) fn with_plane<R>(bytes: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut plane = KEPT.with_borrow_mut(|kept| std::mem::take(&mut kept.plane));
    if plane.len() < bytes {
        plane.resize(bytes, 0);
    }
    let result = work(plane.get_mut(..bytes).unwrap_or_default());
    if plane.len() <= MOST_KEPT_BYTES {
        KEPT.with_borrow_mut(|kept| kept.plane = plane);
    }
    result
}

/// Runs `work` with room for the groups of a row, whose content is anything. Rows of h6 and h4 have at most 65,536
/// columns, so this is 256 KiB at most.
pub(crate) fn with_row<R>(groups: usize, work: impl FnOnce(&mut [[f32; GROUP]]) -> R) -> R {
    let mut row = KEPT.with_borrow_mut(|kept| std::mem::take(&mut kept.row));
    if row.len() < groups {
        row.resize(groups, [0.0; GROUP]);
    }
    let result = work(row.get_mut(..groups).unwrap_or_default());
    KEPT.with_borrow_mut(|kept| kept.row = row);
    result
}

/// Compresses `plane` into `out` if the result is smaller than the plane; says how many bytes it has.
pub(crate) fn pack(
    plane: &[u8],
    level: i32,
    cpu: Level,
    out: &mut [u8],
) -> Result<Option<usize>, CodecError> {
    let Some(room) = plane.len().checked_sub(1).and_then(|most| out.get_mut(..most)) else {
        return Ok(None);
    };
    if level == ENTROPY_ONLY {
        return Ok(cpu.run(literals::Pack { plane, out: room }));
    }
    KEPT.with_borrow_mut(|kept| {
        if kept.packer.is_none() {
            kept.packer = CCtx::try_create();
        }
        let packer = kept.packer.as_mut().ok_or(CodecError::Compressor)?;
        let refused = |_| CodecError::Compressor;
        // A compression that ran out of room is still open.
        packer.reset(ResetDirective::SessionOnly).map_err(refused)?;
        for parameter in [CParameter::CompressionLevel(level), CParameter::ContentSizeFlag(false)] {
            packer.set_parameter(parameter).map_err(refused)?;
        }
        // Not enough room is the only failure that the bytes can cause, and means that it does not pay.
        Ok(packer.compress2(room, plane).ok())
    })
}

/// Decompresses into exactly `out`; whatever the frame claims, no byte more is written or allocated.
pub(crate) fn unpack(packed: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    KEPT.with_borrow_mut(|kept| {
        if kept.unpacker.is_none() {
            kept.unpacker = DCtx::try_create();
        }
        let unpacker = kept.unpacker.as_mut().ok_or(CodecError::BadPlane)?;
        match unpacker.decompress(out, packed) {
            Ok(bytes) if bytes == out.len() => Ok(()),
            _ => Err(CodecError::BadPlane),
        }
    })
}
