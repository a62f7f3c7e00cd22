//! NEON: 64 singles in sixteen registers. What is not written out here is the portable code, which the compiler vectorises.
//!
//! The methods are `inline(always)` and end up inside [`Neon::run`], which enables the instructions; a [`Neon`] exists only
//! where [`Neon::detect`] found them, which is what every `unsafe` here rests on.
#![allow(unsafe_code)]

use super::{Isa, MAGNITUDE, Portable, Work};
use crate::layout::GROUP;
use std::arch::aarch64::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    #[inline]
    pub fn run<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "neon")]
        fn inside<W: Work>(isa: Neon, work: W) -> W::Output {
            work.run(isa)
        }
        // SAFETY: `self` proves that the CPU has what `inside` enables.
        unsafe { inside(self, work) }
    }
}

/// `$body` for each register `$x` of a group.
macro_rules! each {
    ($group:expr, $x:ident => $body:expr) => {{
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = $group;
        each!(@ $x, $body, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
    }};
    (@ $x:ident, $body:expr, $($value:expr),*) => { [$({ let $x = $value; $body }),*] };
}

/// `$body` for each register `$x` of one group and its like `$y` of another.
macro_rules! both {
    ($left:expr, $right:expr, $x:ident, $y:ident => $body:expr) => {{
        let mut out = $left;
        for (place, $y) in out.iter_mut().zip($right) {
            let $x = *place;
            *place = $body;
        }
        out
    }};
}

/// The numbers of the registers of a group.
const PARTS: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// (a + b, a - b) between registers at a distance.
#[inline(always)]
fn butterflies<const DISTANCE: usize>(mut group: [float32x4_t; 16]) -> [float32x4_t; 16] {
    for pair in group.chunks_exact_mut(2 * DISTANCE) {
        let (left, right) = pair.split_at_mut(DISTANCE);
        for (a, b) in left.iter_mut().zip(right) {
            // SAFETY: NEON, of which the caller's token is the proof.
            unsafe { (*a, *b) = (vaddq_f32(*a, *b), vsubq_f32(*a, *b)) }
        }
    }
    group
}

impl Isa for Neon {
    type Group = [float32x4_t; 16];

    #[inline(always)]
    fn load_array(self, values: &[f32; GROUP]) -> Self::Group {
        // SAFETY: NEON; sixteen times four singles are the array.
        unsafe { each!(PARTS, part => vld1q_f32(values.as_ptr().add(4 * part))) }
    }
    #[inline(always)]
    fn to_array(self, group: Self::Group) -> [f32; GROUP] {
        let mut values = [0.0f32; GROUP];
        for (place, part) in values.as_chunks_mut::<4>().0.iter_mut().zip(group) {
            // SAFETY: NEON; four singles are the place.
            unsafe { vst1q_f32(place.as_mut_ptr(), part) }
        }
        values
    }

    #[inline(always)]
    fn load_f32(self, block: &[u8; 4 * GROUP]) -> Self::Group {
        // SAFETY: NEON; sixteen times 16 bytes are the block.
        unsafe { each!(PARTS, part => vreinterpretq_f32_u8(vld1q_u8(block.as_ptr().add(16 * part)))) }
    }
    #[inline(always)]
    fn load_f16(self, block: &[u8; 2 * GROUP]) -> Self::Group {
        self.load_array(&Portable.load_f16(block))
    }
    #[inline(always)]
    fn load_bf16(self, block: &[u8; 2 * GROUP]) -> Self::Group {
        // SAFETY: NEON; sixteen times eight bytes are the block.
        unsafe {
            each!(PARTS, part => {
                let words = vreinterpret_u16_u8(vld1_u8(block.as_ptr().add(8 * part)));
                vreinterpretq_f32_u32(vshll_n_u16::<16>(words))
            })
        }
    }
    #[inline(always)]
    fn store_f32(self, group: Self::Group, block: &mut [u8; 4 * GROUP]) {
        for (place, part) in block.as_chunks_mut::<16>().0.iter_mut().zip(group) {
            // SAFETY: NEON; 16 bytes are the place.
            unsafe { vst1q_u8(place.as_mut_ptr(), vreinterpretq_u8_f32(part)) }
        }
    }
    #[inline(always)]
    fn store_f16(self, group: Self::Group, block: &mut [u8; 2 * GROUP]) {
        Portable.store_f16(self.to_array(group), block);
    }
    #[inline(always)]
    fn store_bf16(self, group: Self::Group, block: &mut [u8; 2 * GROUP]) {
        for (place, part) in block.as_chunks_mut::<8>().0.iter_mut().zip(group) {
            // SAFETY: NEON; eight bytes are the place.
            unsafe {
                let bits = vreinterpretq_u32_f32(part);
                let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
                vst1_u8(place.as_mut_ptr(), vreinterpret_u8_u16(vshrn_n_u32::<16>(rounded)));
            }
        }
    }

    #[inline(always)]
    fn rotate(self, group: Self::Group) -> Self::Group {
        // SAFETY: NEON. The product by 1 or -1 is exact, so the fused operation rounds once, as an addition or a
        // subtraction does.
        let group = unsafe {
            let sign1 = vld1q_f32([1.0, -1.0, 1.0, -1.0].as_ptr());
            let sign2 = vld1q_f32([1.0, 1.0, -1.0, -1.0].as_ptr());
            let group = each!(group, x => vfmaq_f32(vrev64q_f32(x), x, sign1));
            each!(group, x => vfmaq_f32(vextq_f32::<2>(x, x), x, sign2))
        };
        butterflies::<8>(butterflies::<4>(butterflies::<2>(butterflies::<1>(group))))
    }
    #[inline(always)]
    fn peak(self, group: Self::Group) -> u32 {
        // SAFETY: NEON.
        unsafe {
            let mask = vdupq_n_u32(MAGNITUDE);
            let magnitudes = each!(group, x => vandq_u32(vreinterpretq_u32_f32(x), mask));
            let all = magnitudes.into_iter().fold(vdupq_n_u32(0), |all, x| vmaxq_u32(all, x));
            vmaxvq_u32(all)
        }
    }
    #[inline(always)]
    fn larger(self, left: Self::Group, right: Self::Group) -> Self::Group {
        // SAFETY: NEON.
        unsafe {
            let mask = vdupq_n_u32(MAGNITUDE);
            both!(left, right, x, y => {
                let x = vandq_u32(vreinterpretq_u32_f32(x), mask);
                let y = vandq_u32(vreinterpretq_u32_f32(y), mask);
                vreinterpretq_f32_u32(vmaxq_u32(x, y))
            })
        }
    }
    #[inline(always)]
    fn quantise(self, group: Self::Group, inverse: f32) -> [i8; GROUP] {
        let mut codes = [0i8; GROUP];
        for (place, four) in codes.as_chunks_mut::<16>().0.iter_mut().zip(group.as_chunks::<4>().0) {
            let [a, b, c, d] = *four;
            // SAFETY: NEON; 16 bytes are the place. The conversion rounds to nearest, ties to even.
            unsafe {
                let a = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(a, inverse)));
                let b = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(b, inverse)));
                let c = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(c, inverse)));
                let d = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(d, inverse)));
                let (low, high) = (vqmovn_s16(vcombine_s16(a, b)), vqmovn_s16(vcombine_s16(c, d)));
                vst1q_s8(place.as_mut_ptr(), vcombine_s8(low, high));
            }
        }
        codes
    }
    #[inline(always)]
    fn widen(self, codes: &[i8; GROUP], scale: f32) -> Self::Group {
        self.load_array(&Portable.widen(codes, scale))
    }
}
