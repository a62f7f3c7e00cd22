//! Why the codec refuses: one list for both directions. Each text is a sentence for the one who sent or asked.

use crate::kinds::{Dtype, Scheme};
use std::fmt;

/// Why a tensor cannot be encoded, or bytes are not a coded tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecError {
    /// No scheme has this number.
    UnknownScheme(u64),
    /// No dtype has this number.
    UnknownDtype(u64),
    /// This scheme takes no such group.
    BadGroup {
        /// The scheme asked for.
        scheme: Scheme,
        /// The group asked for.
        group: u64,
    },
    /// The zstd level is not one of 0 to 19.
    BadLevel(i64),
    /// More values than [`crate::MAX_VALUES`], or more than 2^32 rows or columns.
    TooLarge {
        /// Rows of the matrix.
        rows: u64,
        /// Columns of the matrix.
        cols: u64,
    },
    /// The values do not fill the shape.
    BadValues {
        /// Bytes that the shape and the stride reach.
        needed: usize,
        /// Bytes given.
        given: usize,
    },
    /// The output buffer has another size than the result.
    BadOutput {
        /// Bytes of the result, or the most it may have.
        needed: usize,
        /// Bytes given.
        given: usize,
    },
    /// The values hold NaN or infinity, or their scale overflows: they travel raw.
    NotFinite,
    /// Fewer bytes than a header.
    NoHeader(usize),
    /// Other first bytes than a coded tensor's.
    NotACodec,
    /// A version of the bytes that this program does not know.
    UnknownVersion(u8),
    /// A byte that has to be zero is not.
    NotZero {
        /// Where in the blob.
        offset: usize,
    },
    /// Flags that this scheme does not have, or a compressed length without the flag.
    BadFlags(u8),
    /// A scheme that the sender would not have chosen for this shape.
    WrongScheme {
        /// The scheme in the header.
        scheme: Scheme,
        /// Rows in the header.
        rows: u32,
        /// Columns in the header.
        cols: u32,
    },
    /// The compressed plane is empty or not smaller than the plane.
    BadPlaneLength {
        /// Bytes of the plane.
        plane: usize,
        /// Bytes the header says it was compressed to.
        compressed: usize,
    },
    /// The blob has another length than its header makes it.
    WrongLength {
        /// Bytes that follow from the header.
        derived: usize,
        /// Bytes given.
        given: usize,
    },
    /// The checksum does not fit the bytes.
    BadChecksum,
    /// Another shape than the one expected.
    WrongShape {
        /// Rows in the header.
        rows: u32,
        /// Columns in the header.
        cols: u32,
        /// Rows expected.
        want_rows: u32,
        /// Columns expected.
        want_cols: u32,
    },
    /// A scale that no sender makes: negative, subnormal, infinite or NaN.
    BadScale,
    /// A value kept apart is infinite or NaN.
    BadOutlier,
    /// The columns kept apart do not ascend within the row.
    BadOutlierColumn {
        /// The row.
        row: usize,
    },
    /// Bits behind the last code of a row are not zero.
    UnusedBits,
    /// An 8-bit float that is infinite or NaN.
    BadFloatCode(Scheme),
    /// zstd cannot read the plane, or it has another length.
    BadPlane,
    /// zstd gave up while compressing.
    Compressor,
    /// The values have another dtype than asked for.
    WrongDtype(Dtype),
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownScheme(number) => write!(f, "no scheme has the number {number}"),
            Self::UnknownDtype(number) => write!(f, "no dtype has the number {number}"),
            Self::BadGroup { scheme, group } => write!(f, "{scheme} takes no scale per {group} values"),
            Self::BadLevel(level) => write!(f, "the zstd level is 0 to 19, not {level}"),
            Self::TooLarge { rows, cols } => {
                write!(f, "{rows} x {cols} is more than {} values", crate::MAX_VALUES)
            }
            Self::BadValues { needed, given } => {
                write!(f, "the shape reaches over {needed} bytes of values, {given} were given")
            }
            Self::BadOutput { needed, given } => {
                write!(f, "the output takes {needed} bytes, {given} were given")
            }
            Self::NotFinite => write!(f, "the values are not all finite"),
            Self::NoHeader(given) => write!(f, "{given} bytes are too few for a header"),
            Self::NotACodec => write!(f, "these bytes are no coded tensor"),
            Self::UnknownVersion(version) => write!(f, "version {version} of the codec is unknown"),
            Self::NotZero { offset } => write!(f, "the byte at {offset} is not zero"),
            Self::BadFlags(flags) => write!(f, "the flags {flags:#04x} do not fit the header"),
            Self::WrongScheme { scheme, rows, cols } => {
                write!(f, "{scheme} is not the scheme of {rows} x {cols} values")
            }
            Self::BadPlaneLength { plane, compressed } => {
                write!(f, "a plane of {plane} bytes is said to be compressed to {compressed}")
            }
            Self::WrongLength { derived, given } => {
                write!(f, "the header makes {derived} bytes, {given} were given")
            }
            Self::BadChecksum => write!(f, "the checksum does not fit the bytes"),
            Self::WrongShape { rows, cols, want_rows, want_cols } => {
                write!(f, "{rows} x {cols} values came where {want_rows} x {want_cols} were expected")
            }
            Self::BadScale => write!(f, "a scale is negative, subnormal or not finite"),
            Self::BadOutlier => write!(f, "a value kept apart is not finite"),
            Self::BadOutlierColumn { row } => {
                write!(f, "the columns kept apart of row {row} do not ascend within it")
            }
            Self::UnusedBits => write!(f, "bits behind the last code of a row are not zero"),
            Self::BadFloatCode(scheme) => write!(f, "a code of {scheme} is not finite"),
            Self::BadPlane => write!(f, "a compressed plane is broken or of another length"),
            Self::Compressor => write!(f, "zstd gave up while compressing"),
            Self::WrongDtype(dtype) => write!(f, "the values are {dtype}"),
        }
    }
}

impl std::error::Error for CodecError {}
