//! What the schemes need of a CPU, 64 values at a time, and which CPU this is.
//!
//! Every method means the same bits on every CPU: the butterflies in the same order, no fused multiply-add that would
//! round once where two operations round twice, nearest-even everywhere. The default methods are the portable ones.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

pub(crate) use portable::Portable;

use crate::layout::GROUP;
use std::fmt;

/// Bits of a single without its sign.
pub(crate) const MAGNITUDE: u32 = 0x7FFF_FFFF;
/// Magnitudes from here on are infinity and NaN.
pub(crate) const INFINITE: u32 = 0x7F80_0000;
/// Added to a magnitude below 2^22 it pushes the fraction out, rounding to nearest-even, and leaves the whole number in
/// the low bits: 1.5 * 2^23.
const ROUNDER: f32 = 12_582_912.0;

/// A CPU's way to handle 64 singles, the values of one group. A value of the type is the proof that the CPU can.
pub(crate) trait Isa: Copy {
    /// 64 singles, where the CPU likes to have them.
    type Group: Copy;

    fn load_array(self, values: &[f32; GROUP]) -> Self::Group;
    fn to_array(self, group: Self::Group) -> [f32; GROUP];

    fn load_f32(self, block: &[u8; 4 * GROUP]) -> Self::Group;
    fn load_f16(self, block: &[u8; 2 * GROUP]) -> Self::Group;
    fn load_bf16(self, block: &[u8; 2 * GROUP]) -> Self::Group;
    fn store_f32(self, group: Self::Group, block: &mut [u8; 4 * GROUP]);
    fn store_f16(self, group: Self::Group, block: &mut [u8; 2 * GROUP]);
    fn store_bf16(self, group: Self::Group, block: &mut [u8; 2 * GROUP]);

    /// The unnormalised Walsh-Hadamard transform in natural order: distances 1, 2, 4 … 32, each pair (a + b, a - b).
    fn rotate(self, group: Self::Group) -> Self::Group;
    /// The largest magnitude, as bits, which order as the values do and put NaN on top.
    fn peak(self, group: Self::Group) -> u32;
    /// The larger magnitude of each lane.
    fn larger(self, left: Self::Group, right: Self::Group) -> Self::Group;
    /// round(value * inverse) for products of magnitude up to 127.
    fn quantise(self, group: Self::Group, inverse: f32) -> [i8; GROUP];
    /// code * scale.
    fn widen(self, codes: &[i8; GROUP], scale: f32) -> Self::Group;

    /// Codes of -32…31, plus 32, as 6 bits each, four in three bytes.
    #[inline(always)]
    fn pack6(self, codes: &[i8; GROUP]) -> [u8; 48] {
        let mut packed = [0; 48];
        let (triples, _) = packed.as_chunks_mut::<3>();
        let (quads, _) = codes.as_chunks::<4>();
        for (triple, quad) in triples.iter_mut().zip(quads) {
            let [a, b, c, d] = quad.map(|code| (i32::from(code) + 32) as u32 & 63);
            let [x, y, z, _] = (a | b << 6 | c << 12 | d << 18).to_le_bytes();
            *triple = [x, y, z];
        }
        packed
    }

    /// The reverse.
    #[inline(always)]
    fn unpack6(self, packed: &[u8; 48]) -> [i8; GROUP] {
        let mut codes = [0; GROUP];
        let (triples, _) = packed.as_chunks::<3>();
        let (quads, _) = codes.as_chunks_mut::<4>();
        for (quad, [x, y, z]) in quads.iter_mut().zip(triples) {
            let bits = u32::from_le_bytes([*x, *y, *z, 0]);
            *quad = [bits, bits >> 6, bits >> 12, bits >> 18].map(|code| (code & 63) as i8 - 32);
        }
        codes
    }

    /// The NaNs made one: the sign kept, the payload canonical.
    #[inline(always)]
    fn quiet(self, group: Self::Group) -> Self::Group {
        let mut values = self.to_array(group);
        for value in &mut values {
            let bits = value.to_bits();
            let quiet = bits & !MAGNITUDE | 0x7FC0_0000;
            *value = f32::from_bits(if bits & MAGNITUDE > INFINITE { quiet } else { bits });
        }
        self.load_array(&values)
    }
}

/// A computation that is compiled once for each CPU.
pub(crate) trait Work {
    type Output;
    /// Must be `#[inline(always)]`, so that the CPU's instructions reach into it.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// A kind of CPU there is code for, and that this machine is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl Level {
    /// All that this machine can run, the best first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ranked().collect()
    }

    /// The best that this machine can run.
    #[must_use]
    pub fn best() -> Self {
        Self::ranked().next().unwrap_or(Self(Kind::Portable))
    }

    #[inline]
    fn ranked() -> impl Iterator<Item = Self> {
        let portable = Some(Kind::Portable);
        #[cfg(target_arch = "x86_64")]
        let special = [avx512::Avx512::detect().map(Kind::Avx512), avx2::Avx2::detect().map(Kind::Avx2)];
        #[cfg(target_arch = "aarch64")]
        let special = [neon::Neon::detect().map(Kind::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let special: [Option<Kind>; 0] = [];
        special.into_iter().chain([portable]).flatten().map(Self)
    }

    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            Kind::Portable => work.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(isa) => isa.run(work),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(isa) => isa.run(work),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(isa) => isa.run(work),
        }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
        })
    }
}
