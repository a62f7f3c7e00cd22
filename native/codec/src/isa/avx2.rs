//! AVX2 with FMA and F16C: 64 singles in eight registers.
//!
//! The methods are `inline(always)` and end up inside [`Avx2::run`], which enables the instructions; an [`Avx2`] exists
//! only where [`Avx2::detect`] found them, which is what every `unsafe` here rests on.
#![allow(unsafe_code)]

use super::{Isa, MAGNITUDE, Work};
use crate::layout::GROUP;
use std::arch::x86_64::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi2");
        all.then_some(Self(()))
    }

    #[inline]
    pub fn run<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma,f16c,bmi2")]
        fn inside<W: Work>(isa: Avx2, work: W) -> W::Output {
            work.run(isa)
        }
        // SAFETY: `self` proves that the CPU has what `inside` enables.
        unsafe { inside(self, work) }
    }
}

/// `$body` for each register `$x` of a group.
macro_rules! each {
    ($group:expr, $x:ident => $body:expr) => {{
        let [a, b, c, d, e, f, g, h] = $group;
        each!(@ $x, $body, a, b, c, d, e, f, g, h)
    }};
    (@ $x:ident, $body:expr, $($value:expr),*) => { [$({ let $x = $value; $body }),*] };
}
/// The numbers of the registers of a group.
const PARTS: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// (a + b, a - b) of two registers.
macro_rules! butterfly {
    ($a:expr, $b:expr) => {
        (_mm256_add_ps($a, $b), _mm256_sub_ps($a, $b))
    };
}

impl Isa for Avx2 {
    type Group = [__m256; 8];

    #[inline(always)]
    fn load_array(self, values: &[f32; GROUP]) -> Self::Group {
        // SAFETY: AVX; eight times eight singles are the array.
        unsafe { each!(PARTS, part => _mm256_loadu_ps(values.as_ptr().add(8 * part))) }
    }
    #[inline(always)]
    fn to_array(self, group: Self::Group) -> [f32; GROUP] {
        let mut values = [0.0f32; GROUP];
        let [a, b, c, d, e, f, g, h] = group;
        let to = values.as_mut_ptr();
        // SAFETY: AVX; eight times eight singles are the array.
        unsafe {
            _mm256_storeu_ps(to, a);
            _mm256_storeu_ps(to.add(8), b);
            _mm256_storeu_ps(to.add(16), c);
            _mm256_storeu_ps(to.add(24), d);
            _mm256_storeu_ps(to.add(32), e);
            _mm256_storeu_ps(to.add(40), f);
            _mm256_storeu_ps(to.add(48), g);
            _mm256_storeu_ps(to.add(56), h);
        }
        values
    }

