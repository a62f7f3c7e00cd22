//! The four largest values of a row, which h6 and h4 keep apart.

use crate::element::{Element, bf16_to_f32, f32_to_bf16};
use crate::error::CodecError;
use crate::isa::{INFINITE, Isa, MAGNITUDE};
use crate::layout::{GROUP, OUTLIERS};

/// Bytes of a row's outliers, and of their columns.
pub(crate) const BYTES: usize = 2 * OUTLIERS;
/// Lanes among which the fourth largest is looked for.
const LANES: usize = 16;

/// Takes the four largest magnitudes out of a row (of equal ones those of the lowest columns) and leaves zeros.
///
/// `values` is the row in groups, filled up with zeros; at least [`OUTLIERS`] columns are true ones. `lanes` holds, for
/// each of the 64 places in a group, the largest magnitude that any group has there. Returns the largest magnitude's bits.
#[inline(always)]
pub(crate) fn take_apart<I: Isa>(
    isa: I,
    values: &mut [[f32; GROUP]],
    lanes: I::Group,
    kept: &mut [u8; BYTES],
    columns: &mut [u8; BYTES],
) -> u32 {
    let lanes = isa.to_array(lanes).map(f32::to_bits);
    let floor = fourth_largest(&lanes);
    // Best first: larger magnitudes, then lower columns. Column numbers are stored so that larger is better.
    let mut best = [0u64; OUTLIERS];
    for (lane, peak) in lanes.iter().enumerate() {
        if *peak < floor {
            continue;
        }
        for (group, row) in values.iter().enumerate() {
            let magnitude = row.get(lane).map_or(0, |value| value.to_bits() & MAGNITUDE);
            if magnitude >= floor {
                insert(&mut best, u64::from(magnitude) << 32 | u64::from(!((group * GROUP + lane) as u32)));
            }
        }
    }
    let largest = (best[0] >> 32) as u32;
    let mut found = best.map(|entry| !(entry as u32));
    found.sort_unstable();
    let (kept, _) = kept.as_chunks_mut::<2>();
    let (columns, _) = columns.as_chunks_mut::<2>();
    let mut worst = largest;
    for ((kept, place), column) in kept.iter_mut().zip(columns).zip(found) {
        let value =
            values.get_mut(column as usize / GROUP).and_then(|row| row.get_mut(column as usize % GROUP));
        let bits = f32_to_bf16(value.map_or(0.0, std::mem::take));
        worst = worst.max((u32::from(bits) << 16) & MAGNITUDE);
        *kept = bits.to_le_bytes();
        *place = (column as u16).to_le_bytes();
    }
    worst
}

/// A bound that the row's fourth largest magnitude reaches: the fourth largest of the peaks of 16 sets of lanes, which
/// are peaks of 16 different values.
#[inline(always)]
fn fourth_largest(lanes: &[u32; GROUP]) -> u32 {
    let mut peaks = [0; LANES];
    for set in lanes.as_chunks::<LANES>().0 {
        peaks.iter_mut().zip(set).for_each(|(peak, value)| *peak = (*value).max(*peak));
    }
    let mut best = [0u32; OUTLIERS];
    for peak in peaks {
        let mut value = peak;
        for place in &mut best {
            (*place, value) = ((*place).max(value), (*place).min(value));
        }
    }
    best[OUTLIERS - 1]
}

#[inline(always)]
fn insert(best: &mut [u64; OUTLIERS], entry: u64) {
    if entry <= best[OUTLIERS - 1] {
        return;
    }
    let mut entry = entry;
    for place in best {
        (*place, entry) = ((*place).max(entry), (*place).min(entry));
    }
}

/// Whether the outliers are finite and their columns ascend within rows of `cols`.
pub(crate) fn check(kept: &[u8], columns: &[u8], cols: usize) -> Result<(), CodecError> {
    let (kept, _) = kept.as_chunks::<2>();
    if kept.iter().any(|bits| u32::from(u16::from_le_bytes(*bits)) << 16 & MAGNITUDE >= INFINITE) {
        return Err(CodecError::BadOutlier);
    }
    for (row, columns) in columns.as_chunks::<BYTES>().0.iter().enumerate() {
        let [a, b, c, d, e, f, g, h] = *columns;
        let [a, b, c, d] =
            [[a, b], [c, d], [e, f], [g, h]].map(|bytes| usize::from(u16::from_le_bytes(bytes)));
        if !(a < b && b < c && c < d && d < cols) {
            return Err(CodecError::BadOutlierColumn { row });
        }
    }
    Ok(())
}

/// Sets a decoded row's outliers.
#[inline(always)]
pub(crate) fn put_back<E: Element>(row: &mut [u8], kept: &[u8; BYTES], columns: &[u8; BYTES]) {
    for (bits, column) in kept.as_chunks::<2>().0.iter().zip(columns.as_chunks::<2>().0) {
        let start = usize::from(u16::from_le_bytes(*column)) * E::BYTES;
        let value = E::from_f32(bf16_to_f32(u16::from_le_bytes(*bits)));
        if let Some(place) = row.get_mut(start..start + E::BYTES) {
            place.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        }
    }
}
