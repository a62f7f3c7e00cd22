//! h6 and h4: four values of each row apart, the others rotated, 6 or 4 bits a value. Their rows are walked alike; what
//! differs is how 64 rotated values become bytes.

use crate::element::Element;
use crate::error::CodecError;
use crate::h8::turn_back;
use crate::isa::{INFINITE, Isa, Work};
use crate::layout::{GROUP, Row};
use crate::outliers;
use crate::scale::Scale;
use crate::source::Source;
use std::marker::PhantomData;

/// How 64 rotated values become bytes.
pub(crate) trait Code {
    /// Bits of a code.
    const BITS: usize;
    /// The magnitude that the peak is scaled to.
    const MOST: f32;
    /// The bytes of 64 codes.
    type Packed: Copy;
    const EMPTY: Self::Packed;

    fn chunks(bytes: &[u8]) -> &[Self::Packed];
    fn chunks_mut(bytes: &mut [u8]) -> &mut [Self::Packed];
    fn bytes(packed: &mut Self::Packed) -> &mut [u8];
    fn pack<I: Isa>(isa: I, rotated: I::Group, inverse: f32) -> Self::Packed;
    fn turn_back<I: Isa>(isa: I, packed: &Self::Packed, scale: [u8; 2], points: usize) -> I::Group;
}

pub(crate) struct H6;

impl Code for H6 {
    const BITS: usize = 6;
    const MOST: f32 = 31.0;
    type Packed = [u8; 48];
    const EMPTY: Self::Packed = [0; 48];

    #[inline(always)]
    fn chunks(bytes: &[u8]) -> &[Self::Packed] {
        bytes.as_chunks().0
    }
    #[inline(always)]
    fn chunks_mut(bytes: &mut [u8]) -> &mut [Self::Packed] {
        bytes.as_chunks_mut().0
    }
    #[inline(always)]
    fn bytes(packed: &mut Self::Packed) -> &mut [u8] {
        packed
    }
    #[inline(always)]
    fn pack<I: Isa>(isa: I, rotated: I::Group, inverse: f32) -> Self::Packed {
        isa.pack6(&isa.quantise(rotated, inverse))
    }
    #[inline(always)]
    fn turn_back<I: Isa>(isa: I, packed: &Self::Packed, scale: [u8; 2], points: usize) -> I::Group {
        let mut codes = isa.unpack6(packed);
        if points < GROUP {
            // What was not sent is zero, not the -32 that zero bits stand for.
            codes.iter_mut().skip(points).for_each(|code| *code = 0);
        }
        turn_back(isa, &codes, scale, points)
    }
}

pub(crate) struct Encode<'a, E, C> {
    pub source: Source<'a>,
    pub row: Row,
    pub scales: &'a mut [u8],
    pub kept: &'a mut [u8],
    pub columns: &'a mut [u8],
    pub codes: &'a mut [u8],
    /// Room for one row's groups.
    pub scratch: &'a mut [[f32; GROUP]],
    pub element: PhantomData<(E, C)>,
}

impl<E: Element, C: Code> Work for Encode<'_, E, C> {
    type Output = Result<(), CodecError>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let row = self.row;
        let all_scales = self.scales.chunks_exact_mut(2 * row.groups());
        let all_codes = self.codes.chunks_exact_mut(row.code_bytes(C::BITS));
        let apart = self.kept.as_chunks_mut().0.iter_mut().zip(self.columns.as_chunks_mut().0);
        let mut worst = 0;
        for (((values, scales), codes), (kept, columns)) in
            self.source.rows().zip(all_scales).zip(all_codes).zip(apart)
        {
            let lanes = spread::<E, I>(isa, values, self.scratch);
            worst = worst.max(outliers::take_apart(isa, self.scratch, lanes, kept, columns));
            let (scales, _) = scales.as_chunks_mut::<2>();
            let (packed, tail) = codes.split_at_mut(row.full * size_of::<C::Packed>());
            let mut groups = self.scratch.iter().zip(scales);
            for (packed, (values, scale)) in C::chunks_mut(packed).iter_mut().zip(&mut groups) {
                worst = worst.max(one::<C, I>(isa, values, packed, scale));
            }
            if let Some((values, scale)) = groups.next() {
                let mut packed = C::EMPTY;
                worst = worst.max(one::<C, I>(isa, values, &mut packed, scale));
                tail.iter_mut().zip(C::bytes(&mut packed)).for_each(|(to, from)| *to = *from);
                clear_unused(tail, row.tail_points * C::BITS);
            }
        }
        if worst >= INFINITE { Err(CodecError::NotFinite) } else { Ok(()) }
    }
}