    #[inline(always)]
    fn load_f32(self, block: &[u8; 4 * GROUP]) -> Self::Group {
        // SAFETY: AVX; eight times 32 bytes are the block, and the load wants no alignment.
        unsafe { each!(PARTS, part => _mm256_loadu_ps(block.as_ptr().add(32 * part).cast())) }
    }
    #[inline(always)]
    fn load_f16(self, block: &[u8; 2 * GROUP]) -> Self::Group {
        // SAFETY: F16C; eight times 16 bytes are the block, and the load wants no alignment.
        unsafe {
            each!(PARTS, part => _mm256_cvtph_ps(_mm_loadu_si128(block.as_ptr().add(16 * part).cast())))
        }
    }
    #[inline(always)]
    fn load_bf16(self, block: &[u8; 2 * GROUP]) -> Self::Group {
        // SAFETY: AVX2; eight times 16 bytes are the block, and the load wants no alignment.
        unsafe {
            each!(PARTS, part => {
                let words = _mm_loadu_si128(block.as_ptr().add(16 * part).cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(words)))
            })
        }
    }
    #[inline(always)]
    fn store_f32(self, group: Self::Group, block: &mut [u8; 4 * GROUP]) {
        let [a, b, c, d, e, f, g, h] = group;
        let to = block.as_mut_ptr();
        // SAFETY: AVX; eight times 32 bytes are the block, and the store wants no alignment.
        unsafe {
            _mm256_storeu_ps(to.cast(), a);
            _mm256_storeu_ps(to.add(32).cast(), b);
            _mm256_storeu_ps(to.add(64).cast(), c);
            _mm256_storeu_ps(to.add(96).cast(), d);
            _mm256_storeu_ps(to.add(128).cast(), e);
            _mm256_storeu_ps(to.add(160).cast(), f);
            _mm256_storeu_ps(to.add(192).cast(), g);
            _mm256_storeu_ps(to.add(224).cast(), h);
        }
    }
    #[inline(always)]
    fn store_f16(self, group: Self::Group, block: &mut [u8; 2 * GROUP]) {
        // SAFETY: F16C; the stores are those of `store_words`.
        unsafe {
            let halves = each!(group, x => _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
            let [a, b, c, d, e, f, g, h] = halves;
            let pairs = [
                _mm256_set_m128i(b, a),
                _mm256_set_m128i(d, c),
                _mm256_set_m128i(f, e),
                _mm256_set_m128i(h, g),
            ];
            store_words(pairs, block);
        }
    }
    #[inline(always)]
    fn store_bf16(self, group: Self::Group, block: &mut [u8; 2 * GROUP]) {
        // SAFETY: AVX2; the stores are those of `store_words`.
        unsafe {
            let rounded = each!(group, x => {
                let bits = _mm256_castps_si256(x);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
                _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias))
            });
            let [a, b, c, d, e, f, g, h] = rounded;
            // Packing works within the halves of a register; the quarters are put in order behind it.
            let pairs = [
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b)),
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(c, d)),
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(e, f)),
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(g, h)),
            ];
            store_words(pairs, block);
        }
    }

    #[inline(always)]
    fn rotate(self, group: Self::Group) -> Self::Group {
        // SAFETY: AVX2 and FMA.
        unsafe {
            // Within a register: the partner's place, then plus or minus the own value. The product by 1 or -1 is exact,
            // so the fused operation rounds once, as an addition or a subtraction does.
            let sign1 = _mm256_setr_ps(1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0);
            let sign2 = _mm256_setr_ps(1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0);
            let sign4 = _mm256_setr_ps(1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0);
            let group = each!(group, x => _mm256_fmadd_ps(x, sign1, _mm256_permute_ps::<0b10_11_00_01>(x)));
            let group = each!(group, x => _mm256_fmadd_ps(x, sign2, _mm256_permute_ps::<0b01_00_11_10>(x)));
            let group = each!(group, x => _mm256_fmadd_ps(x, sign4, _mm256_permute2f128_ps::<1>(x, x)));
            let [a, b, c, d, e, f, g, h] = group;
            let ((a, b), (c, d)) = (butterfly!(a, b), butterfly!(c, d));
            let ((e, f), (g, h)) = (butterfly!(e, f), butterfly!(g, h));
            let ((a, c), (b, d)) = (butterfly!(a, c), butterfly!(b, d));
            let ((e, g), (f, h)) = (butterfly!(e, g), butterfly!(f, h));
            let ((a, e), (b, f)) = (butterfly!(a, e), butterfly!(b, f));
            let ((c, g), (d, h)) = (butterfly!(c, g), butterfly!(d, h));
            [a, b, c, d, e, f, g, h]
        }
    }
    #[inline(always)]
    fn peak(self, group: Self::Group) -> u32 {
        // SAFETY: AVX2.
        unsafe {
            let mask = _mm256_set1_epi32(MAGNITUDE as i32);
            let [a, b, c, d, e, f, g, h] = each!(group, x => _mm256_and_si256(_mm256_castps_si256(x), mask));
            let (a, b) = (_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
            let (c, d) = (_mm256_max_epi32(e, f), _mm256_max_epi32(g, h));
            let all = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
            let four = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
            _mm_cvtsi128_si32(one) as u32
        }
    }
    #[inline(always)]
    fn larger(self, left: Self::Group, right: Self::Group) -> Self::Group {
        // SAFETY: AVX2.
        unsafe {
            let mask = _mm256_set1_epi32(MAGNITUDE as i32);
            let [a, b, c, d, e, f, g, h] = each!(left, x => _mm256_and_si256(_mm256_castps_si256(x), mask));
            let [i, j, k, l, m, n, o, p] = each!(right, x => _mm256_and_si256(_mm256_castps_si256(x), mask));
            let pairs = [(a, i), (b, j), (c, k), (d, l), (e, m), (f, n), (g, o), (h, p)];
            each!(pairs, x => _mm256_castsi256_ps(_mm256_max_epi32(x.0, x.1)))
        }
    }
    #[inline(always)]
    fn quantise(self, group: Self::Group, inverse: f32) -> [i8; GROUP] {
        let mut codes = [0; GROUP];
        // SAFETY: AVX2; two times 32 bytes are the array.
        unsafe {
            let inverse = _mm256_set1_ps(inverse);
            let [a, b, c, d, e, f, g, h] = each!(group, x => _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let low = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let high = _mm256_packs_epi16(_mm256_packs_epi32(e, f), _mm256_packs_epi32(g, h));
            let to: *mut i8 = codes.as_mut_ptr();
            _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(low, order));
            _mm256_storeu_si256(to.add(32).cast(), _mm256_permutevar8x32_epi32(high, order));
        }
        codes
    }
    #[inline(always)]
    fn widen(self, codes: &[i8; GROUP], scale: f32) -> Self::Group {
        // SAFETY: AVX2; eight times eight bytes are the array.
        unsafe {
            let scale = _mm256_set1_ps(scale);
            each!(PARTS, part => {
                let bytes = _mm_loadl_epi64(codes.as_ptr().add(8 * part).cast());
                _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), scale)
            })
        }
    }

    #[inline(always)]
    fn pack6(self, codes: &[i8; GROUP]) -> [u8; 48] {
        let mut packed = [0; 48];
        // SAFETY: AVX2; two times 32 bytes are read. The first store fills the bytes 0 to 31, of which the last eight are
        // written again by the second, at 24 to 39, and the third, at 40 to 47.
        unsafe {
            let low = pack6_half(_mm256_loadu_si256(codes.as_ptr().cast()));
            let high = pack6_half(_mm256_loadu_si256(codes.as_ptr().add(32).cast()));
            let to: *mut u8 = packed.as_mut_ptr();
            _mm256_storeu_si256(to.cast(), low);
            _mm_storeu_si128(to.add(24).cast(), _mm256_castsi256_si128(high));
            _mm_storel_epi64(to.add(40).cast(), _mm256_extracti128_si256::<1>(high));
        }
        packed
    }
    #[inline(always)]
    fn unpack6(self, packed: &[u8; 48]) -> [i8; GROUP] {
        let mut codes = [0; GROUP];
        // SAFETY: AVX2; the loads of 16 bytes begin at 0, 8, 24 and 32 of 48; two times 32 bytes are written.
        unsafe {
            let from = packed.as_ptr();
            let to: *mut i8 = codes.as_mut_ptr();
            let load = [
                _mm_loadu_si128(from.cast()),
                _mm_loadu_si128(from.add(8).cast()),
                _mm_loadu_si128(from.add(24).cast()),
                _mm_loadu_si128(from.add(32).cast()),
            ];
            _mm256_storeu_si256(to.cast(), unpack6_half(load[0], load[1]));
            _mm256_storeu_si256(to.add(32).cast(), unpack6_half(load[2], load[3]));
        }
        codes
    }
}

