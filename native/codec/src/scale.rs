//! The scale of a group: a bfloat16, because gradients (rms 1e-5) underflow a float16.

use crate::element::{bf16_to_f32, f32_to_bf16};
use crate::error::CodecError;

/// The smallest normal bfloat16; below it a scale loses bits, and everything under it counts as zero.
const SMALLEST: u16 = 0x0080;
/// The bits of infinity.
const INFINITE: u16 = 0x7F80;

/// A scale as it is sent, and what values are multiplied by.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub bits: u16,
    pub inverse: f32,
}

impl Scale {
    /// The scale under which the magnitude with these bits becomes `most`. The codes are made from the *rounded*
    /// scale, so what the other side multiplies by is what was divided by.
    #[inline(always)]
    pub fn new(peak: u32, most: f32) -> Self {
        let bits = f32_to_bf16(f32::from_bits(peak) / most);
        if bits < SMALLEST {
            Self { bits: 0, inverse: 0.0 }
        } else {
            Self { bits, inverse: 1.0 / bf16_to_f32(bits) }
        }
    }

    /// The magnitude to judge by whether all was finite: the peak's or the scale's own.
    #[inline(always)]
    pub fn worst(self, peak: u32) -> u32 {
        peak.max(u32::from(self.bits) << 16)
    }
}

/// Whether every scale is one that [`Scale::new`] makes of finite values.
pub(crate) fn check(section: &[u8]) -> Result<(), CodecError> {
    let (words, _) = section.as_chunks::<2>();
    let good = words.iter().fold(true, |good, word| {
        let bits = u16::from_le_bytes(*word);
        good & (bits == 0 || (SMALLEST..INFINITE).contains(&bits))
    });
    if good { Ok(()) } else { Err(CodecError::BadScale) }
}