/// The row as singles, and the largest magnitude of each lane.
#[inline(always)]
fn spread<E: Element, I: Isa>(isa: I, values: &[u8], scratch: &mut [[f32; GROUP]]) -> I::Group {
    let (blocks, tail) = E::blocks(values);
    let mut lanes = isa.load_array(&[0.0; GROUP]);
    let mut places = scratch.iter_mut();
    for (block, place) in blocks.iter().zip(&mut places) {
        let group = E::load(isa, block);
        lanes = isa.larger(lanes, group);
        *place = isa.to_array(group);
    }
    if let Some(place) = places.next() {
        let group = E::load(isa, &E::tail_block(tail));
        lanes = isa.larger(lanes, group);
        *place = isa.to_array(group);
    }
    lanes
}

#[inline(always)]
fn one<C: Code, I: Isa>(isa: I, values: &[f32; GROUP], packed: &mut C::Packed, scale: &mut [u8; 2]) -> u32 {
    let rotated = isa.rotate(isa.load_array(values));
    let peak = isa.peak(rotated);
    let found = Scale::new(peak, C::MOST);
    *scale = found.bits.to_le_bytes();
    *packed = C::pack(isa, rotated, found.inverse);
    found.worst(peak)
}

/// The bits behind the last code of a row are zero.
#[inline(always)]
fn clear_unused(tail: &mut [u8], bits: usize) {
    if let Some(last) = tail.get_mut(bits / 8) {
        *last &= (1 << (bits % 8)) - 1;
    }
}

/// Whether the bits behind the last code of each row are zero.
pub(crate) fn check_unused(codes: &[u8], row: Row, bits: usize) -> bool {
    let used = row.codes() * bits % 8;
    let rows = codes.chunks_exact(row.code_bytes(bits));
    used == 0 || rows.filter_map(|row| row.last()).all(|last| last >> used == 0)
}

pub(crate) struct Decode<'a, E, C> {
    pub row: Row,
    pub scales: &'a [u8],
    pub kept: &'a [u8],
    pub columns: &'a [u8],
    pub codes: &'a [u8],
    pub out: &'a mut [u8],
    pub element: PhantomData<(E, C)>,
}

impl<E: Element, C: Code> Work for Decode<'_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let row = self.row;
        let all_values = self.out.chunks_exact_mut(row.cols * E::BYTES);
        let all_scales = self.scales.chunks_exact(2 * row.groups());
        let all_codes = self.codes.chunks_exact(row.code_bytes(C::BITS));
        let apart = self.kept.as_chunks().0.iter().zip(self.columns.as_chunks().0);
        for (((values, scales), codes), (kept, columns)) in
            all_values.zip(all_scales).zip(all_codes).zip(apart)
        {
            let (blocks, tail) = E::blocks_mut(values);
            let (scales, _) = scales.as_chunks::<2>();
            let (packed, tail_codes) = codes.split_at(row.full * size_of::<C::Packed>());
            let mut scales = scales.iter();
            for ((block, packed), scale) in blocks.iter_mut().zip(C::chunks(packed)).zip(&mut scales) {
                E::store(isa, C::turn_back(isa, packed, *scale, GROUP), block);
            }
            if let Some(scale) = scales.next() {
                let mut packed = C::EMPTY;
                C::bytes(&mut packed).iter_mut().zip(tail_codes).for_each(|(to, from)| *to = *from);
                E::store_tail(isa, C::turn_back(isa, &packed, *scale, row.tail_points), tail);
            }
            outliers::put_back::<E>(values, kept, columns);
        }
    }
}
