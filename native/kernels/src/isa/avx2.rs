//! AVX2 with FMA and F16C: sixteen singles in two registers.
//!
//! The methods are `inline(always)` and end up inside [`Avx2::run`], which enables the instructions; an [`Avx2`] exists
//! only where [`Avx2::detect`] found them, which is what every `unsafe` here rests on.
#![allow(unsafe_code)]

use super::{Isa, LANES, ROUNDER, Work};
use std::arch::x86_64::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Self(()))
    }

    #[inline]
    pub fn run<W: Work>(self, work: W) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inside<W: Work>(isa: Avx2, work: W) {
            work.run(isa);
        }
        // SAFETY: `self` proves that the CPU has what `inside` enables.
        unsafe { inside(self, work) }
    }
}

/// `$op` of the two registers each of `$a` and `$b`.
macro_rules! both {
    ($op:ident, $a:expr, $b:expr) => {{
        let ([a, b], [c, d]) = ($a, $b);
        // SAFETY: AVX2, of which the caller's token is the proof.
        unsafe { [$op(a, c), $op(b, d)] }
    }};
}

/// Of two halves, each the sums of lanes 8 apart, those of lanes 4 apart: a quarter for each.
#[inline(always)]
fn quarters(a: __m256, b: __m256) -> __m256 {
    // SAFETY: AVX2, of which the caller's token is the proof.
    unsafe { _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)) }
}

/// The sums of lanes 2 apart: in each quarter two of `a`, two of `b`.
#[inline(always)]
fn eighths(a: __m256, b: __m256) -> __m256 {
    // SAFETY: AVX2, of which the caller's token is the proof.
    unsafe {
        _mm256_add_ps(_mm256_shuffle_ps::<0b01_00_01_00>(a, b), _mm256_shuffle_ps::<0b11_10_11_10>(a, b))
    }
}

/// The sums of neighbours: in each quarter one of each of four.
#[inline(always)]
fn sixteenths(a: __m256, b: __m256) -> __m256 {
    // SAFETY: AVX2, of which the caller's token is the proof.
    unsafe {
        _mm256_add_ps(_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b))
    }
}

/// The sums of lanes 8 apart.
#[inline(always)]
fn half([low, high]: [__m256; 2]) -> __m256 {
    // SAFETY: AVX2, of which the caller's token is the proof.
    unsafe { _mm256_add_ps(low, high) }
}

/// The sums of eight, in their lanes.
#[inline(always)]
fn eight(each: [[__m256; 2]; 8]) -> __m256 {
    let [a, b, c, d, e, f, g, h] = each;
    sixteenths(
        eighths(quarters(half(a), half(e)), quarters(half(b), half(f))),
        eighths(quarters(half(c), half(g)), quarters(half(d), half(h))),
    )
}

/// Eight words as the upper halves of singles.
///
/// # Safety
///
/// The CPU has AVX2, and 16 bytes are there.
#[inline(always)]
unsafe fn widened(words: *const u16) -> __m256 {
    // SAFETY: by contract.
    unsafe {
        let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(words.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    }
}

impl Isa for Avx2 {
    type V = [__m256; 2];
    const ROWS: usize = 3;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: AVX.
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::V {
        // SAFETY: AVX; two times 32 bytes are the array.
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn load_bf16(self, values: &[u16; LANES]) -> Self::V {
        // SAFETY: AVX2; two times 16 bytes are the array.
        unsafe { [widened(values.as_ptr()), widened(values.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn load_f16(self, values: &[u16; LANES]) -> Self::V {
        // SAFETY: F16C; two times 16 bytes are the array.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    fn to_array(self, [low, high]: Self::V) -> [f32; LANES] {
        let mut values = [0.0f32; LANES];
        // SAFETY: AVX; two times 32 bytes are the array.
        unsafe {
            _mm256_storeu_ps(values.as_mut_ptr(), low);
            _mm256_storeu_ps(values.as_mut_ptr().add(8), high);
        }
        values
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, [a, b]: Self::V, [c, d]: Self::V, [e, f]: Self::V) -> Self::V {
        // SAFETY: FMA.
        unsafe { [_mm256_fmadd_ps(a, c, e), _mm256_fmadd_ps(b, d, f)] }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn power_of_two(self, [low, high]: Self::V) -> Self::V {
        // SAFETY: AVX2.
        unsafe {
            let rounder = _mm256_castps_si256(_mm256_set1_ps(ROUNDER));
            let one = _mm256_castps_si256(_mm256_set1_ps(1.0));
            let n = [low, high].map(|x| _mm256_sub_epi32(_mm256_castps_si256(x), rounder));
            n.map(|n| _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32::<23>(n), one)))
        }
    }
    #[inline(always)]
    fn sums(self, each: [Self::V; LANES]) -> Self::V {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = each;
        [eight([a, b, c, d, e, f, g, h]), eight([i, j, k, l, m, n, o, p])]
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
