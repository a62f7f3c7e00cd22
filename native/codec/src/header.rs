//! The 32 bytes in front of every coded tensor: written, read, and checked field by field.

use crate::error::CodecError;
use crate::kinds::{Dtype, Scheme};
use crate::layout::{self, GROUP};

/// Bytes of a header; a blob without values is nothing else.
pub const HEADER_BYTES: usize = 32;
/// The most values in a blob: 2^31 (hidden size 8,192 and 262,144 tokens), so that every length fits 64 bits by far
/// and the length of a plane its 32.
pub const MAX_VALUES: u64 = 1 << 31;
/// Outliers name their column in 16 bits.
pub(crate) const MAX_OUTLIER_COLS: u32 = 1 << 16;
/// Below this a row is little more than its outliers.
pub(crate) const MIN_OUTLIER_COLS: u32 = 8;

const MAGIC: [u8; 3] = *b"SWC";
const VERSION: u8 = 1;
const SQUEEZED: u8 = 1;
/// Where the checksum stands; it covers what is before it and what is behind the header.
pub(crate) const CHECKSUM_AT: usize = 28;

/// What a header says, once it is known to make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How the values are coded.
    pub scheme: Scheme,
    /// What the sender had.
    pub dtype: Dtype,
    /// Rows of the matrix.
    pub rows: u32,
    /// Columns of the matrix: the hidden size.
    pub cols: u32,
    /// Values under one scale of an fp8 scheme: 64, or 0 for the row.
    pub group: u32,
    /// Bytes of the plane behind zstd; `None` when it is stored.
    pub squeezed: Option<u32>,
}

impl Header {
    /// The header of a tensor whose plane is not compressed (yet), with the scheme that its shape leads to.
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLarge`] and [`CodecError::BadGroup`].
    pub fn new(scheme: Scheme, dtype: Dtype, rows: u64, cols: u64, group: u64) -> Result<Self, CodecError> {
        let too_large = CodecError::TooLarge { rows, cols };
        let (Ok(few_rows), Ok(few_cols)) = (u32::try_from(rows), u32::try_from(cols)) else {
            return Err(too_large);
        };
        if u64::from(few_rows) * u64::from(few_cols) > MAX_VALUES {
            return Err(too_large);
        }
        if !good_group(scheme, group) {
            return Err(CodecError::BadGroup { scheme, group });
        }
        let scheme = if few_rows == 0 || few_cols == 0 {
            Scheme::Raw
        } else if scheme.keeps_outliers() && !(MIN_OUTLIER_COLS..=MAX_OUTLIER_COLS).contains(&few_cols) {
            Scheme::H8
        } else {
            scheme
        };
        let group = if scheme == Scheme::Raw || group == 0 { 0 } else { GROUP as u32 };
        Ok(Self { scheme, dtype, rows: few_rows, cols: few_cols, group, squeezed: None })
    }

    /// The same tensor as it travels when no scheme can hold it.
    #[must_use]
    pub fn raw(self) -> Self {
        Self { scheme: Scheme::Raw, group: 0, squeezed: None, ..self }
    }

    /// The bytes up to the checksum.
    pub(crate) fn write(&self) -> [u8; CHECKSUM_AT] {
        let mut bytes = [0; CHECKSUM_AT];
        let [m0, m1, m2] = MAGIC;
        let flags = if self.squeezed.is_some() { SQUEEZED } else { 0 };
        let start = [m0, m1, m2, VERSION, self.scheme.number(), self.dtype.number(), flags, 0];
        let fields = [self.rows, self.cols, self.group, self.squeezed.unwrap_or(0), 0];
        let all = start.into_iter().chain(fields.into_iter().flat_map(u32::to_le_bytes));
        bytes.iter_mut().zip(all).for_each(|(byte, value)| *byte = value);
        bytes
    }

    /// Reads and checks the header of `blob`, and that the blob is as long as it says. The checksum is not looked at.
    ///
    /// # Errors
    ///
    /// Every [`CodecError`] that names a field.
    pub fn read(blob: &[u8]) -> Result<Self, CodecError> {
        let Some(&bytes) = blob.first_chunk::<HEADER_BYTES>() else {
            return Err(CodecError::NoHeader(blob.len()));
        };
        let [m0, m1, m2, version, scheme, dtype, flags, zero, fields @ ..] = bytes;
        if [m0, m1, m2] != MAGIC {
            return Err(CodecError::NotACodec);
        }
        if version != VERSION {
            return Err(CodecError::UnknownVersion(version));
        }
        let (words, _) = fields.as_chunks::<4>();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        let (rows, cols, group, squeezed, reserved) = (next(), next(), next(), next(), next());
        if zero != 0 {
            return Err(CodecError::NotZero { offset: 7 });
        }
        if reserved != 0 {
            return Err(CodecError::NotZero { offset: 24 });
        }
        let scheme = Scheme::try_from(u64::from(scheme))?;
        let dtype = Dtype::try_from(u64::from(dtype))?;
        let mut header = Self::new(scheme, dtype, rows.into(), cols.into(), group.into())?;
        if header.scheme != scheme {
            return Err(CodecError::WrongScheme { scheme, rows, cols });
        }
        if flags & !SQUEEZED != 0 || (flags == 0 && squeezed != 0) || (flags != 0 && !scheme.has_plane()) {
            return Err(CodecError::BadFlags(flags));
        }
        if flags & SQUEEZED != 0 {
            let (plane, compressed) = (layout::plane_bytes(&header)?, squeezed as usize);
            if compressed == 0 || compressed >= plane {
                return Err(CodecError::BadPlaneLength { plane, compressed });
            }
            header.squeezed = Some(squeezed);
        }
        let derived = layout::Layout::of(&header)?.total;
        if derived != blob.len() {
            return Err(CodecError::WrongLength { derived, given: blob.len() });
        }
        Ok(header)
    }
}

fn good_group(scheme: Scheme, group: u64) -> bool {
    group == 0 || (matches!(scheme, Scheme::E4m3 | Scheme::E5m2) && group == GROUP as u64)
}
