//! NEON: sixteen singles in four registers. What is not written out here is the portable code.
//!
//! The methods are `inline(always)` and end up inside [`Neon::run`], which enables the instructions; a [`Neon`] exists
//! only where [`Neon::detect`] found them, which is what every `unsafe` here rests on.
#![allow(unsafe_code)]

use super::portable::Portable;
use super::{Isa, LANES, Work};
use std::arch::aarch64::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    #[inline]
    pub fn run<W: Work>(self, work: W) {
        #[target_feature(enable = "neon")]
        fn inside<W: Work>(isa: Neon, work: W) {
            work.run(isa);
        }
        // SAFETY: `self` proves that the CPU has what `inside` enables.
        unsafe { inside(self, work) }
    }
}

/// `$op` of the four registers each of `$a` and `$b`.
macro_rules! both {
    ($op:ident, $a:expr, $b:expr) => {{
        let ([a, b, c, d], [e, f, g, h]) = ($a, $b);
        // SAFETY: NEON, of which the caller's token is the proof.
        unsafe { [$op(a, e), $op(b, f), $op(c, g), $op(d, h)] }
    }};
}

/// The larger; the second where either is NaN.
///
/// # Safety
///
/// The CPU has NEON.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: by contract.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

impl Isa for Neon {
    type V = [float32x4_t; 4];
    const ROWS: usize = 3;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: NEON.
        unsafe { [vdupq_n_f32(value); 4] }
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::V {
        let at = values.as_ptr();
        // SAFETY: NEON; four times four singles are the array.
        unsafe { [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))] }
    }
    #[inline(always)]
    fn load_bf16(self, values: &[u16; LANES]) -> Self::V {
        let at = values.as_ptr();
        // SAFETY: NEON; two times eight words are the array.
        unsafe {
            let (low, high) = (vld1q_u16(at), vld1q_u16(at.add(8)));
            [vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high)]
                .map(|words| vreinterpretq_f32_u32(vshll_n_u16::<16>(words)))
        }
    }
    #[inline(always)]
    fn load_f16(self, values: &[u16; LANES]) -> Self::V {
        self.load(&Portable.load_f16(values))
    }
    #[inline(always)]
    fn to_array(self, [a, b, c, d]: Self::V) -> [f32; LANES] {
        let mut values = [0.0f32; LANES];
        let to = values.as_mut_ptr();
        // SAFETY: NEON; four times four singles are the array.
        unsafe {
            vst1q_f32(to, a);
            vst1q_f32(to.add(4), b);
            vst1q_f32(to.add(8), c);
            vst1q_f32(to.add(12), d);
        }
        values
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn fma(self, [a, b, c, d]: Self::V, [e, f, g, h]: Self::V, [i, j, k, l]: Self::V) -> Self::V {
        // SAFETY: NEON.
        unsafe { [vfmaq_f32(i, a, e), vfmaq_f32(j, b, f), vfmaq_f32(k, c, g), vfmaq_f32(l, d, h)] }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        both!(larger, a, b)
    }
    #[inline(always)]
    fn power_of_two(self, shifted: Self::V) -> Self::V {
        self.load(&Portable.power_of_two(self.to_array(shifted)))
    }
    #[inline(always)]
    fn sums(self, each: [Self::V; LANES]) -> Self::V {
        let mut sums = [0.0; LANES];
        for (sum, [a, b, c, d]) in sums.iter_mut().zip(each) {
            // SAFETY: NEON.
            unsafe {
                let four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
                *sum = vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
            }
        }
        self.load(&sums)
    }
}
