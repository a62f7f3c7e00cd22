//! AVX-512 with byte permutations (Ice Lake, Zen 4 and later): 64 singles in four registers. Older CPUs with AVX-512 lower
//! their clock for it and are better served by AVX2.
//!
//! The methods are `inline(always)` and end up inside [`Avx512::run`], which enables the instructions; an [`Avx512`]
//! exists only where [`Avx512::detect`] found them, which is what every `unsafe` here rests on.
#![allow(unsafe_code)]

use super::{Isa, MAGNITUDE, Work};
use crate::layout::GROUP;
use std::arch::x86_64::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("bmi2");
        all.then_some(Self(()))
    }

    #[inline]
    pub fn run<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,bmi2")]
        fn inside<W: Work>(isa: Avx512, work: W) -> W::Output {
            work.run(isa)
        }
        // SAFETY: `self` proves that the CPU has what `inside` enables.
        unsafe { inside(self, work) }
    }
}

/// `$body` for each register `$x` of a group.
macro_rules! each {
    ($group:expr, $x:ident => $body:expr) => {{
        let [a, b, c, d] = $group;
        each!(@ $x, $body, a, b, c, d)
    }};
    (@ $x:ident, $body:expr, $($value:expr),*) => { [$({ let $x = $value; $body }),*] };
}
/// The numbers of the registers of a group.
const PARTS: [usize; 4] = [0, 1, 2, 3];

/// The low 48 of 64 bytes.
const LOW_48: u64 = (1 << 48) - 1;

/// Where the three bytes of each quad of codes stand in a register of 32-bit lanes.
const TRIPLES: [u8; 64] = triples();
/// The bytes that hold eight codes each, six for a 64-bit lane.
const SIXES: [u8; 64] = sixes();
/// The odd words of two registers, behind each other.
const UPPER_WORDS: [u16; 32] = upper_words();

#[allow(clippy::indexing_slicing)] // constant evaluation: out of bounds would not compile
const fn triples() -> [u8; 64] {
    let mut at = [0; 64];
    let mut byte = 0;
    while byte < 48 {
        at[byte] = (byte / 3 * 4 + byte % 3) as u8;
        byte += 1;
    }
    at
}

#[allow(clippy::indexing_slicing)] // constant evaluation: out of bounds would not compile
const fn sixes() -> [u8; 64] {
    let mut at = [0; 64];
    let mut byte = 0;
    while byte < 64 {
        // The upper two bytes of a lane are not looked at.
        at[byte] = if byte % 8 < 6 { (byte / 8 * 6 + byte % 8) as u8 } else { 0 };
        byte += 1;
    }
    at
}

#[allow(clippy::indexing_slicing)] // constant evaluation: out of bounds would not compile
const fn upper_words() -> [u16; 32] {
    let mut at = [0; 32];
    let mut word = 0;
    while word < 32 {
        at[word] = 2 * word as u16 + 1;
        word += 1;
    }
    at
}

impl Isa for Avx512 {
    type Group = [__m512; 4];

    #[inline(always)]
    fn load_array(self, values: &[f32; GROUP]) -> Self::Group {
        // SAFETY: AVX-512; four times 16 singles are the array.
        unsafe { each!(PARTS, part => _mm512_loadu_ps(values.as_ptr().add(16 * part))) }
    }
    #[inline(always)]
    fn to_array(self, group: Self::Group) -> [f32; GROUP] {
        let mut values = [0.0f32; GROUP];
        let [a, b, c, d] = group;
        let to = values.as_mut_ptr();
        // SAFETY: AVX-512; four times 16 singles are the array.
        unsafe {
            _mm512_storeu_ps(to, a);
            _mm512_storeu_ps(to.add(16), b);
            _mm512_storeu_ps(to.add(32), c);
            _mm512_storeu_ps(to.add(48), d);
        }
        values
    }

