//! The schemes and dtypes by their numbers on the wire.

use crate::error::CodecError;
use std::fmt;

/// How the values are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// The values as they are in memory.
    Raw,
    /// The exponents through zstd, the rest as it is: bit-exact.
    Lossless,
    /// Rotated in groups of 64, 8 bits a value.
    H8,
    /// Four values a row apart, the others rotated, 6 bits a value.
    H6,
    /// 8-bit floats with 3 bits of mantissa.
    E4m3,
    /// 8-bit floats with 2 bits of mantissa.
    E5m2,
    /// Four values a row apart, the others rotated, 4 bits a value.
    H4,
}

impl Scheme {
    /// All of them, by number.
    pub const ALL: [Self; 7] =
        [Self::Raw, Self::Lossless, Self::H8, Self::H6, Self::E4m3, Self::E5m2, Self::H4];

    /// Its number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Whether one plane of it may go through zstd.
    pub(crate) fn has_plane(self) -> bool {
        matches!(self, Self::Lossless | Self::E4m3 | Self::E5m2)
    }

    /// Whether it keeps four values of each row apart.
    pub(crate) fn keeps_outliers(self) -> bool {
        matches!(self, Self::H6 | Self::H4)
    }
}

impl TryFrom<u64> for Scheme {
    type Error = CodecError;
    fn try_from(number: u64) -> Result<Self, CodecError> {
        let found = usize::try_from(number).ok().and_then(|at| Self::ALL.get(at));
        found.copied().ok_or(CodecError::UnknownScheme(number))
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Lossless => "lossless",
            Self::H8 => "h8",
            Self::H6 => "h6",
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
            Self::H4 => "h4",
        })
    }
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Dtype {
    /// All of them, by number.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Its number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Bytes of one value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl TryFrom<u64> for Dtype {
    type Error = CodecError;
    fn try_from(number: u64) -> Result<Self, CodecError> {
        let found = usize::try_from(number).ok().and_then(|at| Self::ALL.get(at));
        found.copied().ok_or(CodecError::UnknownDtype(number))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        })
    }
}
