//! Plain arrays and loops that a compiler can vectorise: the meaning of every operation, on any CPU.

use super::{Isa, MAGNITUDE, ROUNDER};
use crate::element::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::layout::GROUP;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn read16(block: &[u8; 2 * GROUP], widen: impl Fn(u16) -> f32) -> [f32; GROUP] {
    let mut values = [0.0; GROUP];
    let (words, _) = block.as_chunks::<2>();
    values.iter_mut().zip(words).for_each(|(value, word)| *value = widen(u16::from_le_bytes(*word)));
    values
}

#[inline(always)]
fn write16(values: &[f32; GROUP], block: &mut [u8; 2 * GROUP], narrow: impl Fn(f32) -> u16) {
    let (words, _) = block.as_chunks_mut::<2>();
    words.iter_mut().zip(values).for_each(|(word, value)| *word = narrow(*value).to_le_bytes());
}

#[inline(always)]
fn butterflies<const DISTANCE: usize>(values: &mut [f32; GROUP]) {
    for pair in values.chunks_exact_mut(2 * DISTANCE) {
        let (left, right) = pair.split_at_mut(DISTANCE);
        for (a, b) in left.iter_mut().zip(right) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

impl Isa for Portable {
    type Group = [f32; GROUP];

    #[inline(always)]
    fn load_array(self, values: &[f32; GROUP]) -> [f32; GROUP] {
        *values
    }
    #[inline(always)]
    fn to_array(self, group: [f32; GROUP]) -> [f32; GROUP] {
        group
    }

    #[inline(always)]
    fn load_f32(self, block: &[u8; 4 * GROUP]) -> [f32; GROUP] {
        let mut values = [0.0; GROUP];
        let (words, _) = block.as_chunks::<4>();
        values.iter_mut().zip(words).for_each(|(value, word)| *value = f32::from_le_bytes(*word));
        values
    }
    #[inline(always)]
    fn load_f16(self, block: &[u8; 2 * GROUP]) -> [f32; GROUP] {
        read16(block, f16_to_f32)
    }
    #[inline(always)]
    fn load_bf16(self, block: &[u8; 2 * GROUP]) -> [f32; GROUP] {
        read16(block, bf16_to_f32)
    }
    #[inline(always)]
    fn store_f32(self, group: [f32; GROUP], block: &mut [u8; 4 * GROUP]) {
        let (words, _) = block.as_chunks_mut::<4>();
        words.iter_mut().zip(group).for_each(|(word, value)| *word = value.to_le_bytes());
    }
    #[inline(always)]
    fn store_f16(self, group: [f32; GROUP], block: &mut [u8; 2 * GROUP]) {
        write16(&group, block, f32_to_f16);
    }
    #[inline(always)]
    fn store_bf16(self, group: [f32; GROUP], block: &mut [u8; 2 * GROUP]) {
        write16(&group, block, f32_to_bf16);
    }

    #[inline(always)]
    fn rotate(self, mut group: [f32; GROUP]) -> [f32; GROUP] {
        butterflies::<1>(&mut group);
        butterflies::<2>(&mut group);
        butterflies::<4>(&mut group);
        butterflies::<8>(&mut group);
        butterflies::<16>(&mut group);
        butterflies::<32>(&mut group);
        group
    }
    #[inline(always)]
    fn peak(self, group: [f32; GROUP]) -> u32 {
        group.iter().fold(0, |peak, value| peak.max(value.to_bits() & MAGNITUDE))
    }
    #[inline(always)]
    fn larger(self, mut left: [f32; GROUP], right: [f32; GROUP]) -> [f32; GROUP] {
        for (a, b) in left.iter_mut().zip(right) {
            *a = f32::from_bits((a.to_bits() & MAGNITUDE).max(b.to_bits() & MAGNITUDE));
        }
        left
    }
    #[inline(always)]
    fn quantise(self, group: [f32; GROUP], inverse: f32) -> [i8; GROUP] {
        group.map(|value| (value * inverse + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i8)
    }
    #[inline(always)]
    fn widen(self, codes: &[i8; GROUP], scale: f32) -> [f32; GROUP] {
        codes.map(|code| f32::from(code) * scale)
    }
}