    #[inline(always)]
    fn load_f32(self, block: &[u8; 4 * GROUP]) -> Self::Group {
        // SAFETY: AVX-512; four times 64 bytes are the block, and the load wants no alignment.
        unsafe { each!(PARTS, part => _mm512_loadu_ps(block.as_ptr().add(64 * part).cast())) }
    }
    #[inline(always)]
    fn load_f16(self, block: &[u8; 2 * GROUP]) -> Self::Group {
        // SAFETY: AVX-512; four times 32 bytes are the block, and the load wants no alignment.
        unsafe {
            each!(PARTS, part => _mm512_cvtph_ps(_mm256_loadu_si256(block.as_ptr().add(32 * part).cast())))
        }
    }
    #[inline(always)]
    fn load_bf16(self, block: &[u8; 2 * GROUP]) -> Self::Group {
        // SAFETY: AVX-512; four times 32 bytes are the block, and the load wants no alignment.
        unsafe {
            each!(PARTS, part => {
                let words = _mm256_loadu_si256(block.as_ptr().add(32 * part).cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
            })
        }
    }
    #[inline(always)]
    fn store_f32(self, group: Self::Group, block: &mut [u8; 4 * GROUP]) {
        let [a, b, c, d] = group;
        let to = block.as_mut_ptr();
        // SAFETY: AVX-512; four times 64 bytes are the block, and the store wants no alignment.
        unsafe {
            _mm512_storeu_ps(to.cast(), a);
            _mm512_storeu_ps(to.add(64).cast(), b);
            _mm512_storeu_ps(to.add(128).cast(), c);
            _mm512_storeu_ps(to.add(192).cast(), d);
        }
    }
    #[inline(always)]
    fn store_f16(self, group: Self::Group, block: &mut [u8; 2 * GROUP]) {
        let to = block.as_mut_ptr();
        // SAFETY: AVX-512; four times 32 bytes are the block, and the store wants no alignment.
        unsafe {
            let [a, b, c, d] = each!(group, x => _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
            _mm256_storeu_si256(to.cast(), a);
            _mm256_storeu_si256(to.add(32).cast(), b);
            _mm256_storeu_si256(to.add(64).cast(), c);
            _mm256_storeu_si256(to.add(96).cast(), d);
        }
    }
    #[inline(always)]
    fn store_bf16(self, group: Self::Group, block: &mut [u8; 2 * GROUP]) {
        let to = block.as_mut_ptr();
        // SAFETY: AVX-512; two times 64 bytes are the block, and neither load nor store wants alignment. The CPU's own
        // conversion is not used: it takes subnormal values for zero.
        unsafe {
            let [a, b, c, d] = each!(group, x => {
                let bits = _mm512_castps_si512(x);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)))
            });
            let upper = _mm512_loadu_si512(UPPER_WORDS.as_ptr().cast());
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(a, upper, b));
            _mm512_storeu_si512(to.add(64).cast(), _mm512_permutex2var_epi16(c, upper, d));
        }
    }

    #[inline(always)]
    fn rotate(self, group: Self::Group) -> Self::Group {
        // SAFETY: AVX-512.
        unsafe {
            // Within a register: the partner's place, then plus or minus the own value. The product by 1 or -1 is exact,
            // so the fused operation rounds once, as an addition or a subtraction does.
            let one = _mm512_set1_ps(1.0);
            let minus = _mm512_set1_ps(-1.0);
            let sign1 = _mm512_mask_mov_ps(one, 0b1010_1010_1010_1010, minus);
            let sign2 = _mm512_mask_mov_ps(one, 0b1100_1100_1100_1100, minus);
            let sign4 = _mm512_mask_mov_ps(one, 0b1111_0000_1111_0000, minus);
            let sign8 = _mm512_mask_mov_ps(one, 0b1111_1111_0000_0000, minus);
            let group = each!(group, x => _mm512_fmadd_ps(x, sign1, _mm512_permute_ps::<0b10_11_00_01>(x)));
            let group = each!(group, x => _mm512_fmadd_ps(x, sign2, _mm512_permute_ps::<0b01_00_11_10>(x)));
            let group =
                each!(group, x => _mm512_fmadd_ps(x, sign4, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x)));
            let group =
                each!(group, x => _mm512_fmadd_ps(x, sign8, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x)));
            let [a, b, c, d] = group;
            let (a, b) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
            let (c, d) = (_mm512_add_ps(c, d), _mm512_sub_ps(c, d));
            let (a, c) = (_mm512_add_ps(a, c), _mm512_sub_ps(a, c));
            let (b, d) = (_mm512_add_ps(b, d), _mm512_sub_ps(b, d));
            [a, b, c, d]
        }
    }
    #[inline(always)]
    fn peak(self, group: Self::Group) -> u32 {
        // SAFETY: AVX-512.
        unsafe {
            let mask = _mm512_set1_epi32(MAGNITUDE as i32);
            let [a, b, c, d] = each!(group, x => _mm512_and_si512(_mm512_castps_si512(x), mask));
            let all = _mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d));
            _mm512_reduce_max_epu32(all)
        }
    }
    #[inline(always)]
    fn larger(self, left: Self::Group, right: Self::Group) -> Self::Group {
        // SAFETY: AVX-512.
        unsafe {
            let mask = _mm512_set1_epi32(MAGNITUDE as i32);
            let [a, b, c, d] = each!(left, x => _mm512_and_si512(_mm512_castps_si512(x), mask));
            let [e, f, g, h] = each!(right, x => _mm512_and_si512(_mm512_castps_si512(x), mask));
            let pairs = [(a, e), (b, f), (c, g), (d, h)];
            each!(pairs, x => _mm512_castsi512_ps(_mm512_max_epu32(x.0, x.1)))
        }
    }
    #[inline(always)]
    fn quantise(self, group: Self::Group, inverse: f32) -> [i8; GROUP] {
        let mut codes = [0i8; GROUP];
        // SAFETY: AVX-512; the array is 64 bytes.
        unsafe {
            let inverse = _mm512_set1_ps(inverse);
            let [a, b, c, d] = each!(group, x => _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
            let mixed = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            // Packing works within the quarters of a register; the 32-bit lanes are put in order behind it.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_storeu_si512(codes.as_mut_ptr().cast(), _mm512_permutexvar_epi32(order, mixed));
        }
        codes
    }
    #[inline(always)]
    fn widen(self, codes: &[i8; GROUP], scale: f32) -> Self::Group {
        // SAFETY: AVX-512; four times 16 bytes are the array.
        unsafe {
            let scale = _mm512_set1_ps(scale);
            each!(PARTS, part => {
                let bytes = _mm_loadu_si128(codes.as_ptr().add(16 * part).cast());
                _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale)
            })
        }
    }

    #[inline(always)]
    fn pack6(self, codes: &[i8; GROUP]) -> [u8; 48] {
        let mut packed = [0u8; 48];
        // SAFETY: AVX-512 with VBMI; 64 bytes are read, and the mask keeps the store within its 48.
        unsafe {
            let codes = _mm512_add_epi8(_mm512_loadu_si512(codes.as_ptr().cast()), _mm512_set1_epi8(32));
            // Neighbours side by side: a + 64 b in 12 bits, then those pairs in 24.
            let pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x4001));
            let quads = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x1000_0001));
            let order = _mm512_loadu_si512(TRIPLES.as_ptr().cast());
            _mm512_mask_storeu_epi8(
                packed.as_mut_ptr().cast(),
                LOW_48,
                _mm512_permutexvar_epi8(order, quads),
            );
        }
        packed
    }
    #[inline(always)]
    fn unpack6(self, packed: &[u8; 48]) -> [i8; GROUP] {
        let mut codes = [0i8; GROUP];
        // SAFETY: AVX-512 with VBMI; the mask keeps the load within its 48 bytes, 64 are written.
        unsafe {
            let bytes = _mm512_maskz_loadu_epi8(LOW_48, packed.as_ptr().cast());
            let lanes = _mm512_permutexvar_epi8(_mm512_loadu_si512(SIXES.as_ptr().cast()), bytes);
            let shifts = _mm512_set1_epi64(i64::from_le_bytes([0, 6, 12, 18, 24, 30, 36, 42]));
            let six = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, lanes), _mm512_set1_epi8(63));
            let signed = _mm512_sub_epi8(six, _mm512_set1_epi8(32));
            _mm512_storeu_si512(codes.as_mut_ptr().cast(), signed);
        }
        codes
    }
}
