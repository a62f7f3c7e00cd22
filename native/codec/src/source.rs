//! The values to encode: rows of a matrix in somebody's memory, at any distance from each other.

use crate::error::CodecError;
use crate::header::Header;
use crate::kinds::Dtype;

/// A matrix of values, row by row; rows need not touch.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    rows: u32,
    cols: u32,
    stride: usize,
}

impl<'a> Source<'a> {
    /// `rows` x `cols` values of `dtype` in `bytes`, each row `stride` bytes behind the one before (without a gap
    /// when not given; 0 repeats one row).
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLarge`], and [`CodecError::BadValues`] when `bytes` end elsewhere than the last row.
    pub fn new(
        bytes: &'a [u8],
        dtype: Dtype,
        rows: u64,
        cols: u64,
        stride: Option<usize>,
    ) -> Result<Self, CodecError> {
        let header = Header::new(crate::Scheme::Raw, dtype, rows, cols, 0)?;
        let row_bytes = header.cols as usize * dtype.bytes();
        let stride = stride.unwrap_or(row_bytes);
        let gaps = (header.rows as usize).saturating_sub(1);
        let reach = gaps.checked_mul(stride).and_then(|reach| reach.checked_add(row_bytes));
        let needed = if header.rows == 0 { 0 } else { reach.unwrap_or(usize::MAX) };
        if bytes.len() != needed {
            return Err(CodecError::BadValues { needed, given: bytes.len() });
        }
        Ok(Self { bytes, dtype, rows: header.rows, cols: header.cols, stride })
    }

    /// The type of the values.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (u32, u32) {
        (self.rows, self.cols)
    }

    /// The rows' bytes, first to last.
    #[inline(always)]
    pub(crate) fn rows(self) -> impl Iterator<Item = &'a [u8]> {
        let row_bytes = self.cols as usize * self.dtype.bytes();
        (0..self.rows as usize).map(move |row| {
            let start = row * self.stride;
            self.bytes.get(start..start + row_bytes).unwrap_or_default()
        })
    }

    /// All values in one piece, if no gap is between the rows.
    pub(crate) fn whole(self) -> Option<&'a [u8]> {
        let touching = self.stride == self.cols as usize * self.dtype.bytes();
        (touching || self.rows < 2).then_some(self.bytes)
    }
}
