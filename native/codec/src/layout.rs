//! Where everything lies in a blob: all lengths follow from the header's fields, none is believed.

use crate::error::CodecError;
use crate::header::{HEADER_BYTES, Header};
use crate::kinds::Scheme;
use std::ops::Range;

/// Values under one rotation, and under one scale.
pub(crate) const GROUP: usize = 64;
/// Values of a row that h6 and h4 keep apart.
pub(crate) const OUTLIERS: usize = 4;
/// Sections start here, so that a tensor may be read in place by whatever likes aligned loads.
const ALIGNMENT: usize = 64;
const MOST_SECTIONS: usize = 4;

/// A row cut into groups.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub cols: usize,
    /// Groups with 64 values.
    pub full: usize,
    /// Values in the last group when it has fewer, else 0.
    pub tail: usize,
    /// Points of the tail's rotation: the next power of two, or 0.
    pub tail_points: usize,
}

impl Row {
    pub fn new(cols: u32) -> Self {
        let cols = cols as usize;
        let tail = cols % GROUP;
        let tail_points = if tail == 0 { 0 } else { tail.next_power_of_two() };
        Self { cols, full: cols / GROUP, tail, tail_points }
    }

    pub fn groups(self) -> usize {
        self.full + usize::from(self.tail > 0)
    }

    /// Codes of a rotated row.
    pub fn codes(self) -> usize {
        self.full * GROUP + self.tail_points
    }

    /// Bytes of a rotated row's codes of `bits` each; a row starts at a byte.
    pub fn code_bytes(self, bits: usize) -> usize {
        (self.codes() * bits).div_ceil(8)
    }
}

/// The sections of a blob. Between them, and behind the header, stand zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    sections: [Range<usize>; MOST_SECTIONS],
    pub total: usize,
}

impl Layout {
    pub fn of(header: &Header) -> Result<Self, CodecError> {
        let mut lengths = [0u64; MOST_SECTIONS];
        let (rows, row) = (u64::from(header.rows), Row::new(header.cols));
        let (values, value_bytes) = (rows * row.cols as u64, header.dtype.bytes() as u64);
        let plane = header.squeezed.map_or(values, u64::from);
        let scales = rows * 2 * scales_per_row(header) as u64;
        let outliers = rows * 2 * OUTLIERS as u64;
        let codes = |bits| rows * row.code_bytes(bits) as u64;
        let used: &[u64] = match header.scheme {
            Scheme::Raw => &[values * value_bytes],
            Scheme::Lossless => &[plane, values * (value_bytes - 1)],
            Scheme::H8 => &[scales, codes(8)],
            Scheme::H6 => &[scales, outliers, outliers, codes(6)],
            Scheme::H4 => &[scales, outliers, outliers, codes(4)],
            Scheme::E4m3 | Scheme::E5m2 => &[scales, plane],
        };
        lengths.iter_mut().zip(used).for_each(|(length, given)| *length = *given);
        let too_large = CodecError::TooLarge { rows, cols: u64::from(header.cols) };
        let mut total = HEADER_BYTES;
        let mut sections = [const { 0..0 }; MOST_SECTIONS];
        for (section, length) in sections.iter_mut().zip(lengths) {
            if length == 0 {
                continue;
            }
            let length = usize::try_from(length).map_err(|_| too_large)?;
            let start = total.checked_next_multiple_of(ALIGNMENT).ok_or(too_large)?;
            total = start.checked_add(length).ok_or(too_large)?;
            *section = start..total;
        }
        Ok(Self { sections, total })
    }

    /// The sections of a blob that has this layout; empty ones are empty.
    pub fn cut<'a>(&self, blob: &'a [u8]) -> [&'a [u8]; MOST_SECTIONS] {
        self.sections.clone().map(|section| blob.get(section).unwrap_or_default())
    }

    /// The same for a blob being written; the zeros between the sections are written here.
    pub fn cut_mut<'a>(&self, blob: &'a mut [u8]) -> [&'a mut [u8]; MOST_SECTIONS] {
        let (mut rest, mut at) = (blob, 0);
        self.sections.clone().map(|section| {
            if section.is_empty() {
                return Default::default();
            }
            let (before, behind) =
                std::mem::take(&mut rest).split_at_mut_checked(section.start - at).unwrap_or_default();
            if at > 0 {
                before.fill(0);
            } else if let Some(padding) = before.get_mut(HEADER_BYTES..) {
                padding.fill(0);
            }
            let (here, behind) = behind.split_at_mut_checked(section.len()).unwrap_or_default();
            (rest, at) = (behind, section.end);
            here
        })
    }

    /// The first byte of the padding that is not zero.
    pub fn dirt(&self, blob: &[u8]) -> Option<usize> {
        let mut at = HEADER_BYTES;
        for section in self.sections.iter().filter(|section| !section.is_empty()) {
            let padding = blob.get(at..section.start).unwrap_or_default();
            if let Some(found) = padding.iter().position(|byte| *byte != 0) {
                return Some(at + found);
            }
            at = section.end;
        }
        None
    }
}

pub(crate) fn scales_per_row(header: &Header) -> usize {
    let fp8 = matches!(header.scheme, Scheme::E4m3 | Scheme::E5m2);
    if fp8 && header.group == 0 { 1 } else { Row::new(header.cols).groups() }
}

/// Bytes of the plane that may go through zstd: one for every value.
pub(crate) fn plane_bytes(header: &Header) -> Result<usize, CodecError> {
    let (rows, cols) = (u64::from(header.rows), u64::from(header.cols));
    usize::try_from(rows * cols).map_err(|_| CodecError::TooLarge { rows, cols })
}
