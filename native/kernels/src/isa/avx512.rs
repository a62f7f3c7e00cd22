//! AVX-512: sixteen singles in one register.
//!
//! The methods are `inline(always)` and end up inside [`Avx512::run`], which enables the instructions; an [`Avx512`]
//! exists only where [`Avx512::detect`] found them, which is what every `unsafe` here rests on.
#![allow(unsafe_code)]

use super::{Isa, LANES, ROUNDER, Work};
use std::arch::x86_64::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        all.then_some(Self(()))
    }

    #[inline]
    pub fn run<W: Work>(self, work: W) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn inside<W: Work>(isa: Avx512, work: W) {
            work.run(isa);
        }
        // SAFETY: `self` proves that the CPU has what `inside` enables.
        unsafe { inside(self, work) }
    }
}

/// The sums of lanes 8 apart of `a` in the lower half, of `b` in the upper.
#[inline(always)]
fn halves(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512, of which the caller's token is the proof.
    unsafe {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
        )
    }
}

/// Of two pairs the sums of lanes 4 apart, a quarter for each of the four.
#[inline(always)]
fn quarters(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512, of which the caller's token is the proof.
    unsafe {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
        )
    }
}

/// Of two fours the sums of lanes 2 apart: in each quarter two of `a`, two of `b`.
#[inline(always)]
fn eighths(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512, of which the caller's token is the proof.
    unsafe {
        _mm512_add_ps(_mm512_shuffle_ps::<0b01_00_01_00>(a, b), _mm512_shuffle_ps::<0b11_10_11_10>(a, b))
    }
}

/// Of two eights the sums of neighbours: in each quarter one of each of four.
#[inline(always)]
fn sixteenths(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512, of which the caller's token is the proof.
    unsafe {
        _mm512_add_ps(_mm512_shuffle_ps::<0b10_00_10_00>(a, b), _mm512_shuffle_ps::<0b11_01_11_01>(a, b))
    }
}

impl Isa for Avx512 {
    type V = __m512;
    const ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: AVX-512.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> __m512 {
        // SAFETY: AVX-512; 64 bytes are the array.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, values: &[u16; LANES]) -> __m512 {
        // SAFETY: AVX-512; 32 bytes are the array.
        unsafe {
            let words = _mm256_loadu_si256(values.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
        }
    }
    #[inline(always)]
    fn load_f16(self, values: &[u16; LANES]) -> __m512 {
        // SAFETY: AVX-512; 32 bytes are the array.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
    }
    #[inline(always)]
    fn to_array(self, v: __m512) -> [f32; LANES] {
        let mut values = [0.0f32; LANES];
        // SAFETY: AVX-512; 64 bytes are the array.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), v) }
        values
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn power_of_two(self, shifted: __m512) -> __m512 {
        // SAFETY: AVX-512.
        unsafe {
            let n =
                _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(_mm512_set1_ps(ROUNDER)));
            let one = _mm512_castps_si512(_mm512_set1_ps(1.0));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32::<23>(n), one))
        }
    }
    #[inline(always)]
    fn sums(self, each: [__m512; LANES]) -> __m512 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = each;
        // What goes together last is paired first, so that a quarter ends up with four neighbours.
        sixteenths(
            eighths(quarters(halves(a, e), halves(i, m)), quarters(halves(b, f), halves(j, n))),
            eighths(quarters(halves(c, g), halves(k, o)), quarters(halves(d, h), halves(l, p))),
        )
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
