//! e4m3 and e5m2: 8-bit floats (OCP 8-bit floating point specification, revision 1.0) under one scale a row or a group.

use crate::element::{Element, bf16_to_f32};
use crate::error::CodecError;
use crate::isa::{INFINITE, Isa, MAGNITUDE, Work};
use crate::layout::{GROUP, Row};
use crate::plane::Plane;
use crate::scale::Scale;
use crate::source::Source;
use std::marker::PhantomData;

/// One of the two formats; both count a single's exponent from another zero and keep its first bits of mantissa.
pub(crate) trait Format {
    const MANTISSA: u32;
    const BIAS: u32;
    /// The largest finite value, and its code.
    const MOST: f32;
    const MOST_CODE: u8;

    /// The code next to a value, which is not beyond the largest one.
    #[inline(always)]
    fn code(value: f32) -> u8 {
        let bits = value.to_bits();
        let magnitude = f32::from_bits(bits & MAGNITUDE).min(Self::MOST);
        let dropped = 23 - Self::MANTISSA;
        let bits_of = magnitude.to_bits();
        let rounded = bits_of.wrapping_add((1 << (dropped - 1)) - 1 + ((bits_of >> dropped) & 1)) >> dropped;
        let normal = rounded.wrapping_sub((127 - Self::BIAS) << Self::MANTISSA);
        // Below the smallest normal value the step is fixed: let an addition that has this step round.
        let rounder = f32::from_bits((127 + 24 - Self::BIAS - Self::MANTISSA) << 23);
        let subnormal = (magnitude + rounder).to_bits().wrapping_sub(rounder.to_bits());
        let smallest = f32::from_bits((128 - Self::BIAS) << 23);
        let code = if magnitude < smallest { subnormal } else { normal };
        (code | (bits >> 24 & 0x80)) as u8
    }

    /// The value of a code that is finite.
    #[inline(always)]
    fn value(code: u8) -> f32 {
        let (sign, magnitude) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7F));
        let normal = (magnitude << (23 - Self::MANTISSA)) + ((127 - Self::BIAS) << 23);
        let step = f32::from_bits((128 - Self::BIAS - Self::MANTISSA) << 23);
        let subnormal = (magnitude as i32 as f32 * step).to_bits();
        f32::from_bits(sign | if magnitude < 1 << Self::MANTISSA { subnormal } else { normal })
    }
}

pub(crate) struct E4m3;

impl Format for E4m3 {
    const MANTISSA: u32 = 3;
    const BIAS: u32 = 7;
    const MOST: f32 = 448.0;
    const MOST_CODE: u8 = 0x7E;
}

pub(crate) struct E5m2;

impl Format for E5m2 {
    const MANTISSA: u32 = 2;
    const BIAS: u32 = 15;
    const MOST: f32 = 57_344.0;
    const MOST_CODE: u8 = 0x7B;
}

pub(crate) struct Encode<'a, E, F> {
    pub source: Source<'a>,
    pub row: Row,
    /// One scale a row, not a group.
    pub by_row: bool,
    pub scales: &'a mut [u8],
    pub codes: &'a mut [u8],
    pub element: PhantomData<(E, F)>,
}

impl<E: Element, F: Format> Work for Encode<'_, E, F> {
    type Output = Result<(), CodecError>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let scale_bytes = if self.by_row { 2 } else { 2 * self.row.groups() };
        let codes = self.codes.chunks_exact_mut(self.row.cols);
        let scales = self.scales.chunks_exact_mut(scale_bytes);
        let mut worst = 0;
        for ((values, scales), codes) in self.source.rows().zip(scales).zip(codes) {
            let (blocks, tail) = E::blocks(values);
            let (scales, _) = scales.as_chunks_mut::<2>();
            let whole = if self.by_row {
                let mut lanes = E::load(isa, &E::tail_block(tail));
                for block in blocks {
                    lanes = isa.larger(lanes, E::load(isa, block));
                }
                let peak = isa.peak(lanes);
                let scale = Scale::new(peak, F::MOST);
                worst = worst.max(scale.worst(peak));
                scales.iter_mut().for_each(|place| *place = scale.bits.to_le_bytes());
                Some(scale.inverse)
            } else {
                None
            };
            let mut scales = scales.iter_mut();
            let mut scaled = |group: I::Group| {
                let inverse = whole.unwrap_or_else(|| {
                    let peak = isa.peak(group);
                    let scale = Scale::new(peak, F::MOST);
                    worst = worst.max(scale.worst(peak));
                    if let Some(place) = scales.next() {
                        *place = scale.bits.to_le_bytes();
                    }
                    scale.inverse
                });
                if inverse == 0.0 {
                    return [0; GROUP]; // without signs
                }
                isa.to_array(group).map(|value| F::code(value * inverse))
            };
            let (groups, tail_codes) = codes.as_chunks_mut::<GROUP>();
            for (block, codes) in blocks.iter().zip(groups) {
                *codes = scaled(E::load(isa, block));
            }
            if !tail.is_empty() {
                let codes = scaled(E::load(isa, &E::tail_block(tail)));
                tail_codes.iter_mut().zip(codes).for_each(|(to, code)| *to = code);
            }
        }
        if worst >= INFINITE { Err(CodecError::NotFinite) } else { Ok(()) }
    }
}

pub(crate) struct Decode<'a, E, F> {
    pub row: Row,
    pub by_row: bool,
    pub scales: &'a [u8],
    pub codes: Plane<'a>,
    pub out: &'a mut [u8],
    pub element: PhantomData<(E, F)>,
}

impl<E: Element, F: Format> Work for Decode<'_, E, F> {
    /// Whether all codes were finite.
    type Output = bool;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> bool {
        let row = self.row;
        let worst = self.codes.all(self.out).iter().fold(0, |worst, code| worst.max(code & 0x7F));
        if worst > F::MOST_CODE {
            return false;
        }
        let per_row = if self.by_row { 1 } else { row.groups() };
        let mut at = 0;
        for scales in self.scales.chunks_exact(2 * per_row) {
            let mut end = at;
            for group in 0..row.groups() {
                let scale =
                    scales.get(if self.by_row { 0 } else { 2 * group }..).and_then(<[u8]>::first_chunk);
                let scale = scale.map_or(0.0, |bytes| bf16_to_f32(u16::from_le_bytes(*bytes)));
                let count = GROUP.min(at + row.cols - end);
                let values = self.codes.block(self.out, end, count).map(|code| F::value(code) * scale);
                let values = isa.load_array(&values);
                let place = self.out.get_mut(end * E::BYTES..(end + count) * E::BYTES).unwrap_or_default();
                match E::blocks_mut(place) {
                    ([block], _) => E::store(isa, values, block),
                    (_, tail) => E::store_tail(isa, values, tail),
                }
                end += count;
            }
            at = end;
        }
        true
    }
}
