//! Sixteen singles at a time, on whatever registers a CPU has.
//!
//! Every method means the same bits on every CPU: products are added with one rounding, sums over lanes have one order.
//! The portable code is what they mean; without fused arithmetic in hardware it is too slow to be of use.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use portable::Portable;
use std::fmt;

/// Singles that are worked on together.
pub(crate) const LANES: usize = 16;

/// 1.5 * 2^23: added to a number of small magnitude it leaves the nearest whole number in the low bits.
pub(crate) const ROUNDER: f32 = 12_582_912.0;

/// A CPU's way to handle sixteen singles. A value of the type is the proof that the CPU can.
pub(crate) trait Isa: Copy {
    /// Sixteen singles.
    type V: Copy;

    /// Rows whose products with two others registers hold, 1 to 8: sums that are put aside at every step cost twice the time.
    const ROWS: usize;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, values: &[f32; LANES]) -> Self::V;
    fn load_bf16(self, values: &[u16; LANES]) -> Self::V;
    fn load_f16(self, values: &[u16; LANES]) -> Self::V;
    fn to_array(self, v: Self::V) -> [f32; LANES];

    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a where it is larger, else b: b, too, where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// 2^n of the whole number n, -126 to 127, that `ROUNDER + n` holds.
    fn power_of_two(self, shifted: Self::V) -> Self::V;
    /// The sum of each of sixteen in its lane: lanes 8 apart first, then 4, 2, 1.
    fn sums(self, each: [Self::V; LANES]) -> Self::V;

    /// Have what is read next on its way.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}

    /// The sum of all lanes, in the order of `sums`.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        portable::sum(self.to_array(v))
    }
}

/// A computation that is compiled once for each CPU.
pub(crate) trait Work {
    /// Must be `#[inline(always)]`, so that the CPU's instructions reach into it.
    fn run<I: Isa>(self, isa: I);
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
    /// All that this machine can run, the best first and the portable code last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::quick().into_iter().chain([Self(Kind::Portable)]).collect()
    }

    /// The best that this machine can run, None where that is the portable code.
    #[must_use]
    pub fn best() -> Option<Self> {
        Self::quick().first().copied()
    }

    fn quick() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [avx512::Avx512::detect().map(Kind::Avx512), avx2::Avx2::detect().map(Kind::Avx2)];
        #[cfg(target_arch = "aarch64")]
        let special = [neon::Neon::detect().map(Kind::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let special: [Option<Kind>; 0] = [];
        special.into_iter().flatten().map(Self).collect()
    }

    pub(crate) fn run<W: Work>(self, work: W) {
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
