//! h4's codes: the entry of the NF4 table (Dettmers et al., QLoRA, appendix E) next to each rotated value.

use crate::apart::Code;
use crate::element::bf16_to_f32;
use crate::isa::Isa;
use crate::layout::GROUP;

/// Quantiles of a normal distribution, scaled to -1…1.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The middles between neighbours; a value on one takes the lower entry.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut rest: &[f32] = &NF4;
    let mut at = 0;
    while let [low, tail @ ..] = rest {
        if let [high, ..] = tail {
            #[allow(clippy::indexing_slicing)] // constant evaluation: out of bounds would not compile
            {
                middles[at] = ((*low as f64 + *high as f64) / 2.0) as f32;
            }
        }
        at += 1;
        rest = tail;
    }
    middles
};

pub(crate) struct H4;

impl Code for H4 {
    const BITS: usize = 4;
    const MOST: f32 = 1.0;
    type Packed = [u8; 32];
    const EMPTY: Self::Packed = [0; 32];

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
        let values = isa.to_array(rotated);
        let mut codes = [0i32; GROUP];
        for middle in MIDDLES {
            for (code, value) in codes.iter_mut().zip(&values) {
                *code += i32::from(value * inverse > middle);
            }
        }
        let mut packed = [0; 32];
        for (byte, [low, high]) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = (low | high << 4) as u8;
        }
        packed
    }

    #[inline(always)]
    fn turn_back<I: Isa>(isa: I, packed: &Self::Packed, scale: [u8; 2], points: usize) -> I::Group {
        let scale = bf16_to_f32(u16::from_le_bytes(scale)) / points as f32;
        let entry = |code: u8| NF4.get(usize::from(code)).map_or(0.0, |entry| entry * scale);
        let mut values = [0.0; GROUP];
        for ([low, high], byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(packed) {
            (*low, *high) = (entry(byte & 15), entry(byte >> 4));
        }
        if points < GROUP {
            values.iter_mut().skip(points).for_each(|value| *value = 0.0);
        }
        isa.rotate(isa.load_array(&values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middles_are_between_their_neighbours() {
        for (pair, middle) in NF4.windows(2).zip(MIDDLES) {
            assert!(pair[0] < middle && middle < pair[1]);
        }
    }
}
