//! raw: the values as they are in memory.

use crate::element::Element;
use crate::isa::{Isa, Work};
use crate::layout::GROUP;
use crate::lossless::convert;
use crate::source::Source;
use std::marker::PhantomData;

pub(crate) fn encode(source: Source<'_>, out: &mut [u8]) {
    if let Some(values) = source.whole() {
        if out.len() == values.len() {
            out.copy_from_slice(values);
        }
        return;
    }
    let mut rest = out;
    for row in source.rows() {
        let (here, behind) = rest.split_at_mut_checked(row.len()).unwrap_or_default();
        if here.len() == row.len() {
            here.copy_from_slice(row);
        }
        rest = behind;
    }
}

/// From the blob's dtype `E` to the caller's `O`.
pub(crate) struct Decode<'a, E, O> {
    pub values: &'a [u8],
    pub out: &'a mut [u8],
    pub element: PhantomData<(E, O)>,
}

impl<E: Element, O: Element> Work for Decode<'_, E, O> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if E::DTYPE == O::DTYPE && self.out.len() == self.values.len() {
            self.out.copy_from_slice(self.values);
            return;
        }
        let (blocks, tail) = E::blocks(self.values);
        let mut places = self.out.chunks_mut(GROUP * O::BYTES);
        for (block, place) in blocks.iter().zip(&mut places) {
            convert::<E, O, I>(isa, block, place);
        }
        if let Some(place) = places.next() {
            convert::<E, O, I>(isa, &E::tail_block(tail), place);
        }
    }
}
