//! h8: each group of 64 columns rotated, 8 bits a value, one scale a group.

use crate::element::{Element, bf16_to_f32};
use crate::error::CodecError;
use crate::isa::{INFINITE, Isa, Work};
use crate::layout::{GROUP, Row};
use crate::scale::Scale;
use crate::source::Source;
use std::marker::PhantomData;

/// The largest code; -128 is not used, so that the codes are symmetric.
const MOST: f32 = 127.0;

pub(crate) struct Encode<'a, E> {
    pub source: Source<'a>,
    pub row: Row,
    pub scales: &'a mut [u8],
    pub codes: &'a mut [u8],
    pub element: PhantomData<E>,
}

impl<E: Element> Work for Encode<'_, E> {
    type Output = Result<(), CodecError>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let row = self.row;
        let scales = self.scales.chunks_exact_mut(2 * row.groups());
        let codes = self.codes.chunks_exact_mut(row.codes());
        let mut worst = 0;
        for ((values, scales), codes) in self.source.rows().zip(scales).zip(codes) {
            let (blocks, tail) = E::blocks(values);
            let (scales, _) = scales.as_chunks_mut::<2>();
            let (groups, tail_codes) = codes.split_at_mut(row.full * GROUP);
            let (groups, _) = groups.as_chunks_mut::<GROUP>();
            let mut scales = scales.iter_mut();
            for ((block, codes), scale) in blocks.iter().zip(groups).zip(&mut scales) {
                worst = worst.max(one::<E, I>(isa, block, codes, scale));
            }
            if let Some(scale) = scales.next() {
                let mut codes = [0; GROUP];
                worst = worst.max(one::<E, I>(isa, &E::tail_block(tail), &mut codes, scale));
                tail_codes.iter_mut().zip(codes).for_each(|(to, code)| *to = code);
            }
        }
        if worst >= INFINITE { Err(CodecError::NotFinite) } else { Ok(()) }
    }
}

#[inline(always)]
fn one<E: Element, I: Isa>(isa: I, block: &E::Block, codes: &mut [u8; GROUP], scale: &mut [u8; 2]) -> u32 {
    let rotated = isa.rotate(E::load(isa, block));
    let peak = isa.peak(rotated);
    let found = Scale::new(peak, MOST);
    *scale = found.bits.to_le_bytes();
    *codes = isa.quantise(rotated, found.inverse).map(|code| code as u8);
    found.worst(peak)
}

pub(crate) struct Decode<'a, E> {
    pub row: Row,
    pub scales: &'a [u8],
    pub codes: &'a [u8],
    pub out: &'a mut [u8],
    pub element: PhantomData<E>,
}

impl<E: Element> Work for Decode<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let row = self.row;
        let rows = self.out.chunks_exact_mut(row.cols * E::BYTES);
        let scales = self.scales.chunks_exact(2 * row.groups());
        let codes = self.codes.chunks_exact(row.codes());
        for ((values, scales), codes) in rows.zip(scales).zip(codes) {
            let (blocks, tail) = E::blocks_mut(values);
            let (scales, _) = scales.as_chunks::<2>();
            let (groups, tail_codes) = codes.split_at(row.full * GROUP);
            let (groups, _) = groups.as_chunks::<GROUP>();
            let mut scales = scales.iter();
            for ((block, codes), scale) in blocks.iter_mut().zip(groups).zip(&mut scales) {
                let codes = codes.map(|code| code as i8);
                E::store(isa, turn_back(isa, &codes, *scale, GROUP), block);
            }
            if let Some(scale) = scales.next() {
                let mut codes = [0; GROUP];
                codes.iter_mut().zip(tail_codes).for_each(|(to, code)| *to = *code as i8);
                E::store_tail(isa, turn_back(isa, &codes, *scale, row.tail_points), tail);
            }
        }
    }
}

/// The values of a group from its codes. The transform is its own inverse but for the factor 1 / points, a power of
/// two; applied to the scale first it changes no bit, and nothing overflows that did not before.
#[inline(always)]
pub(crate) fn turn_back<I: Isa>(isa: I, codes: &[i8; GROUP], scale: [u8; 2], points: usize) -> I::Group {
    let scale = bf16_to_f32(u16::from_le_bytes(scale)) / points as f32;
    isa.rotate(isa.widen(codes, scale))
}
