//! Where a tensor lies: an address, a dtype, a shape and strides, checked once; rows of it as slices.
#![allow(unsafe_code)]

use crate::element::{Dtype, Element};
use crate::error::KernelError;

/// A tensor of four dimensions whose last lies close together.
#[derive(Debug, Clone, Copy)]
pub struct View {
    start: *mut u8,
    dtype: Dtype,
    shape: [usize; 4],
    strides: [usize; 4],
}

// SAFETY: a view is an address and numbers; who makes one promises that the memory is there, and who reads or writes
// through one sees to it that no two threads use the same row.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// A view of the memory at `start`; strides are in values.
    ///
    /// # Errors
    ///
    /// The address suits no value of the dtype, or the last dimension does not lie close together.
    ///
    /// # Safety
    ///
    /// As long as the view is used, all values that shape and strides reach are memory that may be read, and written
    /// if the view is handed over to be written to, and nobody else writes to it.
    pub unsafe fn new(
        start: *mut u8,
        dtype: Dtype,
        shape: [usize; 4],
        strides: [usize; 4],
    ) -> Result<Self, KernelError> {
        if !(start as usize).is_multiple_of(dtype.bytes()) {
            return Err(KernelError::Unaligned);
        }
        let [.., width] = shape;
        let [.., step] = strides;
        if step != 1 && width > 1 {
            return Err(KernelError::Unfit("the last dimension has gaps"));
        }
        Ok(Self { start, dtype, shape, strides })
    }

    /// What its values are.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its lengths.
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Where it begins, to tell views apart.
    #[must_use]
    pub fn address(&self) -> usize {
        self.start as usize
    }

    /// Whether the rows of the third dimension follow each other without gaps.
    pub(crate) fn close(&self) -> bool {
        let [_, _, rows, width] = self.shape;
        let [_, _, step, _] = self.strides;
        step == width || rows <= 1
    }

    /// The address of a row, within the shape.
    #[inline(always)]
    fn at<E: Element>(&self, [a, b, c]: [usize; 3], rows: usize) -> *mut E {
        let [most_a, most_b, most_c, _] = self.shape;
        assert!(E::DTYPE == self.dtype && a < most_a && b < most_b && rows <= most_c && c <= most_c - rows);
        let [by_a, by_b, by_c, _] = self.strides;
        // SAFETY: within the shape, so within what `new` was promised.
        unsafe { self.start.cast::<E>().add(a * by_a + b * by_b + c * by_c) }
    }

    /// Where a row begins, to have it fetched.
    #[inline(always)]
    pub(crate) fn start_of<E: Element>(&self, at: [usize; 3]) -> *const E {
        self.at::<E>(at, 1)
    }

    /// Some rows of the third dimension, which has no gaps, behind each other.
    ///
    /// # Safety
    ///
    /// Nobody writes to them while the slice lives.
    #[inline(always)]
    pub(crate) unsafe fn rows<E: Element>(&self, at: [usize; 3], rows: usize) -> &[E] {
        assert!(rows <= 1 || self.close());
        let [.., width] = self.shape;
        // SAFETY: `at` has checked that the rows are within the shape, and they lie close together.
        unsafe { std::slice::from_raw_parts(self.at::<E>(at, rows), rows * width) }
    }

    /// A row to be written.
    ///
    /// # Safety
    ///
    /// Nobody else uses this row while the slice lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // by contract
    pub(crate) unsafe fn row_mut<E: Element>(&self, at: [usize; 3]) -> &mut [E] {
        let [.., width] = self.shape;
        // SAFETY: by contract.
        unsafe { self.stretch_mut(at, 0, width) }
    }

    /// Some neighbours of a row, to be written.
    ///
    /// # Safety
    ///
    /// Nobody else uses these values while the slice lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // by contract
    pub(crate) unsafe fn stretch_mut<E: Element>(
        &self,
        at: [usize; 3],
        first: usize,
        count: usize,
    ) -> &mut [E] {
        let [.., width] = self.shape;
        assert!(count <= width && first <= width - count);
        // SAFETY: `at` has checked that the row is within the shape, and the stretch is within the row.
        unsafe { std::slice::from_raw_parts_mut(self.at::<E>(at, 1).add(first), count) }
    }
}
