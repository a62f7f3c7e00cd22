//! The three dtypes as types, so that a loop over values is compiled for each. Conversions round to nearest, ties to even.

use crate::isa::Isa;
use crate::kinds::Dtype;
use crate::layout::GROUP;

/// A dtype whose values are read and written 64 at a time.
pub(crate) trait Element: Copy {
    const DTYPE: Dtype;
    const BYTES: usize;
    /// The bytes of 64 values.
    type Block: Copy;
    const ZEROS: Self::Block;

    fn blocks(bytes: &[u8]) -> (&[Self::Block], &[u8]);
    fn blocks_mut(bytes: &mut [u8]) -> (&mut [Self::Block], &mut [u8]);
    fn bytes(block: &Self::Block) -> &[u8];
    fn bytes_mut(block: &mut Self::Block) -> &mut [u8];
    fn load<I: Isa>(isa: I, block: &Self::Block) -> I::Group;
    /// Finite values only: a NaN may come out as anything.
    fn store<I: Isa>(isa: I, group: I::Group, block: &mut Self::Block);
    /// One value, for what is not worth a group.
    fn from_f32(value: f32) -> [u8; 4];

    /// The last values of a row, as a block filled up with zeros.
    #[inline(always)]
    fn tail_block(tail: &[u8]) -> Self::Block {
        let mut block = Self::ZEROS;
        Self::bytes_mut(&mut block).iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
        block
    }

    /// Stores as many values of the group as `tail` has room for.
    #[inline(always)]
    fn store_tail<I: Isa>(isa: I, group: I::Group, tail: &mut [u8]) {
        let mut block = Self::ZEROS;
        Self::store(isa, group, &mut block);
        tail.iter_mut().zip(Self::bytes(&block)).for_each(|(to, from)| *to = *from);
    }
}

macro_rules! element {
    ($name:ident, $dtype:ident, $bytes:literal, $load:ident, $store:ident, $from:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl Element for $name {
            const DTYPE: Dtype = Dtype::$dtype;
            const BYTES: usize = $bytes;
            type Block = [u8; $bytes * GROUP];
            const ZEROS: Self::Block = [0; $bytes * GROUP];

            #[inline(always)]
            fn blocks(bytes: &[u8]) -> (&[Self::Block], &[u8]) {
                bytes.as_chunks()
            }
            #[inline(always)]
            fn blocks_mut(bytes: &mut [u8]) -> (&mut [Self::Block], &mut [u8]) {
                bytes.as_chunks_mut()
            }
            #[inline(always)]
            fn bytes(block: &Self::Block) -> &[u8] {
                block
            }
            #[inline(always)]
            fn bytes_mut(block: &mut Self::Block) -> &mut [u8] {
                block
            }
            #[inline(always)]
            fn load<I: Isa>(isa: I, block: &Self::Block) -> I::Group {
                isa.$load(block)
            }
            #[inline(always)]
            fn store<I: Isa>(isa: I, group: I::Group, block: &mut Self::Block) {
                isa.$store(group, block);
            }
            #[inline(always)]
            fn from_f32(value: f32) -> [u8; 4] {
                $from(value)
            }
        }
    };
}

element!(F32, F32, 4, load_f32, store_f32, f32::to_le_bytes);
element!(F16, F16, 2, load_f16, store_f16, |value| u32::from(f32_to_f16(value)).to_le_bytes());
element!(Bf16, Bf16, 2, load_bf16, store_bf16, |value| u32::from(f32_to_bf16(value)).to_le_bytes());

/// The bfloat16 next to a finite value; beyond the largest one it is infinity.
#[must_use]
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// The single of a bfloat16, exact.
#[must_use]
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The float16 next to a value; a NaN keeps its sign and the upper bits of its payload.
#[must_use]
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) as u16 & 0x8000, bits & 0x7FFF_FFFF);
    let rebias = (127 - 15) << 23;
    let half = if magnitude > 0x7F80_0000 {
        0x7E00 | (magnitude >> 13) as u16 & 0x3FF
    } else if magnitude >= 0x4780_0000 {
        0x7C00
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14 the step is 2^-24, which is that of a single at 0.5: let the addition round.
        ((f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()) as u16
    } else {
        ((magnitude - rebias + 0xFFF + ((magnitude >> 13) & 1)) >> 13) as u16
    };
    sign | half
}

/// The single of a float16: exact; a NaN comes out quiet.
#[must_use]
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7FFF));
    let wide = if magnitude > 0x7C00 {
        0x7FC0_0000 | (magnitude << 13) & 0x7F_FFFF
    } else if magnitude == 0x7C00 {
        0x7F80_0000
    } else if magnitude < 0x400 {
        // A whole number of steps of 2^-24.
        (magnitude as f32 * f32::from_bits((127 - 24) << 23)).to_bits()
    } else {
        (magnitude << 13) + ((127 - 15) << 23)
    };
    f32::from_bits(sign | wide)
}
