//! Plain arrays and loops: the meaning of every operation, on any CPU.

use super::{Isa, LANES, ROUNDER};
use swarmnode_codec::{bf16_to_f32, f16_to_f32};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Lanes 8 apart are added, then 4, 2, 1.
#[inline(always)]
pub(super) fn sum(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = lanes;
    let eight = [a + i, b + j, c + k, d + l, e + m, f + n, g + o, h + p];
    let [a, b, c, d, e, f, g, h] = eight;
    let [a, b, c, d] = [a + e, b + f, c + g, d + h];
    (a + c) + (b + d)
}

#[inline(always)]
fn both(mut a: [f32; LANES], b: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    a.iter_mut().zip(b).for_each(|(x, y)| *x = op(*x, y));
    a
}

impl Isa for Portable {
    type V = [f32; LANES];
    const ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::V {
        *values
    }
    #[inline(always)]
    fn load_bf16(self, values: &[u16; LANES]) -> Self::V {
        values.map(bf16_to_f32)
    }
    #[inline(always)]
    fn load_f16(self, values: &[u16; LANES]) -> Self::V {
        values.map(f16_to_f32)
    }
    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        v
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, mut a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        a.iter_mut().zip(b).zip(c).for_each(|((x, y), z)| *x = x.mul_add(y, z));
        a
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn power_of_two(self, shifted: Self::V) -> Self::V {
        shifted.map(|x| {
            f32::from_bits((x.to_bits().wrapping_sub(ROUNDER.to_bits()) << 23).wrapping_add(1.0f32.to_bits()))
        })
    }
    #[inline(always)]
    fn sums(self, each: [Self::V; LANES]) -> Self::V {
        each.map(sum)
    }
}