/// 64 words in four registers, in order.
///
/// # Safety
///
/// The CPU has AVX2.
#[inline(always)]
unsafe fn store_words(words: [__m256i; 4], block: &mut [u8; 2 * GROUP]) {
    let [a, b, c, d] = words;
    let to = block.as_mut_ptr();
    // SAFETY: AVX2 by contract; four times 32 bytes are the block, and the store wants no alignment.
    unsafe {
        _mm256_storeu_si256(to.cast(), a);
        _mm256_storeu_si256(to.add(32).cast(), b);
        _mm256_storeu_si256(to.add(64).cast(), c);
        _mm256_storeu_si256(to.add(96).cast(), d);
    }
}

/// 32 codes as 24 bytes, and eight bytes of nothing.
///
/// # Safety
///
/// The CPU has AVX2.
#[inline(always)]
unsafe fn pack6_half(codes: __m256i) -> __m256i {
    // SAFETY: AVX2 by contract.
    unsafe {
        let codes = _mm256_add_epi8(codes, _mm256_set1_epi8(32));
        // Neighbours side by side: a + 64 b in 12 bits, then those pairs in 24.
        let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x4001));
        let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x1000_0001));
        let three = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
        let packed = _mm256_shuffle_epi8(quads, _mm256_broadcastsi128_si256(three));
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7))
    }
}

/// 32 codes from the first 12 bytes of `low` and the last 12 of `high`.
///
/// # Safety
///
/// The CPU has AVX2.
#[inline(always)]
unsafe fn unpack6_half(low: __m128i, high: __m128i) -> __m256i {
    // SAFETY: AVX2 by contract.
    unsafe {
        let spread = _mm256_setr_epi8(
            0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1, //
            4, 5, 6, -1, 7, 8, 9, -1, 10, 11, 12, -1, 13, 14, 15, -1,
        );
        let quads = _mm256_shuffle_epi8(_mm256_set_m128i(high, low), spread);
        let a = _mm256_and_si256(quads, _mm256_set1_epi32(0x3F));
        let b = _mm256_and_si256(_mm256_slli_epi32::<2>(quads), _mm256_set1_epi32(0x3F00));
        let c = _mm256_and_si256(_mm256_slli_epi32::<4>(quads), _mm256_set1_epi32(0x3F_0000));
        let d = _mm256_and_si256(_mm256_slli_epi32::<6>(quads), _mm256_set1_epi32(0x3F00_0000));
        let codes = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
        _mm256_sub_epi8(codes, _mm256_set1_epi8(32))
    }
}
